"""A thread's part in the steps of a decoder, as the object file has it."""

from typing import Any

import numpy as np
from numba import carray, cfunc, from_dtype, types

from vmm_adapters.cpu.codegen.attention import cut_tiles
from vmm_adapters.cpu.codegen.step import run_step
from vmm_adapters.cpu.codegen.target import emit_object
from vmm_adapters.cpu.codegen.team import acquire_lock, end_step, load_atomic, release_lock, store_atomic
from vmm_adapters.cpu.formats import PHASES_A_LAYER, TAKE_PART
from vmm_adapters.cpu.isa import Target
from vmm_adapters.cpu.layout import LAYER, MATRIX
from vmm_adapters.cpu.share import LOCKS, MODEL, NUM_THREADS, STEP, STEP_NUMBER, STOP, Share


def _records(dtype: np.dtype[np.void]) -> Any:
    return types.CPointer(from_dtype(dtype))


def take_part(
    kernels: int, thread: int, at: int, models: Any, layers: Any, num_layers: int, matrices: Any, total: int, steps: Any
) -> None:
    """Thread 0 wakes the others and computes one step with them; the others take part in every one until the end.

    `at`: the address of the team's state; `total`: the number of matrices.
    """
    model, layers, matrices = carray(models, 1)[0], carray(layers, num_layers), carray(matrices, total)
    step, num_threads = carray(steps, 1)[0], load_atomic(at, NUM_THREADS)
    num_phases = PHASES_A_LAYER * (num_layers + 1)
    if thread == 0:
        cut_tiles(step, layers[0], num_threads)
        store_atomic(at, STEP_NUMBER, load_atomic(at, STEP_NUMBER) + 1)
        for other in range(1, num_threads):
            release_lock(at, load_atomic(at, LOCKS + other))
    while True:
        if thread != 0:
            acquire_lock(at, load_atomic(at, LOCKS + thread))
            if load_atomic(at, STOP):
                return
        first_phase = load_atomic(at, STEP_NUMBER) * num_phases
        share = Share(kernels, at, first_phase, num_threads, thread, model, step)
        run_step(share, layers, matrices)
        if thread == 0:
            end_step(share, num_phases)
            return


def compile_steps(target: Target) -> bytes:
    """`take_part` as an object file for this machine."""
    number = types.int64
    signature = types.void(
        *(number, number, number, _records(MODEL), _records(LAYER), number, _records(MATRIX), number, _records(STEP))
    )
    function = cfunc(signature, error_model="numpy")(take_part)
    return emit_object(function.inspect_llvm(), target, {function.native_name: TAKE_PART})
