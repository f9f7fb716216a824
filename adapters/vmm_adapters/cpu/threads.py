"""The threads of one engine."""

from ctypes import c_void_p, pythonapi
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from vmm_adapters.cpu.attention import cut_tiles
from vmm_adapters.cpu.compiled import compile_kept, compiled
from vmm_adapters.cpu.kernels import Kernels
from vmm_adapters.cpu.share import Share
from vmm_adapters.cpu.step import PHASES_A_LAYER, run_step
from vmm_adapters.cpu.team import (
    LOCKS,
    NUM_THREADS,
    STEP_NUMBER,
    STOP,
    acquire_lock,
    end_step,
    load_atomic,
    release_lock,
    store_atomic,
)


@compiled  # type: ignore[untyped-decorator]
def take_part(kernels: Any, thread: int, state: Any, model: Any, layers: Any, matrices: Any, step: Any) -> None:
    """Thread 0 wakes the others and computes one step with them; the others take part in every one until the end."""
    at, num_threads = state.ctypes.data, state[NUM_THREADS]
    num_phases = PHASES_A_LAYER * (len(layers) + 1)
    if thread == 0:
        cut_tiles(step[0], layers[0], num_threads)
        store_atomic(at, STEP_NUMBER, state[STEP_NUMBER] + 1)
        for other in range(1, num_threads):
            release_lock(state[LOCKS + other])
    while True:
        if thread != 0:
            acquire_lock(state[LOCKS + thread])
            if load_atomic(at, STOP):
                return
        first_phase = load_atomic(at, STEP_NUMBER) * num_phases
        share = Share(kernels.ctypes.data, at, first_phase, num_threads, thread, model[0], step[0])
        run_step(share, layers, matrices)
        if thread == 0:
            end_step(share, num_phases)
            return


@compiled  # type: ignore[untyped-decorator]
def _dismiss(state: Any) -> None:
    store_atomic(state.ctypes.data, STOP, 1)
    for other in range(1, state[NUM_THREADS]):
        release_lock(state[LOCKS + other])


class Team:
    """Threads that compute the steps of one decoder."""

    def __init__(self, kernels: Kernels, num_threads: int, cache_dir: Path | None, *arguments: Any) -> None:
        """`arguments` are `run_step`'s, from `model` on."""
        self._kernels = kernels
        pythonapi.PyThread_allocate_lock.restype = c_void_p
        self._state = np.zeros(LOCKS + num_threads, np.int64)
        self._state[NUM_THREADS] = num_threads
        self._arguments = (kernels.table, 0, self._state, *arguments)
        compile_kept(take_part, self._arguments, cache_dir)
        self._locks: list[int] = []
        self._threads: list[Thread] = []
        for index in range(1, num_threads):
            lock = pythonapi.PyThread_allocate_lock()
            pythonapi.PyThread_acquire_lock(c_void_p(lock), 1)
            self._locks.append(lock)
            self._state[LOCKS + index] = lock
            thread = Thread(
                target=take_part,
                args=(kernels.table, index, self._state, *arguments),
                name=f"vmm-cpu-{index}",
                daemon=True,
            )
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def compute(self) -> None:
        """One step."""
        take_part(*self._arguments)

    def close(self) -> None:
        """End the threads."""
        _dismiss(self._state)
        for thread in self._threads:
            thread.join()
        for lock in self._locks:
            pythonapi.PyThread_free_lock(c_void_p(lock))
        self._locks, self._threads = [], []
