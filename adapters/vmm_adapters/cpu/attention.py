"""Attention over KV blocks: online softmax, a tile of rows at a time.

A row is a query of one head. The heads that share keys and values, and neighbouring tokens of a chunk, make a tile of up to
8 rows that shares what is read. The positions before a tile are cut in spans of 512: each span is summed up by itself
and then folded into the sum of those before it. Where there are too few tiles for the threads, the spans of a tile
are computed by several of them, and folded afterwards, in the same order, so that the result is the same to the bit.

A block of keys is `[kv heads, head size, 32 positions]`, one of values `[kv heads, 32 positions, head size in whole
32s]`: both are read along the lanes. They are float16, or uint8 with a scale and a lowest number for each position:
then `[kv heads, 2, 32]` float32 stand behind them.
"""

from typing import Any

import numpy as np
from numba import njit

from vmm_adapters.cpu.floats import WIDTH, Element
from vmm_adapters.cpu.kernels import CAP, FLOATS, SIZES, SOFTEN
from vmm_adapters.cpu.memory import call_kernel, exp, read_f32, to_half, write_f32, write_u8, write_u16

BLOCK_SIZE = WIDTH
"""Positions in a KV block."""
SPAN = 512
"""Positions that are summed up by themselves."""
TILE = 8
"""Rows that share what is read."""
_ZERO = np.float32(0)
_NOTHING = np.float32(-1e30)
"""The score of a position that a row does not see, and the peak before the first."""
_F16, _U8 = FLOATS + len(SIZES) * Element.F16, FLOATS + len(SIZES) * Element.U8
_LINE = 4 * WIDTH
_FACTORS = 2 * _LINE
"""Bytes of the scales and lowest numbers of a head's keys, or values, in a block."""


def tile_floats(padded_head: int) -> int:
    """Numbers that a tile's working memory has: queries, scores, scaled weights, sums, and three for each row."""
    return TILE * (2 * padded_head + 2 * WIDTH + 6)


def partial_floats(padded_head: int) -> int:
    """Numbers of a span's result: sums, peaks and totals."""
    return TILE * (padded_head + 2)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def size_class(count: int) -> int:
    """Which of the kernels' `SIZES` holds so many rows."""
    return (count > 1) + (count > 2) + (count > 4)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def block_bytes(num_heads: int, head: int, is_narrow: bool) -> int:
    """Of one block of keys, or of values with `head` in whole 32s."""
    if is_narrow:
        return num_heads * (head * WIDTH + _FACTORS)
    return num_heads * head * WIDTH * 2


