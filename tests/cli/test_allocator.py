"""What is left of large pictures in memory."""

import subprocess
import sys

import pytest

SCRIPT = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from vmm_server.cli.allocator import give_back_large_blocks

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def look(index):
    picture = Image.new("RGB", (6000, 4000), "red")
    return picture.resize((64, 64)).tobytes()

if "set" in sys.argv:
    give_back_large_blocks()
before = resident_mb()
with ThreadPoolExecutor(4) as threads:
    kept = [list(threads.map(look, range(8))) for _ in range(4)]
    print(resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's alone")
def test_memory_of_large_pictures_is_given_back() -> None:
    left = {
        argument: int(subprocess.check_output([sys.executable, "-c", SCRIPT, argument], text=True))
        for argument in ("set", "left alone")
    }
    assert left["set"] < 150, left
    assert left["set"] < left["left alone"] / 2, left
