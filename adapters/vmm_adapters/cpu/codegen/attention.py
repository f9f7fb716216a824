"""Attention over KV blocks: which rows make a tile, which positions a span, and what is put together how.

The heads that share keys and values, and neighbouring tokens of a chunk, make a tile of up to 8 rows. The positions
before a tile are cut in spans of 512: each span is summed up by itself (`spans`) and then folded into those before it.
Where there are too few tiles for the threads, the spans of a tile are computed by several of them, and folded
afterwards, in the same order: the result is the same to the bit.
"""

from typing import Any, NamedTuple

import numpy as np

from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.kernels import FOLD, SIZES, SPANS
from vmm_adapters.cpu.codegen.memory import call_kernel, read_f32, read_i32, write_f32, write_i32
from vmm_adapters.cpu.codegen.team import finish, take_task
from vmm_adapters.cpu.formats import BLOCK_SIZE, FACTORS, SPAN, TILE, TILE_COLUMNS, WIDTH, block_bytes
from vmm_adapters.cpu.share import TASKS_A_THREAD

_ZERO = np.float32(0)
_NO_LIMIT = -1
kv_block_bytes = compiled(block_bytes)
"""See `formats`."""


@compiled  # type: ignore[untyped-decorator]
def size_class(count: int) -> int:
    """Which of the kernels' `SIZES` holds so many rows."""
    return (count > 1) + (count > 2) + (count > 4)


class _Tile(NamedTuple):
    """Rows that are computed together: those from `first_row` on of a chunk, for one head of keys and values."""

    first_row: int
    num_rows: int
    head: int
    first_partial: int
    """Where the results of its spans go, if several threads compute them."""
    begin: int
    """The chunk's first token, in the step."""
    position: int
    """Of that token, in its sequence."""
    nearest: int
    """The position of the first row's token."""
    furthest: int
    """And of the last row's."""
    table: int
    """The address of the sequence's block table."""


