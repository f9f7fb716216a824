"""Resampling of pictures: a pass along the rows, and one along the columns that ends in a model's numbers.

Every number of a pass is a weighted sum of bytes, in 32 bits: weights have 22 binary places, and each sum is rounded
to a byte (Pillow's Resample.c, `ImagingResampleHorizontal_8bpc` and `ImagingResampleVertical_8bpc`). Integers are
exact in any order, so what comes out is Pillow's to the last bit.
"""

from collections.abc import Callable

from llvmlite import ir

from vmm_adapters.cpu.codegen.emitter import F32, I8, I32, I64, Emitter, Value, vector
from vmm_adapters.cpu.codegen.target import emit_object
from vmm_adapters.cpu.formats import COLUMNS, PIXEL_BYTES, PIXELS, ROWS, WEIGHT_BITS
from vmm_adapters.cpu.isa import Target

_LANES = PIXELS * PIXEL_BYTES
_BYTES, _SUMS = vector(I8, _LANES), vector(I32, _LANES)


def compile_pictures(target: Target) -> bytes:
    """Both passes as an object file; each takes 64-bit words. LLVM has to be initialised for such targets."""
    module = ir.Module("pictures")
    module.triple = target.triple
    passes: dict[str, tuple[int, Callable[[Emitter, list[Value]], None]]] = {
        ROWS: (9, _emit_rows),
        COLUMNS: (13, _emit_columns),
    }
    for name, (num_words, emit) in passes.items():
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * num_words), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        isa = target.instruction_sets[0]
        emit(Emitter(builder, isa, has_float_instructions=target.has_float_instructions), list(function.args))
        builder.ret_void()
    return emit_object(str(module), target, {name: name for name in passes})


