"""Products with a matrix of floats or of bytes, widened as they are read: attention's, and those of weights that are no blocks.

    out[r, 0:32] = out[r, 0:32] · correction[r] + Σ a[r, l] · b[l, 0:32]

for 1 to 8 rows at a time, which share what is read of b.
"""

from enum import IntEnum
from vmm_adapters.cpu.emitter import F16, F32, I8, I16, I32, Emitter, Value, vector

WIDTH = 32
LANES = 16


class Element(IntEnum):
    """What `b` consists of."""

    F32 = 0
    F16 = 1
    BF16 = 2
    U8 = 3

    @property
    def num_bytes(self) -> int:
        """Of one."""
        return (4, 2, 2, 1)[self]


def emit_floats(emit: Emitter, element: Element, num_rows: int, words: list[Value]) -> None:
    """See above. `words`: address and stride of a, of b, the length, address and stride of `out`; all in bytes.

    And the address of a correction for each row, 0 where `out` is new.
    """
    a, a_stride, b, b_stride, length, out, out_stride, correction = words
    builder, parts = emit.builder, range(WIDTH // LANES)
    is_new = builder.icmp_unsigned("==", correction, emit.word(0))
    nothing = emit.constants(F32, LANES, 0.0)
    # a place to read where there are no corrections: what is read there is not used
    correction = builder.select(is_new, out, correction)

    def address(row: int, part: int) -> Value:
        return emit.at(emit.at(out, row, out_stride), part, 4 * LANES)

    sums = []
    for row in range(num_rows):
        for part in parts:
            factor = emit.splat(emit.load(emit.at(correction, row, 4), F32, 4), LANES)
            kept = builder.fmul(emit.load(address(row, part), vector(F32, LANES), 4), factor)
            sums.append(builder.select(is_new, nothing, kept))

    def body(index: Value, totals: list[Value]) -> list[Value]:
        line = emit.at(b, index, b_stride)
        wide = [_read(emit, element, emit.at(line, part, LANES * element.num_bytes)) for part in parts]
        found = []
        for row in range(num_rows):
            factor = emit.splat(emit.load(emit.at(emit.at(a, row, a_stride), index, 4), F32, 4), LANES)
            found += [emit.fma(factor, wide[part], totals[row * len(parts) + part]) for part in parts]
        return found

    totals = emit.loop(length, sums, body)
    for row in range(num_rows):
        for part in parts:
            emit.store(totals[row * len(parts) + part], address(row, part))


def _read(emit: Emitter, element: Element, address: Value) -> Value:
    builder, floats = emit.builder, vector(F32, LANES)
    if element is Element.F32:
        return emit.load(address, floats, 4)
    if element is Element.F16:
        return emit.widen(emit.load(address, vector(F16, LANES), 2))
    if element is Element.U8:
        return builder.uitofp(builder.zext(emit.load(address, vector(I8, LANES)), vector(I32, LANES)), floats)
    upper = builder.zext(emit.load(address, vector(I16, LANES), 2), vector(I32, LANES))
    return builder.bitcast(builder.shl(upper, emit.constants(I32, LANES, 16)), floats)
