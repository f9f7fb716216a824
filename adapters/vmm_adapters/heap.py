"""Memory that is the process's and no longer needed."""

import ctypes
import gc
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


def trim_heap() -> None:
    """Hand freed memory to the system: glibc keeps about 100 MB of what a small model's packing and closing free."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def give_back() -> None:
    """What loading a model took: freed memory, and the code of libraries that was run to start and to load.

    Code is as it is in the file, and comes from the system's cache again when it is run: 20 MB of a server's 60 never
    are. Linux alone.
    """
    gc.collect()
    trim_heap()
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for mapped in library_code(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
        advise(mapped.start, mapped.end - mapped.start, mmap.MADV_DONTNEED)


class Mapping(NamedTuple):
    """Addresses that a file is mapped to."""

    start: int
    end: int
    permissions: str
    path: str
    written_kb: int
    """Of pages that are no longer as in the file."""


def library_code(smaps: str) -> Iterator[Mapping]:
    """Code and constants of shared libraries that nobody wrote to (proc(5), /proc/pid/smaps)."""
    found = list(_mappings(smaps))
    libraries = {each.path for each in found if each.permissions == "r-xp" and each.path.startswith("/")}
    for each in found:
        if each.path in libraries and each.permissions in ("r-xp", "r--p") and not each.written_kb:
            yield each


_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)")


def _mappings(smaps: str) -> Iterator[Mapping]:
    head = None
    for line in smaps.splitlines():
        if found := _HEAD.fullmatch(line):
            head = found
        elif head is not None and line.startswith("Anonymous:"):
            start, end, permissions, path = head.groups()
            yield Mapping(int(start, 16), int(end, 16), permissions, path, int(line.split()[1]))
