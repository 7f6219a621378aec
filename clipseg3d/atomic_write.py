"""Writing a file or a folder completely or not at all."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, tmp_name: str | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file next to ``path``; at the end it is renamed to ``path``.

    After an error, the temporary file is removed and ``path`` is as before.

    Args:
        path: file to write or replace; a missing folder is created.
        tmp_name: name of the temporary file, for large files that only one process writes: it
            overwrites the temporary file that a killed process has left. None takes a unique,
            hidden name.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    # Not made from the whole name, which may already have the maximum length. The suffixes stay,
    # since some libraries choose the format by them.
    unique = f".{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}"
    tmp = path.with_name(tmp_name or unique)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            with tmp.open("rb+") as file:
                os.fsync(file.fileno())  # a power cut must not leave a name without content
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path`` to fill; at the end it is renamed to ``path``.

    After an error, the temporary folder is removed and ``path`` is as before.

    Args:
        path: folder that does not exist or is empty; a missing parent folder is created.

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


def require_writable(folder: Path) -> None:
    """Raise an OSError if no file can be written to a folder; it is made if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(path: Path, error: OSError) -> OSError:
    """Return the error for a file or folder that cannot be written."""
    while isinstance(error.__cause__, OSError):  # of a file in a folder that is being written
        error = error.__cause__
    failure = OSError(
        f"{path}: cannot be written ({error.strerror or error}); free some space, or choose "
        "another place"
    )
    failure.errno = error.errno
    return failure
