"""Memory of large pictures goes back to the system when they are done with.

glibc keeps what a program frees. Blocks beyond a threshold are the exception, but every large block that is freed
raises it, to 32 MiB; a picture's rows are blocks of 16 MiB in Pillow, so that after some photographs in several threads
a server would hold gigabytes for good. A threshold that was set stays (mallopt(3)).
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 12 * 1024**2
"""Above what models take for one picture, which is reused more often than it is given back; below Pillow's blocks."""
_KEPT_BYTES = 32 * 1024**2
"""At the end of each heap: setting one threshold puts the other at 128 KiB, which costs milliseconds."""


def give_back_large_blocks() -> None:
    """For the whole process, where the C library is glibc; its own variables (`MALLOC_MMAP_THRESHOLD_`) win."""
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