@njit(nogil=True)  # type: ignore[untyped-decorator]
def store_key(block: int, head_index: int, num_heads: int, head: int, place: int, values: int, is_narrow: bool) -> None:
    """Write one head's key, float32 at `values`, to its place in a block."""
    if not is_narrow:
        at = block + head_index * head * 2 * WIDTH + 2 * place
        for d in range(head):
            write_u16(at + d * 2 * WIDTH, to_half(read_f32(values + 4 * d)))
        return
    low, scale = _range(values, head)
    at = block + head_index * head * WIDTH + place
    for d in range(head):
        write_u8(at + d * WIDTH, _level(read_f32(values + 4 * d), low, scale))
    factors = block + num_heads * head * WIDTH + head_index * _FACTORS + 4 * place
    write_f32(factors, scale)
    write_f32(factors + _LINE, low)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def store_value(
    block: int, head_index: int, num_heads: int, head: int, padded: int, place: int, values: int, is_narrow: bool
) -> None:
    """The same of a value, of `padded` numbers in the block."""
    if not is_narrow:
        at = block + (head_index * WIDTH + place) * 2 * padded
        for d in range(head):
            write_u16(at + 2 * d, to_half(read_f32(values + 4 * d)))
        return
    low, scale = _range(values, head)
    at = block + (head_index * WIDTH + place) * padded
    for d in range(head):
        write_u8(at + d, _level(read_f32(values + 4 * d), low, scale))
    factors = block + num_heads * padded * WIDTH + head_index * _FACTORS + 4 * place
    write_f32(factors, scale)
    write_f32(factors + _LINE, low)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _range(values: int, count: int) -> Any:
    low = high = read_f32(values)
    for d in range(1, count):
        x = read_f32(values + 4 * d)
        low, high = min(low, x), max(high, x)
    return low, (high - low) / np.float32(255)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _level(x: Any, low: Any, scale: Any) -> Any:
    if scale <= np.float32(0):
        return np.uint8(0)
    return np.uint8(min(np.float32(255), (x - low) / scale + np.float32(0.5)))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def attend_span(
    kernels: Any, work: int, queries: int, row_stride: int, group: int, token_stride: int, first_row: int, num_rows: int, position: int,
    span: int, keys: int, values: int, key_bytes: int, value_bytes: int, table: Any, table_at: int,
    head_index: int, num_heads: int, head: int, padded: int, window: int, softcap: Any, is_narrow: bool
) -> None:  # fmt: skip
    """Sum up one span for the rows `first_row` on of a chunk whose first token is at `position`.

    `work`: `tile_floats` numbers. The result lies at its start: sums `[8, padded]`, peaks `[8]`, totals `[8]`.
    """
    peaks = work + 4 * TILE * padded
    totals, corrections, sums_of_queries, lows = peaks + 32, peaks + 64, peaks + 96, peaks + 128
    scores = peaks + 192
    weights = scores + TILE * _LINE
    tile = weights + TILE * _LINE
    for r in range(TILE):
        write_f32(peaks + 4 * r, _NOTHING)
        write_f32(totals + 4 * r, np.float32(0))
        for d in range(padded):
            write_f32(work + 4 * (r * padded + d), np.float32(0))
    for r in range(num_rows):
        row_index = first_row + r
        source = queries + row_index // group * token_stride + row_index % group * row_stride
        total = np.float32(0)
        for d in range(head):
            x = read_f32(source + 4 * d)
            total += x
            write_f32(tile + 4 * (r * padded + d), x)
        write_f32(sums_of_queries + 4 * r, total)
    nearest = position + first_row // group
    furthest = position + (first_row + num_rows - 1) // group
    first = span * SPAN
    if window > 0:
        first = max(first, (nearest - window + 1) // BLOCK_SIZE * BLOCK_SIZE)
    multiply = kernels[(_U8 if is_narrow else _F16) + size_class(num_rows)]
    size = 1 if is_narrow else 2
    for start in range(first, min(furthest + 1, (span + 1) * SPAN), BLOCK_SIZE):
        block = np.int64(table[table_at + start // BLOCK_SIZE])
        key_block, value_block = keys + block * key_bytes, values + block * value_bytes
        key_at = key_block + head_index * head * WIDTH * size
        call_kernel(multiply, (tile, 4 * padded, key_at, WIDTH * size, head, scores, _LINE, 0), _ZERO)
        if is_narrow:
            factors = key_block + num_heads * head * WIDTH + head_index * _FACTORS
            for r in range(num_rows):
                total = read_f32(sums_of_queries + 4 * r)
                for j in range(WIDTH):
                    at = scores + r * _LINE + 4 * j
                    step, low = read_f32(factors + 4 * j), read_f32(factors + _LINE + 4 * j)
                    write_f32(at, read_f32(at) * step + total * low)
        if softcap > np.float32(0):
            call_kernel(kernels[CAP], (scores, 2 * num_rows), softcap)
        if start + BLOCK_SIZE > nearest + 1 or (window > 0 and start + window <= furthest):
            _hide(scores, start, first_row, num_rows, group, position, window)
        for r in range(num_rows):
            row = (scores + r * _LINE, 2, peaks + 4 * r, totals + 4 * r, corrections + 4 * r)
            call_kernel(kernels[SOFTEN], row, _ZERO)
        length = min(BLOCK_SIZE, furthest + 1 - start)
        used = scores
        if is_narrow:
            factors = value_block + num_heads * padded * WIDTH + head_index * _FACTORS
            used = weights
            for r in range(num_rows):
                low_sum = np.float32(0)
                for j in range(length):
                    weight = read_f32(scores + r * _LINE + 4 * j)
                    low_sum += weight * read_f32(factors + _LINE + 4 * j)
                    write_f32(weights + r * _LINE + 4 * j, weight * read_f32(factors + 4 * j))
                write_f32(lows + 4 * r, low_sum)
        value_at = value_block + head_index * WIDTH * padded * size
        for d in range(0, padded, WIDTH):
            words = (used, _LINE, value_at + d * size, padded * size, length, work + 4 * d, 4 * padded, corrections)
            call_kernel(multiply, words, _ZERO)
        if is_narrow:
            for r in range(num_rows):
                low = read_f32(lows + 4 * r)
                for d in range(padded):
                    at = work + 4 * (r * padded + d)
                    write_f32(at, read_f32(at) + low)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _hide(scores: int, start: int, first_row: int, num_rows: int, group: int, position: int, window: int) -> None:
    """Take out what comes after a row's token, or lies before its window."""
    for r in range(num_rows):
        last = position + (first_row + r) // group
        first = last - window + 1 if window > 0 else 0
        for j in range(WIDTH):
            if start + j > last or start + j < first:
                write_f32(scores + r * _LINE + 4 * j, _NOTHING)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def begin_fold(total: int, padded: int) -> None:
    """Nothing summed up yet."""
    for r in range(TILE):
        write_f32(total + 4 * (TILE * padded + r), _NOTHING)
        write_f32(total + 4 * (TILE * padded + TILE + r), np.float32(0))
    for i in range(TILE * padded):
        write_f32(total + 4 * i, np.float32(0))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def fold(total: int, part: int, num_rows: int, padded: int) -> None:
    """Add a span's result to those before it."""
    peaks, sums = 4 * TILE * padded, 4 * TILE * padded + 4 * TILE
    for r in range(num_rows):
        before, other = read_f32(total + peaks + 4 * r), read_f32(part + peaks + 4 * r)
        peak = max(before, other)
        kept, added = exp(before - peak), exp(other - peak)
        write_f32(total + peaks + 4 * r, peak)
        at = sums + 4 * r
        write_f32(total + at, read_f32(total + at) * kept + read_f32(part + at) * added)
        for d in range(padded):
            at = 4 * (r * padded + d)
            write_f32(total + at, read_f32(total + at) * kept + read_f32(part + at) * added)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def finish_fold(
    total: int, out: int, row_stride: int, group: int, token_stride: int, first_row: int, num_rows: int, head: int,
    padded: int
) -> None:  # fmt: skip
    """Write the rows' results where they belong."""
    for r in range(num_rows):
        row = first_row + r
        target = out + row // group * token_stride + row % group * row_stride
        share = np.float32(1) / read_f32(total + 4 * (TILE * padded + TILE + r))
        for d in range(head):
            write_f32(target + 4 * d, read_f32(total + 4 * (r * padded + d)) * share)
