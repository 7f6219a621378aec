"""Writing a file or a folder all or nothing; every file of this library is written here."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, tmp_name: str | None = None) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write; it is renamed to ``path`` at the end.

    If something goes wrong, the temporary file is removed and ``path`` stays as it was.

    Args:
        path: file to write or replace; its folder is made if missing.
        tmp_name: name of the temporary file, for large files with one writer only: what a killed
            process leaves is overwritten by the next one. None takes a unique, hidden name.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    # A name of its own: path's may be as long as allowed. Some writers take the format from the
    # ending.
    unique = f".{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}"
    tmp = path.with_name(tmp_name or unique)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            with tmp.open("rb+") as file:
                os.fsync(file.fileno())  # the name must not reach the disk before the content
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it is renamed to ``path`` at the end.

    If something goes wrong, the temporary folder is removed.

    Args:
        path: folder that does not exist yet, or is empty; the folder around it is made if missing.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    tmp = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp.mkdir()
        try:
            yield tmp
            tmp.replace(path)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OSError:
    """Return the error for a file or folder that cannot be written."""
    failure = OSError(
        f"{path}: cannot be written ({error.strerror or error}); free some space, or choose "
        "another place"
    )
    failure.errno = error.errno
    return failure
