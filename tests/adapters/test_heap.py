"""Code that was run to start is let go, and nothing else: no data, no files that are read, nothing written to."""

import ctypes
import sys
from pathlib import Path

import pytest

from vmm_adapters.heap import give_back, library_code

SMAPS = """\
7f00-7f10 r--p 00000000 fe:00 11                         /usr/lib/libone.so
Rss:                   4 kB
Anonymous:             0 kB
7f10-7f20 r-xp 00010000 fe:00 11                         /usr/lib/libone.so
Rss:                  40 kB
Anonymous:             0 kB
7f20-7f30 r--p 00020000 fe:00 11                         /usr/lib/libone.so
Rss:                   4 kB
Anonymous:             4 kB
7f30-7f40 rw-p 00030000 fe:00 11                         /usr/lib/libone.so
Rss:                   4 kB
Anonymous:             0 kB
7f40-7f50 r-xp 00000000 fe:00 12                         /usr/lib/with a name of its own.so
Rss:                   8 kB
Anonymous:             8 kB
7f50-7f60 r--p 00000000 fe:00 13                         /models/weights.data
Rss:                  90 kB
Anonymous:             0 kB
7f60-7f70 r-xp 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
7f70-7f80 r-xp 00000000 00:00 0                          [vdso]
Rss:                   4 kB
Anonymous:             0 kB
"""


def test_code_of_libraries_that_nobody_wrote_to() -> None:
    assert [(each.start, each.path) for each in library_code(SMAPS)] == [
        (0x7F00, "/usr/lib/libone.so"),
        (0x7F10, "/usr/lib/libone.so"),
    ]


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="reads /proc/self/status: Linux alone says what of files is in memory, and gives it back",
)
def test_what_is_given_back_is_there_when_it_is_needed() -> None:
    library = ctypes.CDLL(None)
    give_back()
    assert library.abs(-3) == 3
    status = Path("/proc/self/status").read_text(encoding="ascii")
    assert int(next(line for line in status.splitlines() if line.startswith("RssFile")).split()[1]) > 0
