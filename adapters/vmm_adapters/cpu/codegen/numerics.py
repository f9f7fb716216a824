"""Numbers in vectors of 16: exponentials and what is made of them, norms, and inputs quantised for the products."""

from collections.abc import Callable

from llvmlite import ir

from vmm_adapters.cpu.codegen.emitter import F32, I8, I32, Emitter, Value, vector
from vmm_adapters.cpu.formats import BLOCK, PANEL
from vmm_adapters.cpu.plan import Activation

LANES = 16
ROW = vector(F32, LANES)
_LEAST_PEAK = 2.0**-119
"""Of a block that is not taken for zeros: 127 over it, and a 127th of it, are ordinary numbers."""

PLAIN, NORMALIZED, GATED = 0, 1, 2
NUM_SOURCES = GATED + len(Activation)
"""Where inputs come from: as they are; times a factor and a norm's weights; the gate through an activation, times
`up` (`GATED + Activation`)."""


def exponential(emit: Emitter, x: Value) -> Value:
    """e to the x, to 2 units in the last place; x below -87 gives almost 0. (Cephes, expf.c: range and polynomial.)"""
    builder = emit.builder
    low, high = emit.floats(x, -87.3), emit.floats(x, 88.3)
    x = emit.maximum(x, low)
    x = builder.select(builder.fcmp_ordered("<", x, high), x, high)
    scaled = builder.fmul(x, emit.floats(x, 1.44269504088896341))
    whole = emit.nearest(scaled)
    r = emit.fma(whole, emit.floats(x, -0.693359375), x)
    r = emit.fma(whole, emit.floats(x, 2.12194440e-4), r)
    y = emit.floats(x, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = emit.fma(y, r, emit.floats(x, coefficient))
    y = builder.fadd(emit.fma(y, builder.fmul(r, r), r), emit.floats(x, 1.0))
    integers = vector(I32, x.type.count)
    exponent = builder.add(builder.fptosi(whole, integers), emit.constants(I32, x.type.count, 127))
    power = builder.bitcast(builder.shl(exponent, emit.constants(I32, x.type.count, 23)), x.type)
    return builder.fmul(y, power)


def hyperbolic_tangent(emit: Emitter, x: Value) -> Value:
    """1 - 2 / (e^2x + 1)."""
    one = emit.floats(x, 1.0)
    grown = exponential(emit, emit.builder.fadd(x, x))
    return emit.builder.fsub(one, emit.builder.fdiv(emit.floats(x, 2.0), emit.builder.fadd(grown, one)))


def _error_function(emit: Emitter, x: Value) -> Value:
    """erf to 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    builder, one = emit.builder, emit.floats(x, 1.0)
    size = emit.call(f"llvm.fabs.v{x.type.count}f32", x.type, x)
    t = builder.fdiv(one, emit.fma(size, emit.floats(x, 0.3275911), one))
    y = emit.floats(x, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y = emit.fma(y, t, emit.floats(x, coefficient))
    decay = exponential(emit, builder.fneg(builder.fmul(x, x)))
    y = builder.fsub(one, builder.fmul(builder.fmul(y, t), decay))
    return emit.call(f"llvm.copysign.v{x.type.count}f32", x.type, y, x)


def _activate(emit: Emitter, activation: Activation, x: Value) -> Value:
    builder, one, half = emit.builder, emit.floats(x, 1.0), emit.floats(x, 0.5)
    if activation is Activation.SILU:
        return builder.fdiv(x, builder.fadd(one, exponential(emit, builder.fneg(x))))
    if activation is Activation.GELU:
        share = _error_function(emit, builder.fmul(x, emit.floats(x, 0.70710678)))
    else:
        cubed = builder.fmul(builder.fmul(x, x), builder.fmul(x, emit.floats(x, 0.044715)))
        inner = builder.fmul(builder.fadd(x, cubed), emit.floats(x, 0.79788456))
        share = hyperbolic_tangent(emit, inner)
    return builder.fmul(builder.fmul(half, x), builder.fadd(one, share))


def _source(emit: Emitter, source: int, values: Value, second: Value, factor: Value) -> Callable[[Value], Value]:
    """What gives the 16 numbers that lie at an offset of so many bytes."""

    def read(offset: Value) -> Value:
        x = emit.load(emit.builder.add(values, offset), ROW, 4)
        if source == PLAIN:
            return x
        other = emit.load(emit.builder.add(second, offset), ROW, 4)
        if source == NORMALIZED:
            return emit.builder.fmul(emit.builder.fmul(x, emit.splat(factor, LANES)), other)
        return emit.builder.fmul(_activate(emit, Activation(source - GATED), x), other)

    return read


def emit_quantize(emit: Emitter, source: int, words: list[Value], factor: Value) -> None:
    """Blocks `first` to `first + blocks` of one input as `panels` wants them: place 0 to 15 of a tile.

    A block's greatest size becomes 127; a block of zeros, or of what is as good as that, has scale 0. `words`: the
    addresses of `values` and `second`, first, blocks, place, and the addresses of the tile, its scales and sums
    (float32, of what was quantised).
    """
    values, second, first, blocks, place, tile, scales, sums = words
    builder, read = emit.builder, _source(emit, source, values, second, factor)

    def body(index: Value, _: list[Value]) -> list[Value]:
        block = builder.add(first, index)
        parts = [read(emit.at(emit.word(64 * half), block, 4 * BLOCK)) for half in (0, 1)]
        sizes = [emit.call(f"llvm.fabs.v{LANES}f32", ROW, part) for part in parts]
        peak = emit.reduce(emit.maximum, emit.maximum(*sizes))
        is_zero = builder.fcmp_ordered("<", peak, ir.Constant(F32, _LEAST_PEAK))
        peak = builder.select(is_zero, ir.Constant(F32, 0.0), peak)
        inverse = builder.fdiv(ir.Constant(F32, 127.0), peak)
        inverse = emit.splat(builder.select(is_zero, ir.Constant(F32, 0.0), inverse), LANES)
        at = builder.add(builder.mul(block, emit.word(PANEL)), place)
        total = emit.constants(I32, LANES, 0)
        for half, part in enumerate(parts):
            rounded = emit.nearest(builder.fmul(part, inverse))
            whole = builder.fptosi(rounded, vector(I32, LANES))
            total = builder.add(total, whole)
            emit.store(builder.trunc(whole, vector(I8, LANES)), emit.at(emit.at(tile, at, BLOCK), half, LANES), 1)
        scale = builder.fmul(peak, ir.Constant(F32, 1 / 127))
        emit.store(scale, emit.at(scales, at, 4))
        whole = builder.sitofp(emit.reduce(builder.add, total), F32)
        emit.store(builder.fmul(scale, whole), emit.at(sums, at, 4))
        return []

    emit.loop(blocks, [], body)


def emit_copy(emit: Emitter, source: int, words: list[Value], factor: Value) -> None:
    """The same numbers as float32.

    `words`: the addresses of `values` and `second`, first, blocks, the target's address.
    """
    values, second, first, blocks, target = words
    builder, read = emit.builder, _source(emit, source, values, second, factor)

    def body(index: Value, _: list[Value]) -> list[Value]:
        offset = emit.at(emit.at(emit.word(0), first, 4 * BLOCK), index, 4 * LANES)
        emit.store(read(offset), builder.add(target, offset))
        return []

    emit.loop(builder.mul(blocks, emit.word(BLOCK // LANES)), [], body)


def emit_sum_of_squares(emit: Emitter, words: list[Value]) -> None:
    """Of `count` · 16 numbers. `words`: their address, count, where the sum goes."""
    values, count, target = words

    def body(index: Value, totals: list[Value]) -> list[Value]:
        x = emit.load(emit.at(values, index, 4 * LANES), ROW, 4)
        return [emit.fma(x, x, totals[0])]

    (total,) = emit.loop(count, [emit.constants(F32, LANES, 0.0)], body)
    emit.store(emit.reduce(emit.builder.fadd, total), target)


def emit_cap(emit: Emitter, words: list[Value], cap: Value) -> None:
    """Each of `count` · 16 numbers x becomes cap · tanh(x / cap). `words`: their address, count."""
    values, count = words
    builder = emit.builder
    share = emit.splat(builder.fdiv(ir.Constant(F32, 1.0), cap), LANES)

    def body(index: Value, _: list[Value]) -> list[Value]:
        address = emit.at(values, index, 4 * LANES)
        capped = hyperbolic_tangent(emit, builder.fmul(emit.load(address, ROW, 4), share))
        emit.store(builder.fmul(capped, emit.splat(cap, LANES)), address)
        return []

    emit.loop(count, [], body)
