"""Memory that is freed can be used again, or goes back to the system.

glibc keeps what a program frees. Blocks beyond a threshold are the exception, but every large block that is freed
raises it, to 32 MiB; a picture's rows are blocks of 16 MiB in Pillow, so that after some photographs in several threads
a server would hold gigabytes for good. A threshold that was set stays (mallopt(3)).

glibc also gives threads heaps of their own, eight for each core. What one thread frees there no thread of another heap
can use, so that a server with many threads, each of which was once busy, keeps more than it ever needed at a time.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 12 * 1024**2
"""Above what models take for one picture, which is reused more often than it is given back; below Pillow's blocks."""
_KEPT_BYTES = 32 * 1024**2
"""At the end of each heap: setting one threshold puts the other at 128 KiB, which costs milliseconds."""
_NUM_HEAPS = 2
"""One is the main thread's. Python's own small objects lie in neither."""


def give_back_memory() -> None:
    """For the whole process, before its threads start, where the C library is glibc; its own variables
    (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_ARENA_MAX`) win."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _NUM_HEAPS)