@compiled  # type: ignore[untyped-decorator]
def cut_tiles(step: Any, layer: Any, num_threads: int) -> None:
    """List the tiles of a step, and say whether their spans go to several threads."""
    group = layer.num_heads // layer.num_kv_heads
    found = partials = longest = 0
    for chunk in range(step.num_chunks):
        begin, end = read_i32(step.chunk_begins + 4 * chunk), read_i32(step.chunk_begins + 4 * (chunk + 1))
        past = read_i32(step.past_lengths + 4 * chunk)
        num_rows = (end - begin) * group
        # the last rows see the most: longest tasks first
        for tile in range((num_rows + TILE - 1) // TILE - 1, -1, -1):
            first_row, last_row = tile * TILE, min(num_rows, (tile + 1) * TILE) - 1
            num_spans = (past + last_row // group) // SPAN + 1
            for head in range(layer.num_kv_heads):
                at = step.tiles + 4 * TILE_COLUMNS * found
                write_i32(at, chunk)
                write_i32(at + 4, first_row)
                write_i32(at + 8, last_row - first_row + 1)
                write_i32(at + 12, head)
                write_i32(at + 16, partials)
                partials += num_spans
                longest = max(longest, num_spans)
                found += 1
    step.num_tiles = found
    is_cut = num_threads > 1 and found < TASKS_A_THREAD * num_threads and partials <= step.max_partials
    step.num_spans = longest if is_cut else 1


@compiled  # type: ignore[untyped-decorator]
def _read_tile(step: Any, number: int, group: int) -> _Tile:
    at = step.tiles + 4 * TILE_COLUMNS * number
    chunk, first_row, num_rows = read_i32(at), read_i32(at + 4), read_i32(at + 8)
    position = read_i32(step.past_lengths + 4 * chunk)
    return _Tile(
        first_row,
        num_rows,
        read_i32(at + 12),
        read_i32(at + 16),
        read_i32(step.chunk_begins + 4 * chunk),
        position,
        position + first_row // group,
        position + (first_row + num_rows - 1) // group,
        step.block_tables + 4 * read_i32(step.table_begins + 4 * chunk),
    )


@compiled  # type: ignore[untyped-decorator]
def _spans(layer: Any, tile: _Tile) -> Any:
    """The spans, from the first to before the last, that a tile's rows see."""
    first = 0
    if layer.window > 0:
        first = max(0, tile.nearest - layer.window + 1) // SPAN
    return first, tile.furthest // SPAN + 1


@compiled  # type: ignore[untyped-decorator]
def _padded(layer: Any) -> Any:
    """The head size, in whole 32s."""
    return (layer.head_size + WIDTH - 1) // WIDTH * WIDTH


@compiled  # type: ignore[untyped-decorator]
def attend(share: Any, phase: int, layer: Any) -> None:
    """Sum up every tile; whole, or its spans one by one."""
    step, num_spans = share.step, share.step.num_spans
    group, padded = layer.num_heads // layer.num_kv_heads, _padded(layer)
    work = step.works + share.thread * step.work_stride
    total = work + 4 * TILE * (padded + 2)
    num_tasks, num_done = step.num_tiles * num_spans, 0
    while True:
        task = take_task(share, phase, num_tasks)
        if task < 0:
            break
        num_done += 1
        tile, only = _read_tile(step, task // num_spans, group), task % num_spans
        first, last = _spans(layer, tile)
        if num_spans > 1:
            if only < first or only >= last:
                continue
            first, last = only, only + 1
        _load_queries(step, layer, tile, work + 8 * TILE * (padded + 2), group, padded)
        for span in range(first, last):
            _attend_span(share, layer, tile, span, work, padded)
            if num_spans > 1:
                _copy_result(step.partials + (tile.first_partial + span) * step.partial_stride, work, padded)
            elif span == first:
                _copy_result(total, work, padded)
            else:
                _fold(share, total, work, tile.num_rows, padded)
        if num_spans == 1:
            _write_result(step, layer, tile, total, group, padded)
    finish(share, phase, num_tasks, num_done)


@compiled  # type: ignore[untyped-decorator]
def fold_spans(share: Any, phase: int, layer: Any) -> None:
    """Put the spans of each tile together."""
    step = share.step
    group, padded = layer.num_heads // layer.num_kv_heads, _padded(layer)
    total = step.works + share.thread * step.work_stride
    num_done = 0
    while True:
        task = take_task(share, phase, step.num_tiles)
        if task < 0:
            break
        num_done += 1
        tile = _read_tile(step, task, group)
        first, last = _spans(layer, tile)
        partials = step.partials + tile.first_partial * step.partial_stride
        _copy_result(total, partials + first * step.partial_stride, padded)
        for span in range(first + 1, last):
            _fold(share, total, partials + span * step.partial_stride, tile.num_rows, padded)
        _write_result(step, layer, tile, total, group, padded)
    finish(share, phase, step.num_tiles, num_done)


@compiled  # type: ignore[untyped-decorator]
def _load_queries(step: Any, layer: Any, tile: _Tile, queries: int, group: int, padded: int) -> None:
    """Gather a tile's queries, and behind them what each of its rows sees."""
    limits = queries + 4 * TILE * padded
    head = layer.head_size
    first = step.projected + tile.begin * step.projected_stride + 4 * (layer.query_at + tile.head * group * head)
    for r in range(tile.num_rows):
        token, member = (tile.first_row + r) // group, (tile.first_row + r) % group
        source, target = first + token * step.projected_stride + 4 * member * head, queries + 4 * r * padded
        for d in range(head):
            write_f32(target + 4 * d, read_f32(source + 4 * d))
        last = tile.position + token
        write_i32(limits + 4 * r, last)
        write_i32(limits + 4 * (TILE + r), last - layer.window if layer.window > 0 else _NO_LIMIT)


@compiled  # type: ignore[untyped-decorator]
def _attend_span(share: Any, layer: Any, tile: _Tile, span: int, work: int, padded: int) -> None:
    """Sum up one span for a tile whose queries are loaded. The result lies at the start of `work`."""
    heads, head, is_narrow = layer.num_kv_heads, layer.head_size, share.model.is_narrow
    size = 1 if is_narrow else 2
    first = span * SPAN
    if layer.window > 0:
        first = max(first, (tile.nearest - layer.window + 1) // BLOCK_SIZE * BLOCK_SIZE)
    num_positions = min(tile.furthest + 1, (span + 1) * SPAN) - first
    num_blocks = (num_positions + BLOCK_SIZE - 1) // BLOCK_SIZE
    queries = work + 8 * TILE * (padded + 2)
    limits, peaks = queries + 4 * TILE * padded, work + 4 * TILE * padded
    places = (queries, work, peaks, peaks + 4 * TILE, limits, limits + 8 * TILE, padded, head)
    blocks = (
        layer.keys + tile.head * head * WIDTH * size,
        layer.values + tile.head * padded * WIDTH * size,
        kv_block_bytes(heads, head, is_narrow),
        kv_block_bytes(heads, padded, is_narrow),
        layer.keys + heads * head * WIDTH + tile.head * FACTORS,
        layer.values + heads * padded * WIDTH + tile.head * FACTORS,
        tile.table + 4 * (first // BLOCK_SIZE),
        first,
        num_blocks,
        num_positions,
    )
    kind = 2 * is_narrow + (layer.softcap > _ZERO)
    call_kernel(share.kernels, SPANS + len(SIZES) * kind + size_class(tile.num_rows), (*places, *blocks), layer.softcap)


@compiled  # type: ignore[untyped-decorator]
def _fold(share: Any, total: int, part: int, num_rows: int, padded: int) -> None:
    """Add a span's result to that of those before it."""
    peaks = 4 * TILE * padded
    sums = peaks + 4 * TILE
    words = (total, total + peaks, total + sums, part, part + peaks, part + sums, num_rows, padded)
    call_kernel(share.kernels, FOLD, words, _ZERO)


@compiled  # type: ignore[untyped-decorator]
def _copy_result(target: int, source: int, padded: int) -> None:
    """Keep a span's result."""
    for i in range(TILE * (padded + 2)):
        write_f32(target + 4 * i, read_f32(source + 4 * i))


@compiled  # type: ignore[untyped-decorator]
def _write_result(step: Any, layer: Any, tile: _Tile, total: int, group: int, padded: int) -> None:
    """Write the rows' results where they belong."""
    head = layer.head_size
    first = step.attended + tile.begin * step.attended_stride + 4 * tile.head * group * head
    for r in range(tile.num_rows):
        token, member = (tile.first_row + r) // group, (tile.first_row + r) % group
        target = first + token * step.attended_stride + 4 * member * head
        share = np.float32(1) / read_f32(total + 4 * (TILE * padded + TILE + r))
        for d in range(head):
            write_f32(target + 4 * d, read_f32(total + 4 * (r * padded + d)) * share)
