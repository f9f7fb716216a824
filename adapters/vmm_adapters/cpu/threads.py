"""The threads of one engine."""

import ctypes
import sys
from ctypes import CFUNCTYPE, c_int64, c_void_p, pythonapi
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.kernels import Kernels
from vmm_adapters.cpu.share import ACQUIRE, LOCKS, NUM_THREADS, RELEASE, STOP, YIELD

_NUM_WORDS = 9


class Team:
    """Threads that compute the steps of one decoder: see `codegen.parts.take_part`, and `codegen.team`."""

    def __init__(
        self,
        kernels: Kernels,
        num_threads: int,
        model: NDArray[np.void],
        layers: NDArray[np.void],
        matrices: NDArray[np.void],
        step: NDArray[np.void],
    ) -> None:
        """`model`, `layers`, `matrices` and `step`: records of `MODEL`, `LAYER`, `MATRIX` and `STEP`."""
        pythonapi.PyThread_allocate_lock.restype = c_void_p
        self._state = np.zeros(LOCKS + num_threads, np.int64)
        self._state[NUM_THREADS] = num_threads
        for place, function in ((ACQUIRE, pythonapi.PyThread_acquire_lock), (RELEASE, pythonapi.PyThread_release_lock)):
            self._state[place] = _address(function)
        self._state[YIELD] = _address(_let_others_run())
        self._kept = (kernels, model, layers, matrices, step)
        # calls give the interpreter's lock away
        self._take_part = CFUNCTYPE(None, *[c_int64] * _NUM_WORDS)(kernels.take_part)
        self._words = (
            *(self._state.ctypes.data, model.ctypes.data, layers.ctypes.data, len(layers)),
            *(matrices.ctypes.data, len(matrices), step.ctypes.data),
        )
        self._table = kernels.table.ctypes.data
        self._locks: list[int] = []
        self._threads: list[Thread] = []
        for index in range(1, num_threads):
            lock = pythonapi.PyThread_allocate_lock()
            pythonapi.PyThread_acquire_lock(c_void_p(lock), 1)
            self._locks.append(lock)
            self._state[LOCKS + index] = lock
            self._threads.append(Thread(target=self._run, args=(index,), name=f"vmm-cpu-{index}", daemon=True))
        for thread in self._threads:
            thread.start()

    def compute(self) -> None:
        """One step."""
        self._run(0)

    def close(self) -> None:
        """End the threads."""
        self._state[STOP] = 1
        for lock in self._locks:
            pythonapi.PyThread_release_lock(c_void_p(lock))
        for thread in self._threads:
            thread.join()
        for lock in self._locks:
            pythonapi.PyThread_free_lock(c_void_p(lock))
        self._locks, self._threads = [], []

    def _run(self, thread: int) -> None:
        self._take_part(self._table, thread, *self._words)


def _let_others_run() -> Any:
    if sys.platform == "win32":
        return ctypes.windll.kernel32.SwitchToThread
    return ctypes.CDLL(None).sched_yield


def _address(function: Any) -> int:
    return ctypes.cast(function, c_void_p).value or 0
