"""Threads that compute a step together: each runs the same compiled function, and they meet at barriers.

Between steps all but the caller's sleep on a lock of the interpreter's own (PyThread_*, which need no GIL); while they
compute they take tasks from a shared counter and wait for one another by looking at a number. Each engine has threads of
its own: several at a time are safe, and only slower.

State is one int64 array, a cache line for each number that is written often.
"""

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vmm_adapters.cpu.compiled import compiled
from vmm_adapters.cpu.emitter import I32, I64

ARRIVED, PASSED, NEXT_TASK, STOP, NUM_THREADS, LOCKS = 0, 8, 16, 24, 32, 40
"""Places in the state: threads at the barrier, barriers passed, the counter of tasks, whether to end, threads, locks."""
SPINS = 4000
"""Looks before a waiting thread lets others run: longer than any barrier takes while all threads have a core."""

_POINTER = ir.IntType(8).as_pointer()
_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


def _address(context: Any, builder: Any, array: Any, index: Any) -> Any:
    place = builder.add(array, builder.mul(index, ir.Constant(I64, 8)))
    return builder.inttoptr(place, I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def add_atomic(typingctx: Any, state: Any, index: Any, amount: Any) -> Any:
    """Add to a number of the state; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = _address(context, builder, *arguments[:2])
        return builder.atomic_rmw("add", at, arguments[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_atomic(typingctx: Any, state: Any, index: Any) -> Any:
    """A number of the state, and everything written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(context, builder, *arguments), "acquire", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_atomic(typingctx: Any, state: Any, index: Any, number: Any) -> Any:
    """Write a number of the state, after everything written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _address(context, builder, *arguments[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


@intrinsic  # type: ignore[untyped-decorator]
def relax(typingctx: Any) -> Any:
    """Tell the core that this is a waiting loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        triple = builder.module.triple or ""
        if "86" in triple:
            builder.call(_function(builder, "llvm.x86.sse2.pause", ir.VoidType()), [])
        elif "aarch64" in triple or "arm64" in triple:
            builder.call(_function(builder, "llvm.aarch64.hint", ir.VoidType(), I32), [ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def let_others_run(typingctx: Any) -> Any:
    """Give the core away for a moment."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(_function(builder, _YIELD, I32), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def release_lock(typingctx: Any, lock: Any) -> Any:
    """Wake the thread that sleeps on it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        release = _function(builder, "PyThread_release_lock", ir.VoidType(), _POINTER)
        builder.call(release, [builder.inttoptr(arguments[0], _POINTER)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def acquire_lock(typingctx: Any, lock: Any) -> Any:
    """Sleep until it is released."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        acquire = _function(builder, "PyThread_acquire_lock", I32, _POINTER, I32)
        builder.call(acquire, [builder.inttoptr(arguments[0], _POINTER), ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@compiled  # type: ignore[untyped-decorator]
def take_task(state: Any) -> Any:
    """The number of the next task that nobody has taken since the last barrier."""
    return add_atomic(state, NEXT_TASK, 1)


@compiled  # type: ignore[untyped-decorator]
def meet(state: Any, num_threads: Any) -> None:
    """Wait until every thread is here. The last one sets the tasks back."""
    if num_threads == 1:
        store_atomic(state, NEXT_TASK, 0)
        return
    passed = load_atomic(state, PASSED)
    if add_atomic(state, ARRIVED, 1) == num_threads - 1:
        store_atomic(state, ARRIVED, 0)
        store_atomic(state, NEXT_TASK, 0)
        store_atomic(state, PASSED, passed + 1)
        return
    spins = 0
    while load_atomic(state, PASSED) == passed:
        relax()
        spins += 1
        if spins >= SPINS:
            let_others_run()
            spins = 0
