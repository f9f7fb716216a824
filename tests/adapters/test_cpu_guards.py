"""Kernels stay in their buffers, and give the same with every instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vmm_adapters.cpu.isa import InstructionSet

from . import cpu_kernels
from .cpu_guarded import calls
from .cpu_kernels import Array, Subject
from .cpu_spans import Result

ROOT = Path(__file__).parents[2]
RUN = "import sys; from tests.adapters.cpu_guarded import main; main(*sys.argv[1:])"


@pytest.mark.skipif(sys.platform == "win32", reason="pages are guarded with mprotect, which Windows does not have")
def test_kernels_stay_in_their_buffers(cpu_subject: Subject, kernel_cache: Path) -> None:
    """In a process of its own: a step outside ends it."""
    command = [sys.executable, "-c", RUN, cpu_subject.isa.name, str(kernel_cache)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    called = done.stdout.splitlines()[-1:]
    assert (done.returncode, called) == (0, ["done"]), done.stderr[-1000:]


def arrays(results: object) -> list[Array]:
    """What a kernel wrote."""
    if isinstance(results, Result):
        results = (results.sums, results.peaks, results.totals)
    return [np.asarray(each) for each in (results if isinstance(results, tuple) else (results,))]


def test_instruction_sets_agree_to_the_last_bit(cpu_subject: Subject, kernel_cache: Path) -> None:
    """Integers are exact, and floats are added in the same order: answers do not depend on the machine."""
    portable = cpu_kernels.subject(InstructionSet.PORTABLE, kernel_cache)
    for (name, mine), (_, theirs) in zip(calls(cpu_subject), calls(portable), strict=True):
        for found, expected in zip(arrays(mine()), arrays(theirs()), strict=True):
            assert np.array_equal(found, expected, equal_nan=True), name
