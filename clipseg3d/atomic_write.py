"""Writing a file or a folder completely or not at all."""

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

HIDDEN = ".clipseg3d-"
"""How names of temporary files, temporary folders and locks begin."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file next to ``path``; at the end it is renamed to ``path``.

    After an error, the temporary file is removed and ``path`` is as before. What killed processes
    have left in the folder is removed first.

    Args:
        path: file to write or replace; a missing folder is created.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    with atomic_files(path) as (tmp,):
        yield tmp


@contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """Like :func:`atomic_write` for files that belong together; all are on the disk before any.

    They are renamed in this order. A kill between two renames is all that can part them.
    """
    try:
        with ExitStack() as stack:
            temporary = []
            for path in paths:
                # Not made from the whole name, which may already have the maximum length. The
                # suffixes stay, since some libraries choose the format by them.
                suffixes = "".join(path.suffixes[-2:])
                temporary.append(stack.enter_context(_temporary(path.parent, suffixes, _touch)))
            yield temporary
            for tmp in temporary:
                with tmp.open("rb+") as file:
                    os.fsync(file.fileno())  # a power cut must not leave a name without content
            for tmp, path in zip(temporary, paths, strict=True):
                os.replace(tmp, path)
    except OSError as error:
        raise _not_written(error, *paths) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path`` to fill; at the end it is renamed to ``path``.

    After an error, the temporary folder is removed and ``path`` is as before. What killed processes
    have left beside it is removed first.

    Args:
        path: folder that does not exist or is empty; a missing parent folder is created.

    Raises:
        OSError: ``path`` cannot be written; the message names it and the cure.
    """
    try:
        with _temporary(path.parent, ".tmp", Path.mkdir) as tmp:
            yield tmp
            tmp.replace(path)
    except OSError as error:
        raise _not_written(error, path) from error


@contextmanager
def locked(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes out that lock the same path; wait for one that has it.

    Nothing is locked on Windows and on network disks without locks. The lock of a killed process
    is free.

    Args:
        path: what is locked, such as a file to write; its folder is made if missing.
        on_wait: called once if another process has the lock.

    Raises:
        OSError: the folder cannot be written.
    """
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    file = path.with_name(f"{HIDDEN}{name}.lock")
    lock = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while lock is None:
            file.touch()
            lock = _lock(file)
            if lock is None:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                lock = _lock(file, wait=True)
    except NotImplementedError:
        pass
    except OSError as error:
        raise _not_written(error, path) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before it is free, so that those who wait make a new one
        if lock is not None:
            os.close(lock)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Give the error of a full disk a message if other libraries write to a folder."""
    try:
        yield
    except OSError as error:
        named = len(error.args) < 2  # as below; the system gives a number and a text
        if named or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _not_written(error, folder) from error


def require_writable(folder: Path) -> None:
    """Raise an OSError if no file can be written to a folder; it is made if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_written(error, folder) from error


@contextmanager
def _temporary(folder: Path, suffixes: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new hidden file or folder, locked as long as this process lives; then remove it."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    lock = None
    try:
        while lock is None:  # once more if it was removed before it was locked
            tmp = folder / f"{HIDDEN}{uuid.uuid4().hex}{suffixes}"
            make(tmp)
            lock = _lock(tmp, wait=True)
    except NotImplementedError:
        pass
    try:
        yield tmp
    finally:
        _remove(tmp)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes have left that are no more: their locks are free."""
    for path in folder.glob(f"{HIDDEN}*"):
        with suppress(OSError, NotImplementedError):  # it may be another user's
            lock = _lock(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file or folder; the system frees the lock of a process that ends.

    Returns:
        A descriptor that holds the lock until it is closed; None if the path is gone or, unless
        ``wait``, another process has the lock.

    Raises:
        NotImplementedError: it cannot be locked: on Windows, and on some network disks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise NotImplementedError from error
    try:
        lock = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotImplementedError from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(lock), os.stat(path)):  # else it was replaced meanwhile
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(lock)
        raise NotImplementedError from error
    os.close(lock)
    return None


def _touch(path: Path) -> None:
    """Make an empty file."""
    path.touch(exist_ok=False)


def _not_written(error: OSError, *paths: Path) -> OSError:
    """Return the error for files or a folder that cannot be written."""
    while isinstance(error.__cause__, OSError):  # of a file in a folder that is being written
        error = error.__cause__
    cure = "free some space, or choose another place"
    if error.errno == errno.ENOTEMPTY:
        cure = "it holds something already; choose another place"
    names = " and ".join(map(str, paths))
    failure = OSError(f"{names}: cannot be written ({error.strerror or error}); {cure}")
    failure.errno = error.errno
    return failure
