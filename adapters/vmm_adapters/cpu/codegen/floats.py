"""Products with a matrix of floats, widened as they are read, for weights that are not in blocks.

    out[r, 0:32] = Σ a[r, l] · b[l, 0:32]

for 1 to 8 rows at a time, which share what is read of b.
"""

from vmm_adapters.cpu.codegen.emitter import F32, I8, I16, I32, Emitter, Value, vector
from vmm_adapters.cpu.formats import WIDTH, Element

LANES = 16
_PARTS = range(WIDTH // LANES)


def rows_at_a_time(emit: Emitter, num_rows: int) -> list[range]:
    """As many as there are registers for, with two vectors of sums each."""
    size = 8 if emit.isa.vector_bytes == 64 else 2
    return [range(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def emit_floats(emit: Emitter, element: Element, num_rows: int, words: list[Value]) -> None:
    """See above, for 1 to 8 rows. `words`: address and stride of a, of b, the length, address and stride of `out`."""
    a, a_stride, b, b_stride, length, out, out_stride = words

    for rows in rows_at_a_time(emit, num_rows):

        def body(index: Value, totals: list[Value], rows: range = rows) -> list[Value]:
            line = emit.at(b, index, b_stride)
            wide = [read_vector(emit, element, emit.at(line, part, LANES * element.num_bytes)) for part in _PARTS]
            found = []
            for place, row in enumerate(rows):
                factor = emit.splat(emit.load(emit.at(emit.at(a, row, a_stride), index, 4), F32, 4), LANES)
                found += [emit.fma(factor, wide[part], totals[place * len(_PARTS) + part]) for part in _PARTS]
            return found

        nothing = [emit.constants(F32, LANES, 0.0) for _ in range(len(_PARTS) * len(rows))]
        totals = emit.loop(length, nothing, body)
        for place, row in enumerate(rows):
            for part in _PARTS:
                address = emit.at(emit.at(out, row, out_stride), part, 4 * LANES)
                emit.store(totals[place * len(_PARTS) + part], address)


def read_vector(emit: Emitter, element: Element, address: Value) -> Value:
    """16 of them, as float32."""
    builder, floats = emit.builder, vector(F32, LANES)
    if element is Element.F32:
        return emit.load(address, floats, 4)
    if element is Element.F16:
        return emit.load_halves(address, LANES)
    if element is Element.U8:
        return builder.uitofp(builder.zext(emit.load(address, vector(I8, LANES)), vector(I32, LANES)), floats)
    upper = builder.zext(emit.load(address, vector(I16, LANES), 2), vector(I32, LANES))
    return builder.bitcast(builder.shl(upper, emit.constants(I32, LANES, 16)), floats)
