"""Memory that is the process's and no longer needed."""

import ctypes
import mmap
import sys
from pathlib import Path


def trim_heap() -> None:
    """Hand freed memory to the system: glibc keeps about 100 MB of what a small model's packing and closing free."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def let_go(library: str) -> None:
    """Let go of a shared library's code until it is needed again: a compiler's is 50 MB, for a second of work.

    Linux alone. Code is as it is in the file, and is read from there again; what was written to stays.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, permissions, *_ = line.split(maxsplit=2)
        if permissions == "r-xp" and line.endswith(f"/{library}"):
            start, end = (int(part, 16) for part in addresses.split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)
