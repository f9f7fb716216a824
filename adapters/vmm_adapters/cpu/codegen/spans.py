"""Attention of a tile of rows over some blocks of a sequence: scores, online softmax and weighted sums in one pass.

A row is a query of one head. Rows of a tile share what is read. How blocks lie in memory: see `formats`.

Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
"""

from typing import NamedTuple

from llvmlite import ir

from vmm_adapters.cpu.codegen.emitter import F32, I32, I64, Emitter, Value, vector
from vmm_adapters.cpu.codegen.floats import LANES, read_vector, rows_at_a_time
from vmm_adapters.cpu.codegen.numerics import ROW, exponential, hyperbolic_tangent
from vmm_adapters.cpu.formats import BLOCK_SIZE, TILE, WIDTH, Element

NOTHING = -1e30
"""The score of a position that a row does not see, and the peak before the first."""
_HALVES = range(WIDTH // LANES)
_LINE = 4 * WIDTH


class Tile(NamedTuple):
    """Where a tile's numbers lie, float32 but for the limits; `[8]` each, those with more `[8, padded head]`."""

    queries: Value
    sums: Value
    """What comes out: sums of values by weight, not divided yet; the greatest scores; the sums of the weights."""
    peaks: Value
    totals: Value
    limits: Value
    """int32 `[2, 8]`: the last position that each row sees, and the one before the first."""
    scratch: Value
    """`[8, 32]` and `[3, 8]`."""
    padded: Value
    """Head size in whole 32s."""
    head: Value


class Blocks(NamedTuple):
    """The blocks that are read, those of `count` entries of a table (int32) from `table` on."""

    keys: Value
    """Of the head, in block 0."""
    values: Value
    key_bytes: Value
    """From one block to the next one."""
    value_bytes: Value
    key_factors: Value
    """Of uint8."""
    value_factors: Value
    table: Value
    position: Value
    """Of the first one's first."""
    count: Value
    num_positions: Value
    """That any row sees, from `position` on."""


NUM_WORDS = len(Tile._fields) + len(Blocks._fields)


def emit_span(
    emit: Emitter, element: Element, num_rows: int, words: list[Value], softcap: Value, *, is_capped: bool
) -> None:
    """Sum up the blocks for 1 to 8 rows. `words`: a `Tile`, `Blocks`. If `is_capped`, scores stay below ± `softcap`."""
    tile, blocks = Tile(*words[: len(Tile._fields)]), Blocks(*words[len(Tile._fields) :])
    _begin(emit, num_rows, tile, element)
    builder = emit.builder

    def block(index: Value, _: list[Value]) -> list[Value]:
        number = builder.sext(emit.load(emit.at(blocks.table, index, 4), I32, 4), I64)
        start = emit.at(blocks.position, index, BLOCK_SIZE)
        for rows in rows_at_a_time(emit, num_rows):
            scores = _scores(emit, element, rows, tile, blocks, number)
            if is_capped:
                scores = [_capped(emit, score, softcap) for score in scores]
            _weigh(emit, element, rows, tile, blocks, number, _hidden(emit, rows, tile, start, scores))
        before = emit.load(_corrections(emit, tile), vector(F32, TILE), 4)
        now = emit.load(tile.peaks, vector(F32, TILE), 4)
        emit.store(exponential(emit, builder.fsub(before, now)), _corrections(emit, tile))
        _add_totals(emit, tile)
        left = builder.sub(blocks.num_positions, builder.mul(index, emit.word(BLOCK_SIZE)))
        length = builder.select(builder.icmp_signed("<", left, emit.word(BLOCK_SIZE)), left, emit.word(BLOCK_SIZE))
        for rows in rows_at_a_time(emit, num_rows):
            _add_values(emit, element, rows, tile, blocks, number, length)
        return []

    emit.loop(blocks.count, [], block)


def _corrections(emit: Emitter, tile: Tile) -> Value:
    """`[8]`: the peaks before, then what earlier sums are multiplied by."""
    return emit.at(tile.scratch, TILE, _LINE)


def _weight_sums(emit: Emitter, tile: Tile) -> Value:
    """`[8]`: sums of a block's weights."""
    return emit.at(_corrections(emit, tile), TILE, 4)


def _low_sums(emit: Emitter, tile: Tile) -> Value:
    """`[8]`, of uint8: sums of the queries, then those of weights by lowest numbers."""
    return emit.at(_corrections(emit, tile), 2 * TILE, 4)


def _begin(emit: Emitter, num_rows: int, tile: Tile, element: Element) -> None:
    emit.store(emit.constants(F32, TILE, NOTHING), tile.peaks)
    emit.store(emit.constants(F32, TILE, 0.0), tile.totals)
    emit.store(emit.constants(F32, TILE, 0.0), _weight_sums(emit, tile))

    def clear(index: Value, _: list[Value]) -> list[Value]:
        emit.store(emit.constants(F32, LANES, 0.0), emit.at(tile.sums, index, 4 * LANES))
        return []

    count = emit.builder.lshr(emit.builder.mul(tile.padded, emit.word(num_rows)), emit.word(4))
    emit.loop(count, [], clear)


def _scores(emit: Emitter, element: Element, rows: range, tile: Tile, blocks: Blocks, number: Value) -> list[Value]:
    """Queries by keys: for each row two vectors of 16 positions."""
    keys = emit.at(blocks.keys, number, blocks.key_bytes)

    def body(d: Value, sums: list[Value]) -> list[Value]:
        line = emit.at(keys, d, WIDTH * element.num_bytes)
        wide = [read_vector(emit, element, emit.at(line, half, LANES * element.num_bytes)) for half in _HALVES]
        found = []
        for place, row in enumerate(rows):
            query = emit.splat(emit.load(emit.at(_row(emit, tile.queries, tile, row), d, 4), F32, 4), LANES)
            found += [emit.fma(query, wide[half], sums[2 * place + half]) for half in _HALVES]
        if element is Element.U8:
            found += [
                emit.builder.fadd(total, emit.load(emit.at(_row(emit, tile.queries, tile, row), d, 4), F32, 4))
                for total, row in zip(sums[2 * len(rows) :], rows, strict=True)
            ]
        return found

    nothing = [emit.constants(F32, LANES, 0.0) for _ in range(2 * len(rows))]
    if element is not Element.U8:
        return emit.loop(tile.head, nothing, body)
    sums = emit.loop(tile.head, [*nothing, *(ir.Constant(F32, 0.0) for _ in rows)], body)
    factors = emit.at(blocks.key_factors, number, blocks.key_bytes)
    scales, lows = _factors(emit, factors)
    found = []
    for place in range(len(rows)):
        queries = emit.splat(sums[2 * len(rows) + place], LANES)
        for half in _HALVES:
            scaled = emit.builder.fmul(sums[2 * place + half], scales[half])
            found.append(emit.fma(queries, lows[half], scaled))
    return found


def _row(emit: Emitter, base: Value, tile: Tile, row: int) -> Value:
    return emit.at(base, emit.builder.mul(tile.padded, emit.word(row)), 4)


def _factors(emit: Emitter, address: Value) -> tuple[list[Value], list[Value]]:
    """Scales and lowest numbers of 32 positions."""
    vectors = [emit.load(emit.at(address, index, 4 * LANES), ROW, 4) for index in range(2 * len(_HALVES))]
    return vectors[: len(_HALVES)], vectors[len(_HALVES) :]


def _capped(emit: Emitter, scores: Value, softcap: Value) -> Value:
    cap = emit.splat(softcap, LANES)
    return emit.builder.fmul(hyperbolic_tangent(emit, emit.builder.fdiv(scores, cap)), cap)


def _hidden(emit: Emitter, rows: range, tile: Tile, start: Value, scores: list[Value]) -> list[Value]:
    """Take out what comes after a row's last position, or before its first."""
    builder, lanes = emit.builder, vector(I32, LANES)
    found = []
    base = emit.splat(builder.trunc(start, I32), LANES)
    for place, row in enumerate(rows):
        last = emit.splat(emit.load(emit.at(tile.limits, row, 4), I32, 4), LANES)
        before = emit.splat(emit.load(emit.at(tile.limits, TILE + row, 4), I32, 4), LANES)
        for half in _HALVES:
            places = builder.add(base, ir.Constant(lanes, [half * LANES + n for n in range(LANES)]))
            is_seen = builder.and_(builder.icmp_signed("<=", places, last), builder.icmp_signed(">", places, before))
            nothing = emit.constants(F32, LANES, NOTHING)
            found.append(builder.select(is_seen, scores[len(_HALVES) * place + half], nothing))
    return found


def _weigh(
    emit: Emitter, element: Element, rows: range, tile: Tile, blocks: Blocks, number: Value, scores: list[Value]
) -> None:
    """Scores become weights, e to the score less the greatest so far."""
    builder = emit.builder
    lows: list[Value] = []
    if element is Element.U8:
        scales, lows = _factors(emit, emit.at(blocks.value_factors, number, blocks.value_bytes))
    for place, row in enumerate(rows):
        mine = scores[len(_HALVES) * place :][: len(_HALVES)]
        before = emit.load(emit.at(tile.peaks, row, 4), F32, 4)
        peak = emit.reduce(emit.maximum, emit.maximum(*mine))
        peak = builder.select(builder.fcmp_ordered(">", peak, before), peak, before)
        weights = [exponential(emit, builder.fsub(each, emit.splat(peak, LANES))) for each in mine]
        emit.store(before, emit.at(_corrections(emit, tile), row, 4))
        emit.store(peak, emit.at(tile.peaks, row, 4))
        emit.store(emit.reduce(builder.fadd, builder.fadd(*weights)), emit.at(_weight_sums(emit, tile), row, 4))
        if element is Element.U8:
            parts = [
                _where_seen(emit, score, builder.fmul(weight, low))
                for score, weight, low in zip(mine, weights, lows, strict=True)
            ]
            emit.store(emit.reduce(builder.fadd, builder.fadd(*parts)), emit.at(_low_sums(emit, tile), row, 4))
            weights = [builder.fmul(weight, scale) for weight, scale in zip(weights, scales, strict=True)]
        for half, weight in enumerate(weights):
            emit.store(weight, emit.at(emit.at(tile.scratch, row, _LINE), half, 4 * LANES))


def _where_seen(emit: Emitter, scores: Value, products: Value) -> Value:
    """0 for other positions: what was never written there may be no number, and stays none times a weight of 0."""
    is_seen = emit.builder.fcmp_ordered(">", scores, emit.floats(scores, NOTHING))
    return emit.builder.select(is_seen, products, emit.floats(scores, 0.0))


def _add_totals(emit: Emitter, tile: Tile) -> None:
    kind = vector(F32, TILE)
    totals = emit.load(tile.totals, kind, 4)
    corrections = emit.load(_corrections(emit, tile), kind, 4)
    emit.store(emit.fma(totals, corrections, emit.load(_weight_sums(emit, tile), kind, 4)), tile.totals)


def _add_values(
    emit: Emitter, element: Element, rows: range, tile: Tile, blocks: Blocks, number: Value, length: Value
) -> None:
    """Sums so far, corrected, and values by weight; 32 numbers of the head at a time."""
    builder = emit.builder
    values = emit.at(blocks.values, number, blocks.value_bytes)
    line_bytes = builder.mul(tile.padded, emit.word(element.num_bytes))

    def part(index: Value, _: list[Value]) -> list[Value]:
        places = [emit.at(_row(emit, tile.sums, tile, row), index, _LINE) for row in rows]
        sums = []
        for place, row in zip(places, rows, strict=True):
            factor = emit.splat(emit.load(emit.at(_corrections(emit, tile), row, 4), F32, 4), LANES)
            for half in _HALVES:
                total = builder.fmul(emit.load(emit.at(place, half, 4 * LANES), ROW, 4), factor)
                if element is Element.U8:
                    low = emit.load(emit.at(_low_sums(emit, tile), row, 4), F32, 4)
                    total = builder.fadd(total, emit.splat(low, LANES))
                sums.append(total)
        column = emit.at(values, index, WIDTH * element.num_bytes)

        def position(j: Value, totals: list[Value]) -> list[Value]:
            line = emit.at(column, j, line_bytes)
            wide = [read_vector(emit, element, emit.at(line, half, LANES * element.num_bytes)) for half in _HALVES]
            found = []
            for number, row in enumerate(rows):
                address = emit.at(emit.at(tile.scratch, row, _LINE), j, 4)
                weight = emit.splat(emit.load(address, F32, 4), LANES)
                found += [emit.fma(weight, wide[half], totals[len(_HALVES) * number + half]) for half in _HALVES]
            return found

        totals = emit.loop(length, sums, position)
        for number, place in enumerate(places):
            for half in _HALVES:
                emit.store(totals[len(_HALVES) * number + half], emit.at(place, half, 4 * LANES))
        return []

    emit.loop(builder.lshr(tile.padded, emit.word(5)), [], part)


def emit_fold(emit: Emitter, words: list[Value]) -> None:
    """Add a span's results to those of the spans before it.

    `words`: sums, peaks and totals of those before, the same of the span, the number of rows, the padded head size.
    """
    sums, peaks, totals, other_sums, other_peaks, other_totals, num_rows, padded = words
    builder = emit.builder

    def row(r: Value, _: list[Value]) -> list[Value]:
        peak_at, total_at = emit.at(peaks, r, 4), emit.at(totals, r, 4)
        before, other = emit.load(peak_at, F32, 4), emit.load(emit.at(other_peaks, r, 4), F32, 4)
        peak = builder.select(builder.fcmp_ordered(">", other, before), other, before)
        kept, added = (exponential(emit, emit.splat(builder.fsub(x, peak), LANES)) for x in (before, other))
        first = ir.Constant(I32, 0)
        scalars = [builder.extract_element(each, first) for each in (kept, added)]
        emit.store(peak, peak_at)
        total = builder.fmul(emit.load(total_at, F32, 4), scalars[0])
        emit.store(emit.fma(emit.load(emit.at(other_totals, r, 4), F32, 4), scalars[1], total), total_at)
        start = builder.mul(builder.mul(r, padded), emit.word(4))

        def part(index: Value, _: list[Value]) -> list[Value]:
            offset = emit.at(start, index, 4 * LANES)
            at = builder.add(sums, offset)
            mine, theirs = emit.load(at, ROW, 4), emit.load(builder.add(other_sums, offset), ROW, 4)
            emit.store(emit.fma(theirs, added, builder.fmul(mine, kept)), at)
            return []

        emit.loop(builder.lshr(padded, emit.word(4)), [], part)
        return []

    emit.loop(num_rows, [], row)
