"""Attention over KV blocks: which rows make a tile, which positions a span, and what is put together how.

The heads that share keys and values, and neighbouring tokens of a chunk, make a tile of up to 8 rows. The positions
before a tile are cut in spans of 512: each span is summed up by itself (`spans`) and then folded into those before it.
Where there are too few tiles for the threads, the spans of a tile are computed by several of them, and folded
afterwards, in the same order: the result is the same to the bit.
"""

from typing import Any

import numpy as np

from vmm_adapters.cpu.compiled import compiled
from vmm_adapters.cpu.floats import WIDTH
from vmm_adapters.cpu.kernels import FOLD, SIZES, SPANS
from vmm_adapters.cpu.memory import call_kernel, read_f32, write_f32, write_i32
from vmm_adapters.cpu.share import NUM_CHUNKS, NUM_SPANS, NUM_TILES, TASKS_A_THREAD
from vmm_adapters.cpu.spans import BLOCK_SIZE, TILE
from vmm_adapters.cpu.team import take_task

TILE_COLUMNS = 5
CHUNK, FIRST_ROW, ROWS, HEAD, FIRST_PARTIAL = range(TILE_COLUMNS)
"""What is listed of a tile; partial results lie from `FIRST_PARTIAL` on, one a span."""
SPAN = 512
"""Positions that are summed up by themselves."""
_ZERO = np.float32(0)
_NO_LIMIT = -1
FACTORS = 8 * WIDTH
"""Bytes of the scales and lowest numbers of a head's keys, or values, in a block."""


def result_floats(padded_head: int) -> int:
    """Numbers of a span's result: sums `[8, padded head]`, peaks `[8]`, totals `[8]`."""
    return TILE * (padded_head + 2)


def work_floats(padded_head: int) -> int:
    """Numbers that a thread works with: a span's result and a fold's, queries, limits, and the kernel's scratch."""
    return 2 * result_floats(padded_head) + TILE * (padded_head + 2 + WIDTH + 3)


@compiled  # type: ignore[untyped-decorator]
def size_class(count: int) -> int:
    """Which of the kernels' `SIZES` holds so many rows."""
    return (count > 1) + (count > 2) + (count > 4)


@compiled  # type: ignore[untyped-decorator]
def block_bytes(num_heads: int, head: int, is_narrow: bool) -> int:
    """Of one block of keys, or of values with `head` in whole 32s: numbers, then the factors of uint8."""
    if is_narrow:
        return num_heads * (head * WIDTH + FACTORS)
    return num_heads * head * WIDTH * 2


