"""The CPU and the memory that this process may use: affinity and the limits of control groups counted in."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from vmm_adapters.probes import apple, linux_cpu, windows
from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import Processor


def ask() -> Processor:
    """The processor of whichever system this is."""
    if sys.platform == "win32":
        return windows.processor()
    if sys.platform == "darwin":
        names = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=True, errors="replace")
        return apple.read_sysctl(names.stdout)
    if sys.platform == "linux":
        return linux_cpu.read_processor(Path("/"), frozenset(os.sched_getaffinity(0)))
    return Processor(platform.processor() or platform.machine(), "unknown", (), None, os.cpu_count() or 1, *[None] * 3)


if __name__ == "__main__":
    answer(ask)
