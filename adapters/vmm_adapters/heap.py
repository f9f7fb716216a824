"""Memory that was freed but is still the process's."""

import ctypes
import sys


def trim_heap() -> None:
    """Hand freed memory to the system: glibc keeps about 100 MB of what a small model's packing and closing free."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
