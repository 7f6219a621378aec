"""Writing a file all or nothing."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, aside_name: str | None = None) -> Iterator[Path]:
    """Give a file beside ``path`` to write; it becomes ``path`` if nothing goes wrong, or goes.

    Args:
        path: file to write or replace; its folder is made if missing.
        aside_name: of the file beside, for a single writer of large files: what a killed process
            leaves is overwritten by the next one. None takes a name that nobody else takes.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    # Path's own name may be as long as allowed; its ending tells some writers the format.
    unique = f".{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}"
    aside = path.with_name(aside_name or unique)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        failure = OSError(
            f"{path}: cannot be written ({error.strerror or error}); free some space, or choose "
            "another place"
        )
        failure.errno = error.errno
        raise failure from error
