"""The memory that a command frees stays with its process, instead of going back to the system.

glibc maps every large tensor anew and unmaps it when it is freed. The system then clears the same
pages again and again, which takes a third of the time of a prediction on CPUs. Other threads get
arenas of their own, whose parts of 64 MB hold no large volume; with one arena for all, what one
thread has freed serves the others too.
"""

import ctypes
import os
import sys

SWITCH = "CLIPSEG3D_KEEP_FREED_MEMORY"
"""Environment variable; 0 leaves the allocator as it is."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
_TOP_PAD_BYTES = 2**26


class _SymbolInfo(ctypes.Structure):
    """Answer of ``dladdr``."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, in this process and those forked from it.

    Only for processes that are this library's own, such as its commands: it changes the whole
    process. Nothing happens on other systems, with another allocator (musl, or a preloaded jemalloc
    or tcmalloc), where the environment tunes glibc's allocator, or where it says
    ``CLIPSEG3D_KEEP_FREED_MEMORY=0``.

    Returns:
        Whether freed memory is kept.
    """
    if os.environ.get(SWITCH) == "0" or _is_tuned() or sys.platform != "linux":
        return False
    process = ctypes.CDLL(None)
    if not _allocates_by_glibc(process):
        return False
    values = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _TOP_PAD_BYTES}  # -1: never
    values[_M_ARENA_MAX] = 1
    return all(process.mallopt(option, value) for option, value in values.items())


def _is_tuned() -> bool:
    """Return whether the environment has options of glibc's allocator."""
    tuned = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def _allocates_by_glibc(process: ctypes.CDLL) -> bool:
    """Return whether ``malloc`` of this process is that of glibc."""
    if not all(hasattr(process, name) for name in ("gnu_get_libc_version", "mallopt", "dladdr")):
        return False
    return _file_of(process, "malloc") == _file_of(process, "gnu_get_libc_version")


def _file_of(process: ctypes.CDLL, function: str) -> bytes | None:
    """Return the library that a function of the process is in; None if it cannot be told."""
    info = _SymbolInfo()
    found = process.dladdr(ctypes.cast(process[function], ctypes.c_void_p), ctypes.byref(info))
    return info.file if found else None
