"""Threads that compute a step together: each runs the same compiled function.

A step is a row of phases, a phase a number of tasks that threads take from a shared counter. A phase is over when its
tasks are done, whoever did them: nobody waits for a thread that the system keeps from running, unless it has a task.
One that comes late finds the phases over that it missed, and goes on to the one that is not. At the end of a step all
of its phases are over, also those that it did without: whoever comes later still may read the next step's description,
which has them.

Between steps all but the caller's sleep on a lock of the interpreter's own (PyThread_*, which need no GIL). Each engine
has threads of its own: several at a time are safe, and only slower.

The state is one int64 array; numbers that are written often have a cache line each. The counter holds the phase and the
next task in one number, the phase in the upper bits, an odd one once it is over; compared is how far it is ahead.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.emitter import I32, I64
from vmm_adapters.cpu.share import ACQUIRE, COUNTER, DONE, RELEASE, YIELD

SPINS = 4000
"""Looks before a waiting thread lets others run: longer than a task takes while all threads have a core."""
_PHASE = 1 << 20
"""More tasks than a phase has."""

_POINTER = ir.IntType(8).as_pointer()


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


def _function(builder: Any, name: str, *arguments: Any) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)


def _call(context: Any, builder: Any, state: Any, place: int, *arguments: Any) -> None:
    """A function of the system's, whose address is in the state: compiled code knows no names."""
    at = _address(context, builder, state, ir.Constant(I64, place))
    kind = ir.FunctionType(I32, [argument.type for argument in arguments])
    builder.call(builder.inttoptr(builder.load(at), kind.as_pointer()), arguments)


@intrinsic  # type: ignore[untyped-decorator]
def relax(typingctx: Any) -> Any:
    """Tell the core that this is a waiting loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        triple = builder.module.triple or ""
        if "86" in triple:
            builder.call(_function(builder, "llvm.x86.sse2.pause"), [])
        elif "aarch64" in triple or "arm64" in triple:
            builder.call(_function(builder, "llvm.aarch64.hint", I32), [ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def let_others_run(typingctx: Any, state: Any) -> Any:
    """Give the core away for a moment."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(context, builder, arguments[0], YIELD)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def release_lock(typingctx: Any, state: Any, lock: Any) -> Any:
    """Wake the thread that sleeps on it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(context, builder, arguments[0], RELEASE, builder.inttoptr(arguments[1], _POINTER))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def acquire_lock(typingctx: Any, state: Any, lock: Any) -> Any:
    """Sleep until it is released."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lock = builder.inttoptr(arguments[1], _POINTER)
        _call(context, builder, arguments[0], ACQUIRE, lock, ir.Constant(I32, 1))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def swap_atomic(typingctx: Any, state: Any, index: Any, before: Any, after: Any) -> Any:
    """Replace a number of the state, if it still is `before`; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = _address(context, builder, *arguments[:2])
        found = builder.cmpxchg(at, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), generate


@compiled  # type: ignore[untyped-decorator]
def take_task(share: Any, phase: int, total: int) -> Any:
    """The next of the phase's tasks, 0 to `total - 1`; -1 if there is none left."""
    mine = (share.first_phase + phase) * 2 * _PHASE
    while True:
        counter = load_atomic(share.state, COUNTER)
        ahead = counter - mine
        if ahead >= total:
            return -1
        if ahead < 0:  # the phase before is over, and nobody has begun this one
            swap_atomic(share.state, COUNTER, counter, mine)
        elif swap_atomic(share.state, COUNTER, counter, counter + 1):
            return ahead


@compiled  # type: ignore[untyped-decorator]
def finish(share: Any, phase: int, total: int, num_done: int) -> None:
    """Say how many of the phase's tasks this thread did, and wait until all are done."""
    mine = (share.first_phase + phase) * 2 * _PHASE
    if total == 0:
        return
    if num_done > 0 and add_atomic(share.state, DONE, num_done) + num_done == total:
        store_atomic(share.state, DONE, 0)
        store_atomic(share.state, COUNTER, mine + _PHASE)
        return
    spins = 0
    while load_atomic(share.state, COUNTER) - mine < _PHASE:
        relax()
        spins += 1
        if spins >= SPINS:
            let_others_run(share.state)
            spins = 0


@compiled  # type: ignore[untyped-decorator]
def end_step(share: Any, num_phases: int) -> None:
    """Say that all of the step's phases are over; before anything of the next step is written."""
    last = (share.first_phase + num_phases - 1) * 2 * _PHASE + _PHASE
    while not swap_atomic(share.state, COUNTER, load_atomic(share.state, COUNTER), last):
        relax()
