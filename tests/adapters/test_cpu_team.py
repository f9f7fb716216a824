"""Phases of steps: what a thread finds that comes late."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.team import end_step, finish, take_task
from vmm_adapters.cpu.share import COUNTER, DONE, LOCKS

pytestmark = pytest.mark.runtime

NUM_PHASES = 8


class Part(NamedTuple):
    """As much of a `Share` as phases need."""

    state: int
    first_phase: int


@compiled  # type: ignore[untyped-decorator]
def run_phase(state: Any, step: int, phase: int, total: int) -> int:
    """Do all that is left of a phase; how many tasks that were."""
    part = Part(state.ctypes.data, step * NUM_PHASES)
    num_done = 0
    while take_task(part, phase, total) >= 0:
        num_done += 1
    finish(part, phase, total, num_done)
    return num_done


@compiled  # type: ignore[untyped-decorator]
def take_one(state: Any, step: int, phase: int, total: int) -> Any:
    """The next task of a phase, not done yet."""
    return take_task(Part(state.ctypes.data, step * NUM_PHASES), phase, total)


@compiled  # type: ignore[untyped-decorator]
def end(state: Any, step: int) -> None:
    """End a step."""
    end_step(Part(state.ctypes.data, step * NUM_PHASES), NUM_PHASES)


def test_a_phase_that_a_step_did_without_is_over_with_the_step() -> None:
    state = np.zeros(LOCKS, np.int64)
    assert [run_phase(state, 1, phase, 5) for phase in (0, 1, 4)] == [5, 5, 5]
    end(state, 1)
    counter = state[COUNTER]
    # late, with the next step's description, which has a phase 6
    assert take_one(state, 1, 6, 3) == -1
    assert run_phase(state, 1, 6, 3) == 0
    assert (state[COUNTER], state[DONE]) == (counter, 0)
    assert [run_phase(state, 2, phase, 3) for phase in (0, 6)] == [3, 3]


def test_a_phase_that_is_over_has_no_tasks() -> None:
    state = np.zeros(LOCKS, np.int64)
    assert run_phase(state, 1, 2, 4) == 4
    assert run_phase(state, 1, 2, 4) == 0
    assert take_one(state, 1, 1, 9) == -1, "nor has one before it"
    assert [take_one(state, 1, 3, 2) for _ in range(3)] == [0, 1, -1]