def _emit_rows(emit: Emitter, words: list[Value]) -> None:
    """uint8 `[rows, width, 4]` → `[rows, columns, 4]`.

    `words`: the pixels, bytes a row of them, the number of rows, the first pixels (int32 `[columns]`) and weights
    (int32 `[columns, taps]`) of what becomes one, taps in fours, columns, the pixels that come out, bytes a row of
    them. Four rows go together, for their weights are the same; the last one may be computed several times.
    """
    pixels, pixel_bytes, num_rows, firsts, weights, num_fours, num_columns, out, out_bytes = words
    builder = emit.builder
    per_pixel = ir.Constant(vector(I32, _LANES), [lane // PIXEL_BYTES for lane in range(_LANES)])
    num_blocks = builder.lshr(builder.add(num_rows, emit.word(PIXELS - 1)), emit.word(2))
    last = builder.sub(num_rows, emit.word(1))

    def rows(block: Value, _: list[Value]) -> list[Value]:
        each = [builder.add(builder.mul(block, emit.word(PIXELS)), emit.word(n)) for n in range(PIXELS)]
        each = [builder.select(builder.icmp_signed("<", y, last), y, last) for y in each]
        lines, out_lines = [emit.at(pixels, y, pixel_bytes) for y in each], [emit.at(out, y, out_bytes) for y in each]

        def column(x: Value, _: list[Value]) -> list[Value]:
            first = builder.sext(emit.load(emit.at(firsts, x, 4), I32, 4), I64)
            mine = emit.at(weights, builder.mul(x, num_fours), 4 * PIXELS)

            def four(n: Value, sums: list[Value]) -> list[Value]:
                weight = emit.load(emit.at(mine, n, 4 * PIXELS), vector(I32, PIXELS), 4)
                spread = builder.shuffle_vector(weight, weight, per_pixel)
                at = builder.add(builder.mul(first, emit.word(PIXEL_BYTES)), builder.mul(n, emit.word(_LANES)))
                products = [builder.mul(_wide(emit, builder.add(line, at)), spread) for line in lines]
                return [builder.add(total, product) for total, product in zip(sums, products, strict=True)]

            sums = emit.loop(num_fours, [emit.constants(I32, _LANES, 0)] * PIXELS, four)
            total = builder.add(_sums_of_pixels(emit, sums), _half(emit, _LANES))
            made = builder.bitcast(builder.trunc(_rounded(emit, total), _BYTES), vector(I32, PIXELS))
            for row, line in enumerate(out_lines):
                pixel = builder.extract_element(made, ir.Constant(I32, row))
                emit.store(pixel, emit.at(line, x, PIXEL_BYTES))
            return []

        emit.loop(num_columns, [], column)
        return []

    emit.loop(num_blocks, [], rows)


def _emit_columns(emit: Emitter, words: list[Value]) -> None:
    """uint8 `[height, columns, 4]` → `byte * factor - shift`, float32 `[rows, columns]` for each of three colours.

    `words`: the pixels, bytes a row of them, the first rows (int32 `[rows]`) and weights (int32 `[rows, taps]`) of
    what becomes one, taps, rows and columns that come out, factors and shifts (float32 `[3]`), the three planes, bytes
    a row of them. The last four columns may be computed twice.
    """
    pixels, pixel_bytes, firsts, weights, num_taps, num_rows, num_columns, factors, shifts, *planes, out_bytes = words
    builder = emit.builder
    scales = [
        [emit.splat(emit.load(emit.at(each, c, 4), F32, 4), PIXELS) for c in range(3)] for each in (factors, shifts)
    ]
    num_blocks = builder.lshr(builder.add(num_columns, emit.word(PIXELS - 1)), emit.word(2))
    last = builder.sub(num_columns, emit.word(PIXELS))

    def row(y: Value, _: list[Value]) -> list[Value]:
        line = emit.at(pixels, builder.sext(emit.load(emit.at(firsts, y, 4), I32, 4), I64), pixel_bytes)
        mine = emit.at(weights, builder.mul(y, num_taps), 4)

        def block(index: Value, _: list[Value]) -> list[Value]:
            x = builder.mul(index, emit.word(PIXELS))
            x = builder.select(builder.icmp_signed("<", x, last), x, last)
            at = emit.at(line, x, PIXEL_BYTES)

            def tap(t: Value, sums: list[Value]) -> list[Value]:
                weight = emit.splat(emit.load(emit.at(mine, t, 4), I32, 4), _LANES)
                return [builder.add(sums[0], builder.mul(_wide(emit, emit.at(at, t, pixel_bytes)), weight))]

            (sums,) = emit.loop(num_taps, [_half(emit, _LANES)], tap)
            levels = builder.sitofp(_rounded(emit, sums), vector(F32, _LANES))
            for colour, (plane, factor, shift) in enumerate(zip(planes, *scales, strict=True)):
                lanes = ir.Constant(vector(I32, PIXELS), [PIXEL_BYTES * pixel + colour for pixel in range(PIXELS)])
                # rounded twice, as numpy does: not one fused operation
                numbers = builder.fsub(builder.fmul(builder.shuffle_vector(levels, levels, lanes), factor), shift)
                emit.store(numbers, emit.at(emit.at(plane, y, out_bytes), x, 4))
            return []

        emit.loop(num_blocks, [], block)
        return []

    emit.loop(num_rows, [], row)


def _wide(emit: Emitter, address: Value) -> Value:
    """Four pixels, every byte in 32 bits."""
    return emit.builder.zext(emit.load(address, _BYTES), _SUMS)


def _sums_of_pixels(emit: Emitter, sums: list[Value]) -> Value:
    """Of four times four pixels' lanes → those of four, each the sum of four."""
    first, second, third, fourth = sums
    return _halved(emit, _halved(emit, first, second, 2), _halved(emit, third, fourth, 2), 1)


def _halved(emit: Emitter, one: Value, other: Value, num_pixels: int) -> Value:
    """Of each two groups of `num_pixels` the sum, first those of `one`."""
    builder, pixels = emit.builder, range(2 * PIXELS)
    masks = [
        [pixel * PIXEL_BYTES + c for pixel in pixels if pixel // num_pixels % 2 == odd for c in range(PIXEL_BYTES)]
        for odd in (0, 1)
    ]
    return builder.add(*(builder.shuffle_vector(one, other, ir.Constant(vector(I32, _LANES), mask)) for mask in masks))


def _half(emit: Emitter, count: int) -> Value:
    """What rounding adds to each sum."""
    return emit.constants(I32, count, 1 << (WEIGHT_BITS - 1))


def _rounded(emit: Emitter, sums: Value) -> Value:
    """Sums with 22 binary places → whole numbers, 0 to 255."""
    builder, count = emit.builder, sums.type.count
    least, most = (emit.constants(I32, count, number) for number in (0, 255))
    whole = builder.ashr(sums, emit.constants(I32, count, WEIGHT_BITS))
    whole = builder.select(builder.icmp_signed("<", whole, least), least, whole)
    return builder.select(builder.icmp_signed(">", whole, most), most, whole)
