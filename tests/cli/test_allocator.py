"""What is left in memory of what was freed."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is set where the C library is glibc")

PICTURES = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from vmm_server.cli.allocator import give_back_memory

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def look(index):
    picture = Image.new("RGB", (6000, 4000), "red")
    return picture.resize((64, 64)).tobytes()

if "set" in sys.argv:
    give_back_memory()
before = resident_mb()
with ThreadPoolExecutor(4) as threads:
    kept = [list(threads.map(look, range(8))) for _ in range(4)]
    print(resident_mb() - before)
"""

HEAPS = """
import ctypes, sys, threading
from pathlib import Path
from vmm_server.cli.allocator import give_back_memory

if "set" in sys.argv:
    give_back_memory()
libc, all_there = ctypes.CDLL(None), threading.Barrier(9)
libc.fopen.restype = ctypes.c_void_p

def allocate():
    block = bytearray(100_000)
    all_there.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
all_there.wait()
path = Path(sys.argv[2])
file = ctypes.c_void_p(libc.fopen(str(path).encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(path.read_text().count("<heap "))
"""


@of_glibc
def test_threads_share_their_heaps(tmp_path: Path) -> None:
    num = {
        argument: int(subprocess.check_output([sys.executable, "-c", HEAPS, argument, str(tmp_path / "info")]))
        for argument in ("set", "left alone")
    }
    assert num["set"] == 2 < num["left alone"]


@of_glibc
def test_memory_of_large_pictures_is_given_back() -> None:
    left = {
        argument: int(subprocess.check_output([sys.executable, "-c", PICTURES, argument], text=True))
        for argument in ("set", "left alone")
    }
    assert left["set"] < 150, left
    assert left["set"] < left["left alone"] / 2, left
