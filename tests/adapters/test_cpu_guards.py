"""Kernels read and write nothing outside their buffers."""

import subprocess
import sys
from pathlib import Path

import pytest

from .cpu_kernels import Subject

ROOT = Path(__file__).parents[2]
RUN = "import sys; from tests.adapters.cpu_guarded import main; main(*sys.argv[1:])"


@pytest.mark.skipif(sys.platform == "win32", reason="pages are guarded with mprotect, which Windows does not have")
def test_kernels_stay_in_their_buffers(cpu_subject: Subject, kernel_cache: Path) -> None:
    """In a process of its own: a step outside ends it."""
    command = [sys.executable, "-c", RUN, cpu_subject.isa.name, str(kernel_cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    called = done.stdout.splitlines()[-1:]
    assert (done.returncode, called) == (0, ["done"]), done.stderr[-1000:]
