"""Writing a file all or nothing."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write; it becomes ``path`` if nothing goes wrong, or goes.

    Args:
        path: file to write or replace; its folder is made if missing.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    # Path's own name may be as long as allowed; its ending tells some writers the format.
    aside = path.with_name(f".{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}")
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
