"""Products of packed weights and quantised inputs: 16 rows of the weights at a time, a panel, by 1 to 16 inputs.

Levels are unsigned; what they stand for is `factor · (level - middle) + bias` in each block of 32 columns. With the
inputs quantised in the same blocks, x = d · q, a block adds

    factor · d · Σ level · q + (bias - middle · factor) · d · Σ q

to a sum: integers, exact, up to the last step. Every input meets the same operations in the same
order however many there are, so a row of the result never depends on its neighbours.

How a panel lies in memory: see `formats`. A tile of inputs: int8 `[blocks, 16 inputs, 32 columns]`, with scales d and
sums d · Σ q, float32 `[blocks, 16 inputs]`.
"""

from typing import NamedTuple

from vmm_adapters.cpu.codegen.emitter import F32, I8, I32, Emitter, Value, vector
from vmm_adapters.cpu.formats import BLOCK, PANEL, Form
from vmm_adapters.cpu.isa import InstructionSet

MAX_INPUTS = 8
"""Inputs that are multiplied at a time."""
_NUM_GROUPS = 8
_PREFETCH = 2048
"""Bytes ahead. Measured on a model of 1.07 B: one input 12 % faster, four 20 %; half or twice as far gave less."""
_MAX_COPIES = 2
"""Of the code for a part of a panel; more would be slow to compile."""


class _Places(NamedTuple):
    """Where everything lies, and how many blocks a row has. Strides are bytes."""

    levels: Value
    factors: Value
    biases: Value
    tile: Value
    scales: Value
    sums: Value
    blocks: Value
    out: Value
    out_stride: Value
    added: Value
    adds: Value


def emit_panel(emit: Emitter, form: Form, num_inputs: int, words: list[Value], scale: Value) -> None:
    """`out[i, 0:16] = adds · out + scale · (products + added)`, float32, for `num_inputs` inputs i, 1 to 8.

    `words`: addresses of the panel's levels, factors and biases, of the inputs, their scales and sums; the number of
    blocks; the address and stride of `out`, the address of `added` `[16]`, and whether to add.

    Parts of the panel that fill a register, one after the other; of the inputs, as many as there are registers for.
    """
    places = _Places(*words)
    tile_inputs = 8 if emit.isa in (InstructionSet.AVX512_VNNI, InstructionSet.ARM_DOT) else 4

    def part(index: Value, _: list[Value], *, is_first: bool = False) -> list[Value]:
        row = emit.at(emit.word(0), index, emit.isa.lanes)
        for first in range(0, num_inputs, tile_inputs):
            inputs = range(first, min(first + tile_inputs, num_inputs))
            _emit_part(emit, form, row, inputs, places, scale, prefetches=is_first and first == 0)
        return []

    num_parts = PANEL // emit.isa.lanes
    if num_parts > _MAX_COPIES:
        emit.loop(emit.word(num_parts), [], part)
    else:
        for number in range(num_parts):
            part(emit.word(number), [], is_first=number == 0)


def _emit_part(
    emit: Emitter, form: Form, row: Value, inputs: range, places: _Places, scale: Value, *, prefetches: bool
) -> None:
    """The rows of a register, from `row` on."""
    lanes = emit.isa.lanes

    def body(block: Value, totals: list[Value]) -> list[Value]:
        block_bytes = BLOCK * PANEL * form.bits // 8
        levels_at = emit.at(places.levels, block, block_bytes)
        if prefetches:
            emit.prefetch(emit.at(levels_at, 1, _PREFETCH), block_bytes)
        levels = load_levels(emit, form, emit.at(levels_at, row, 4))
        parts = []
        for half in range(form.num_factors):
            place = emit.at(emit.word(half), block, form.num_factors)
            factor = load_factor(emit, form, places.factors, place, row)
            parts.append((factor, load_bias(emit, form, places.biases, place, row, factor)))
        return [
            _add_block(emit, form, places, block, i, levels, parts, total)
            for i, total in zip(inputs, totals, strict=True)
        ]

    totals = emit.loop(places.blocks, [emit.constants(F32, lanes, 0.0) for _ in inputs], body)
    out = emit.at(emit.at(places.out, inputs.start, places.out_stride), row, 4)
    emit.finish_rows(totals, out, places.out_stride, emit.at(places.added, row, 4), places.adds, scale)


def _add_block(
    emit: Emitter,
    form: Form,
    places: _Places,
    block: Value,
    i: int,
    levels: list[Value],
    parts: list[tuple[Value, Value]],
    total: Value,
) -> Value:
    """What one block adds to one input's sums."""
    builder, lanes = emit.builder, emit.isa.lanes
    place = emit.at(emit.word(i), block, PANEL)
    inputs_at = emit.at(places.tile, place, BLOCK)
    step = emit.splat(emit.load(emit.at(places.scales, place, 4), F32, 4), lanes)
    num_groups = _NUM_GROUPS // len(parts)
    nothing = emit.constants(I32, lanes, 0)
    for half, (factor, bias) in enumerate(parts):
        half_at = emit.at(inputs_at, half, 4 * num_groups)
        if form.has_halves:
            one = [emit.constants(I8, emit.isa.vector_bytes, 1)] * num_groups
            inputs_sum = builder.sitofp(emit.dot(one, half_at, nothing, are_nibbles=True), vector(F32, lanes))
            inputs_sum = builder.fmul(inputs_sum, step)
        else:
            inputs_sum = emit.splat(emit.load(emit.at(places.sums, place, 4), F32, 4), lanes)
        group = slice(half * num_groups, (half + 1) * num_groups)
        whole = emit.dot(levels[group], half_at, nothing, are_nibbles=form.bits == 4)
        total = emit.fma(bias, inputs_sum, total)
        total = emit.fma(builder.sitofp(whole, vector(F32, lanes)), builder.fmul(factor, step), total)
    return total


def load_factor(emit: Emitter, form: Form, base: Value, place: Value, row: Value) -> Value:
    """A block's factors, as float32, for as many rows as a register has lanes."""
    lanes = emit.isa.lanes
    address = emit.at(emit.at(base, place, PANEL * form.factor_bytes), row, form.factor_bytes)
    if form.has_wide_factors:
        return emit.load(address, vector(F32, lanes), 4)
    return emit.load_halves(address, lanes)


def load_bias(emit: Emitter, form: Form, base: Value, place: Value, row: Value, factor: Value) -> Value:
    """A block's biases, less the middle by its factors."""
    if form.has_biases:
        return load_factor(emit, form, base, place, row)
    return emit.builder.fmul(factor, emit.constants(F32, emit.isa.lanes, -(1 << (form.bits - 1))))


def load_levels(emit: Emitter, form: Form, address: Value) -> list[Value]:
    """The 8 groups of a block, a byte a level, for as many rows as a register holds."""
    kind = vector(I8, emit.isa.vector_bytes)
    found = []
    for chunk in range(_NUM_GROUPS * form.bits // 8):
        packed = emit.load(emit.at(address, chunk, 4 * PANEL), kind)
        found += [packed] if form.bits == 8 else [emit.low_nibbles(packed), emit.high_nibbles(packed)]
    return found