@compiled  # type: ignore[untyped-decorator]
def cut_tiles(share: Any, layer: Any) -> None:
    """List attention's tiles, and say whether their spans go to several threads."""
    buffers, num_threads = share.buffers, share.num_threads
    counts, tiles = buffers.counts, buffers.tiles
    group = layer.num_heads // layer.num_kv_heads
    found = partials = longest = 0
    for chunk in range(counts[NUM_CHUNKS]):
        num_tokens = buffers.chunk_begins[chunk + 1] - buffers.chunk_begins[chunk]
        num_rows = num_tokens * group
        # the last rows see the most: longest tasks first
        for tile in range((num_rows + TILE - 1) // TILE - 1, -1, -1):
            for head in range(layer.num_kv_heads):
                tiles[found, CHUNK], tiles[found, FIRST_ROW], tiles[found, HEAD] = chunk, tile * TILE, head
                tiles[found, ROWS] = min(TILE, num_rows - tile * TILE)
                last = tile * TILE + tiles[found, ROWS] - 1
                num_spans = (buffers.past_lengths[chunk] + last // group) // SPAN + 1
                tiles[found, FIRST_PARTIAL] = partials
                partials += num_spans
                longest = max(longest, num_spans)
                found += 1
    counts[NUM_TILES] = found
    is_cut = found < TASKS_A_THREAD * num_threads and num_threads > 1 and partials <= len(buffers.partials)
    counts[NUM_SPANS] = longest if is_cut else 1


@compiled  # type: ignore[untyped-decorator]
def attend(share: Any, layer: Any) -> None:
    """Sum up every tile; whole, or its spans one by one."""
    kernels, buffers, model = share.kernels, share.buffers, share.model
    counts, tiles = buffers.counts, buffers.tiles
    num_spans = counts[NUM_SPANS]
    head, group = layer.head_size, layer.num_heads // layer.num_kv_heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    stride, out_stride = 4 * buffers.projected.shape[1], 4 * buffers.attended.shape[1]
    work = buffers.works[share.thread].ctypes.data
    sums = work + 4 * TILE * (padded + 2)
    while True:
        task = take_task(share.state)
        if task >= counts[NUM_TILES] * num_spans:
            return
        tile, only = tiles[task // num_spans], task % num_spans
        chunk, first_row, num_rows, index = tile[CHUNK], tile[FIRST_ROW], tile[ROWS], tile[HEAD]
        begin, position = np.int64(buffers.chunk_begins[chunk]), np.int64(buffers.past_lengths[chunk])
        nearest, furthest = position + first_row // group, position + (first_row + num_rows - 1) // group
        first, last = _spans(layer, nearest, furthest)
        if num_spans > 1:
            if only < first or only >= last:
                continue
            first, last = only, only + 1
        queries = buffers.projected.ctypes.data + begin * stride + 4 * (layer.query_at + index * group * head)
        _load_tile(work, queries, 4 * head, group, stride, first_row, num_rows, position, layer.window, head, padded)
        table = buffers.block_tables.ctypes.data + 4 * np.int64(buffers.table_begins[chunk])
        for span in range(first, last):
            _attend_span(kernels, work, num_rows, nearest, furthest, span, layer, table, index, padded, model.is_narrow)
            if num_spans > 1:
                _copy_result(buffers.partials[tile[FIRST_PARTIAL] + span].ctypes.data, work, padded)
            elif span == first:
                _copy_result(sums, work, padded)
            else:
                _fold(kernels, sums, work, num_rows, padded)
        if num_spans == 1:
            out = buffers.attended.ctypes.data + begin * out_stride + 4 * index * group * head
            _write_result(sums, out, 4 * head, group, out_stride, first_row, num_rows, head, padded)


@compiled  # type: ignore[untyped-decorator]
def _spans(layer: Any, nearest: int, furthest: int) -> Any:
    """The spans, from the first to before the last, that a tile's rows see."""
    first = 0
    if layer.window > 0:
        first = max(0, nearest - layer.window + 1) // SPAN
    return first, furthest // SPAN + 1


@compiled  # type: ignore[untyped-decorator]
def fold_spans(share: Any, layer: Any) -> None:
    """Put the spans of each tile together."""
    kernels, buffers = share.kernels, share.buffers
    tiles = buffers.tiles
    head, group = layer.head_size, layer.num_heads // layer.num_kv_heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    out_stride = 4 * buffers.attended.shape[1]
    total = buffers.works[share.thread].ctypes.data
    while True:
        task = take_task(share.state)
        if task >= buffers.counts[NUM_TILES]:
            return
        tile = tiles[task]
        chunk, first_row, num_rows, index = tile[CHUNK], tile[FIRST_ROW], tile[ROWS], tile[HEAD]
        position = np.int64(buffers.past_lengths[chunk])
        first, last = _spans(layer, position + first_row // group, position + (first_row + num_rows - 1) // group)
        partials = tile[FIRST_PARTIAL]
        _copy_result(total, buffers.partials[partials + first].ctypes.data, padded)
        for span in range(first + 1, last):
            _fold(kernels, total, buffers.partials[partials + span].ctypes.data, num_rows, padded)
        out = buffers.attended.ctypes.data + buffers.chunk_begins[chunk] * out_stride + 4 * index * group * head
        _write_result(total, out, 4 * head, group, out_stride, first_row, num_rows, head, padded)


@compiled  # type: ignore[untyped-decorator]
def _load_tile(
    work: int, queries: int, row_stride: int, group: int, token_stride: int, first_row: int, num_rows: int,
    position: int, window: int, head: int, padded: int
) -> None:  # fmt: skip
    """Gather a tile's queries, and what each of its rows sees. The chunk's first token is at `position`."""
    tile = work + 8 * TILE * (padded + 2)
    limits = tile + 4 * TILE * padded
    for r in range(num_rows):
        token, member = (first_row + r) // group, (first_row + r) % group
        source, target = queries + token * token_stride + member * row_stride, tile + 4 * r * padded
        for d in range(head):
            write_f32(target + 4 * d, read_f32(source + 4 * d))
        last = position + token
        write_i32(limits + 4 * r, last)
        write_i32(limits + 4 * (TILE + r), last - window if window > 0 else _NO_LIMIT)


@compiled  # type: ignore[untyped-decorator]
def _attend_span(
    kernels: Any, work: int, num_rows: int, nearest: int, furthest: int, span: int, layer: Any, table: int, index: int,
    padded: int, is_narrow: bool
) -> None:  # fmt: skip
    """Sum up one span for a loaded tile of one head, whose rows' tokens are at `nearest` to `furthest`.

    The result lies at the start of `work`. `table`: the address of the sequence's block table.
    """
    heads, head = layer.num_kv_heads, layer.head_size
    size = 1 if is_narrow else 2
    first = span * SPAN
    if layer.window > 0:
        first = max(first, (nearest - layer.window + 1) // BLOCK_SIZE * BLOCK_SIZE)
    num_positions = min(furthest + 1, (span + 1) * SPAN) - first
    num_blocks = (num_positions + BLOCK_SIZE - 1) // BLOCK_SIZE
    kind = 2 * is_narrow + (layer.softcap > _ZERO)
    queries = work + 8 * TILE * (padded + 2)
    limits = queries + 4 * TILE * padded
    peaks = work + 4 * TILE * padded
    tile = (queries, work, peaks, peaks + 4 * TILE, limits, limits + 8 * TILE, padded, head)
    blocks = (
        layer.keys + index * head * WIDTH * size, layer.values + index * padded * WIDTH * size,
        block_bytes(heads, head, is_narrow), block_bytes(heads, padded, is_narrow),
        layer.keys + heads * head * WIDTH + index * FACTORS, layer.values + heads * padded * WIDTH + index * FACTORS,
        table + 4 * (first // BLOCK_SIZE), first, num_blocks, num_positions,
    )  # fmt: skip
    call_kernel(kernels[SPANS + len(SIZES) * kind + size_class(num_rows)], (*tile, *blocks), layer.softcap)


@compiled  # type: ignore[untyped-decorator]
def _fold(kernels: Any, total: int, part: int, num_rows: int, padded: int) -> None:
    """Add a span's result to that of those before it."""
    peaks = 4 * TILE * padded
    sums = peaks + 4 * TILE
    words = (total, total + peaks, total + sums, part, part + peaks, part + sums, num_rows, padded)
    call_kernel(kernels[FOLD], words, _ZERO)


@compiled  # type: ignore[untyped-decorator]
def _copy_result(target: int, source: int, padded: int) -> None:
    """Keep a span's result."""
    for i in range(TILE * (padded + 2)):
        write_f32(target + 4 * i, read_f32(source + 4 * i))


@compiled  # type: ignore[untyped-decorator]
def _write_result(
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
