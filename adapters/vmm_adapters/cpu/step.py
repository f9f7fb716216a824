"""One step of a decoder, whole in compiled code: every thread of a team runs `run_step`, and no Python comes between layers.

A phase is a number of tasks that threads take from a counter; between phases they meet. What a phase writes is read by
later ones only, but for what is added to the residual stream, where each task has columns of its own.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from vmm_adapters.cpu.attention import (
    BLOCK_SIZE,
    SPAN,
    TILE,
    attend_span,
    begin_fold,
    block_bytes,
    finish_fold,
    fold,
    size_class,
    store_key,
    store_value,
)
from vmm_adapters.cpu.floats import WIDTH
from vmm_adapters.cpu.kernels import CAP, COPY, FLOATS, PANELS, QUANTIZE, SIZES, SUM_OF_SQUARES
from vmm_adapters.cpu.layout import DOWN, GATE, MATRICES_A_LAYER, OUTPUT, QUERY
from vmm_adapters.cpu.memory import call_kernel, from_bfloat16, from_half, read_f32, read_u8, read_u16, write_f32
from vmm_adapters.cpu.numerics import GATED, LANES, NORMALIZED, PLAIN
from vmm_adapters.cpu.panels import BLOCK, FORMS, PANEL
from vmm_adapters.cpu.team import meet, take_task

(NUM_TOKENS, NUM_CHUNKS, NUM_LOGITS, NUM_TILES, NUM_SPANS, LOGITS, LOGITS_STRIDE) = range(7)
"""Places in `Buffers.counts`: of the step; the greatest number of spans that a tile is cut into, 1 where none is."""
TILE_COLUMNS = 5
(CHUNK, FIRST_ROW, ROWS, HEAD, FIRST_PARTIAL) = range(TILE_COLUMNS)
TASKS_A_THREAD = 4
"""Few enough that taking them costs nothing, enough that threads end together."""
MANY_TOKENS = 32
"""From here on rows are shared out too."""
_MAX_PANELS = 8
_BITS, _FACTORS = (np.array(numbers) for numbers in zip(*((f.bits, f.num_factors) for f in FORMS), strict=True))
_IS_WIDE = np.array([form.has_wide_factors for form in FORMS])
_IS_BIASED = np.array([form.has_biases for form in FORMS])
_MAX_ROWS = SIZES[-1]
_NUM_SIZES = len(SIZES)
_ZERO, _ONE = np.float32(0), np.float32(1)


class Model(NamedTuple):
    """What is the same in all layers."""

    width: int
    vocab_size: int
    epsilon: np.float32
    embedding_scale: np.float32
    logit_scale: np.float32
    logit_softcap: np.float32
    final_norm: int
    is_narrow: bool
    """KV blocks are uint8."""


class Buffers(NamedTuple):
    """What a step reads and writes; allocated once. Rows are a whole number of tiles of 16 tokens."""

    counts: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_chunks: NDArray[np.int32]
    past_lengths: NDArray[np.int32]
    chunk_begins: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    table_begins: NDArray[np.int32]
    sampled: NDArray[np.int64]
    tiles: NDArray[np.int32]
    """`[tiles, TILE_COLUMNS]`: of attention."""
    hidden: NDArray[np.float32]
    delta: NDArray[np.float32]
    """What attention or the MLP gives, where a norm comes before it is added."""
    projected: NDArray[np.float32]
    attended: NDArray[np.float32]
    mlp: NDArray[np.float32]
    quantized: NDArray[np.int8]
    """Inputs of products in tiles: see `panels`."""
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]
    floats: NDArray[np.float32]
    """Inputs of products with floats, one row a token."""
    works: NDArray[np.float32]
    """`[threads, numbers]`: of attention's tiles, and folds."""
    partials: NDArray[np.float32]
    """`[spans, numbers]`."""


@njit(nogil=True)  # type: ignore[untyped-decorator]
def run_step(
    kernels: Any, thread: int, num_threads: int, state: int, model: Any, layers: Any, matrices: Any, buffers: Any
) -> None:
    """Compute what `buffers` describes; the logits lie where its counts say."""
    counts = buffers.counts
    num_tokens = counts[NUM_TOKENS]
    if thread == 0:
        _cut_tiles(num_threads, layers[0], buffers)
    _embed(state, model, matrices[-2], buffers)
    meet(state, num_threads)
    hidden, delta = buffers.hidden.ctypes.data, buffers.delta.ctypes.data
    projected, attended = buffers.projected.ctypes.data, buffers.attended.ctypes.data
    mlp = buffers.mlp.ctypes.data
    width, columns = model.width, 4 * buffers.hidden.shape[1]
    mlp_stride, attended_stride = 4 * buffers.mlp.shape[1], 4 * buffers.attended.shape[1]
    projected_stride = 4 * buffers.projected.shape[1]
    for index in range(len(layers)):
        layer = layers[index]
        mine = matrices[index * MATRICES_A_LAYER : (index + 1) * MATRICES_A_LAYER]
        source = NORMALIZED if layer.input_norm else PLAIN
        _prepare(kernels, state, num_threads, source, hidden, columns, layer.input_norm, 0, width, mine[QUERY : QUERY + 3], model, buffers, thread, False)
        meet(state, num_threads)
        _multiply(kernels, state, num_threads, mine[QUERY : QUERY + 3], num_tokens, projected, projected_stride, 0, _ONE, buffers, thread)
        meet(state, num_threads)
        _rotate_and_store(state, layer, model, buffers)
        meet(state, num_threads)
        _attend(kernels, state, thread, layer, model, buffers)
        meet(state, num_threads)
        if counts[NUM_SPANS] > 1:
            _fold_spans(state, thread, layer, buffers)
            meet(state, num_threads)
        _prepare(kernels, state, num_threads, PLAIN, attended, attended_stride, 0, 0, mine[OUTPUT].columns, mine[OUTPUT : OUTPUT + 1], model, buffers, thread, False)
        meet(state, num_threads)
        _add_product(kernels, state, num_threads, thread, mine[OUTPUT : OUTPUT + 1], layer.attention_post_norm, layer.residual_scale, hidden, delta, columns, model, buffers)
        source = NORMALIZED if layer.mlp_norm else PLAIN
        _prepare(kernels, state, num_threads, source, hidden, columns, layer.mlp_norm, 0, width, mine[GATE : GATE + 2], model, buffers, thread, False)
        meet(state, num_threads)
        _multiply(kernels, state, num_threads, mine[GATE : GATE + 2], num_tokens, mlp, mlp_stride, 0, _ONE, buffers, thread)
        meet(state, num_threads)
        _prepare(kernels, state, num_threads, GATED + layer.activation, mlp, mlp_stride, 0, mlp + 4 * layer.up_at, layer.mlp_width, mine[DOWN : DOWN + 1], model, buffers, thread, False)
        meet(state, num_threads)
        _add_product(kernels, state, num_threads, thread, mine[DOWN : DOWN + 1], layer.mlp_post_norm, layer.residual_scale, hidden, delta, columns, model, buffers)
    if counts[NUM_LOGITS] > 0:
        _lm_head(kernels, state, num_threads, thread, matrices[len(matrices) - 1 :], hidden, columns, model, buffers)
    meet(state, num_threads)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _cut_tiles(num_threads: int, layer: Any, buffers: Any) -> None:
    """List attention's tiles, and say whether their spans go to several threads."""
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


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _embed(state: int, model: Any, matrix: Any, buffers: Any) -> None:
    """Rows of the embedding, widened, into the residual stream."""
    hidden = buffers.hidden
    while True:
        token = take_task(state)
        if token >= buffers.counts[NUM_TOKENS]:
            return
        row = buffers.token_ids[token]
        if matrix.is_dense:
            at = matrix.levels + row // WIDTH * matrix.panel_bytes
            for k in range(matrix.columns):
                hidden[token, k] = _dense(matrix.form, at, k * WIDTH + row % WIDTH) * model.embedding_scale
        else:
            _embed_blocks(matrix, row, hidden[token], model.embedding_scale)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _dense(element: int, at: int, index: int) -> Any:
    if element == 0:
        return read_f32(at + 4 * index)
    if element == 1:
        return from_half(read_u16(at + 2 * index))
    return from_bfloat16(read_u16(at + 2 * index))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _embed_blocks(matrix: Any, row: int, out: Any, scale: Any) -> None:
    bits, num_factors = _BITS[matrix.form], _FACTORS[matrix.form]
    is_wide, is_biased = _IS_WIDE[matrix.form], _IS_BIASED[matrix.form]
    panel, lane = row // PANEL, row % PANEL
    levels = matrix.levels + panel * matrix.panel_bytes + 4 * lane
    factors, biases = matrix.factors + panel * matrix.factor_bytes, matrix.biases + panel * matrix.factor_bytes
    for k in range(matrix.columns):
        block, group, j = k // BLOCK, k % BLOCK // 4, k % 4
        if bits == 4:
            byte = np.int32(read_u8(levels + (block * 4 + group // 2) * 64 + j))
            level = byte >> 4 if group % 2 else byte & 15
        else:
            level = np.int32(read_u8(levels + (block * 8 + group) * 64 + j))
        place = (block * num_factors + k % BLOCK * num_factors // BLOCK) * PANEL + lane
        factor = read_f32(factors + 4 * place) if is_wide else from_half(read_u16(factors + 2 * place))
        if is_biased:
            bias = read_f32(biases + 4 * place) if is_wide else from_half(read_u16(biases + 2 * place))
            out[k] = (factor * np.float32(level) + bias) * scale
        else:
            out[k] = factor * np.float32(level - (1 << (bits - 1))) * scale


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _prepare(
    kernels: Any, state: int, num_threads: int, source: int, values: int, stride: int, norm: int, second: int, width: int,
    matrices: Any, model: Any, buffers: Any, thread: int, is_last: bool
) -> None:  # fmt: skip
    """Make the inputs of the next products: of every token, or of those that logits are wanted for."""
    num_blocks = matrices[0].num_blocks
    wants_floats = wants_blocks = False
    for matrix in matrices:
        wants_floats |= matrix.is_dense != 0
        wants_blocks |= matrix.is_dense == 0
    num_rows = buffers.counts[NUM_LOGITS] if is_last else buffers.counts[NUM_TOKENS]
    pieces = 1 if num_rows >= num_threads else min(num_threads, (num_blocks + 7) // 8)
    size = (num_blocks + pieces - 1) // pieces
    quantized, scales, sums = buffers.quantized.ctypes.data, buffers.scales.ctypes.data, buffers.sums.ctypes.data
    floats, work = buffers.floats.ctypes.data, buffers.works[thread].ctypes.data
    while True:
        task = take_task(state)
        if task >= num_rows * pieces:
            return
        row, first = task // pieces, task % pieces * size
        count = min(size, num_blocks - first)
        if count <= 0:
            continue
        token = buffers.sampled[row] if is_last else row
        at = values + token * stride
        other, factor = second + token * stride, _ONE
        if source == NORMALIZED:
            other = norm
            call_kernel(kernels[SUM_OF_SQUARES], (at, num_blocks * (BLOCK // LANES), work), _ZERO)
            mean = read_f32(work) / np.float32(width)
            factor = _ONE / np.sqrt(mean + model.epsilon)
        if wants_floats:
            target = floats + 4 * row * buffers.floats.shape[1]
            call_kernel(kernels[COPY + source], (at, other, first, count, target), factor)
        if wants_blocks:
            tile = row // PANEL * num_blocks * PANEL
            places = (quantized + tile * BLOCK, scales + 4 * tile, sums + 4 * tile)
            call_kernel(kernels[QUANTIZE + source], (at, other, first, count, row % PANEL, *places), factor)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _multiply(
    kernels: Any, state: int, num_threads: int, matrices: Any, num_rows: int, out: int, stride: int, adds: int, scale: Any,
    buffers: Any, thread: int
) -> None:  # fmt: skip
    """Products of the prepared inputs with these matrices: a task is some panels, by all rows or a part of them."""
    total = 0
    for matrix in matrices:
        total += matrix.num_panels
    size = min(_MAX_PANELS, max(1, total // (TASKS_A_THREAD * num_threads)))
    tasks = 0
    for matrix in matrices:
        tasks += (matrix.num_panels + size - 1) // size
    parts = 1
    if num_rows >= MANY_TOKENS and tasks < TASKS_A_THREAD * num_threads:
        parts = min((TASKS_A_THREAD * num_threads + tasks - 1) // tasks, num_rows // PANEL)
    rows = ((num_rows + parts - 1) // parts + PANEL - 1) // PANEL * PANEL
    while True:
        task = take_task(state)
        if task >= tasks * parts:
            return
        first_row = task % parts * rows
        last_row = min(num_rows, first_row + rows)
        group = task // parts
        for matrix in matrices:
            groups = (matrix.num_panels + size - 1) // size
            if group < groups:
                last = min(matrix.num_panels, (group + 1) * size)
                for panel in range(group * size, last):
                    if matrix.is_dense:
                        _multiply_dense(kernels, matrix, panel, first_row, last_row, out, stride, adds, scale, buffers, thread)
                    else:
                        _multiply_blocks(kernels, matrix, panel, first_row, last_row, out, stride, adds, scale, buffers)
                break
            group -= groups


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _multiply_blocks(
    kernels: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any,
    buffers: Any
) -> None:  # fmt: skip
    quantized, scales, sums = buffers.quantized.ctypes.data, buffers.scales.ctypes.data, buffers.sums.ctypes.data
    levels = matrix.levels + panel * matrix.panel_bytes
    factors, biases = matrix.factors + panel * matrix.factor_bytes, matrix.biases + panel * matrix.factor_bytes
    columns = 4 * (matrix.out_at + panel * PANEL)
    for row in range(first_row, last_row, _MAX_ROWS):
        tile = row // PANEL * matrix.num_blocks * PANEL + row % PANEL
        kernel = kernels[PANELS + _NUM_SIZES * matrix.form + size_class(min(_MAX_ROWS, last_row - row))]
        inputs = (quantized + tile * BLOCK, scales + 4 * tile, sums + 4 * tile, matrix.num_blocks)
        target = (out + row * stride + columns, stride, matrix.added + 4 * panel * PANEL, adds)
        call_kernel(kernel, (levels, factors, biases, *inputs, *target), scale)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _multiply_dense(
    kernels: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any, buffers: Any,
    thread: int
) -> None:  # fmt: skip
    floats, line = buffers.floats.ctypes.data, 4 * buffers.floats.shape[1]
    work = buffers.works[thread].ctypes.data
    size = 4 if matrix.form == 0 else 2
    added = matrix.added + 4 * panel * WIDTH
    for row in range(first_row, last_row, _MAX_ROWS):
        count = min(_MAX_ROWS, last_row - row)
        kernel = kernels[FLOATS + _NUM_SIZES * matrix.form + size_class(count)]
        weights = (matrix.levels + panel * matrix.panel_bytes, WIDTH * size, matrix.columns)
        call_kernel(kernel, (floats + row * line, line, *weights, work, 4 * WIDTH, 0), _ZERO)
        for i in range(count):
            target = out + (row + i) * stride + 4 * (matrix.out_at + panel * WIDTH)
            for n in range(WIDTH):
                before = read_f32(target + 4 * n) if adds else np.float32(0)
                found = read_f32(work + 4 * (i * WIDTH + n)) + read_f32(added + 4 * n)
                write_f32(target + 4 * n, before + scale * found)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _add_product(
    kernels: Any, state: int, num_threads: int, thread: int, matrices: Any, norm: int, scale: Any, hidden: int, delta: int,
    stride: int, model: Any, buffers: Any
) -> None:  # fmt: skip
    """Add a product to the residual stream, through a norm where there is one; all threads have met when it is done."""
    num_tokens = buffers.counts[NUM_TOKENS]
    if not norm:
        _multiply(kernels, state, num_threads, matrices, num_tokens, hidden, stride, 1, scale, buffers, thread)
        meet(state, num_threads)
        return
    _multiply(kernels, state, num_threads, matrices, num_tokens, delta, stride, 0, _ONE, buffers, thread)
    meet(state, num_threads)
    while True:
        token = take_task(state)
        if token >= num_tokens:
            break
        at, target = delta + token * stride, hidden + token * stride
        work = buffers.works[thread].ctypes.data
        call_kernel(kernels[SUM_OF_SQUARES], (at, stride // (4 * LANES), work), _ZERO)
        mean = read_f32(work) / np.float32(model.width)
        factor = scale / np.sqrt(mean + model.epsilon)
        for k in range(model.width):
            x = read_f32(at + 4 * k) * factor * read_f32(norm + 4 * k)
            write_f32(target + 4 * k, read_f32(target + 4 * k) + x)
    meet(state, num_threads)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _rotate_and_store(state: int, layer: Any, model: Any, buffers: Any) -> None:
    """Queries and keys get their norms and positions, keys and values go to their blocks."""
    num_tokens, heads, head = buffers.counts[NUM_TOKENS], layer.num_kv_heads, layer.head_size
    group = layer.num_heads // heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    key_bytes, value_bytes = block_bytes(heads, head, model.is_narrow), block_bytes(heads, padded, model.is_narrow)
    # a norm over all heads needs all of them as they were
    is_whole = layer.query_norm_size > head or layer.key_norm_size > head
    pieces = 1 if is_whole else heads
    stride = 4 * buffers.projected.shape[1]
    while True:
        task = take_task(state)
        if task >= num_tokens * pieces:
            return
        token, piece = task // pieces, task % pieces
        row = buffers.projected.ctypes.data + token * stride
        queries, keys = row + 4 * layer.query_at, row + 4 * layer.key_at
        if is_whole:
            if layer.query_norm:
                _normalize(queries, layer.num_heads * head, layer.query_norm, model.epsilon)
            if layer.key_norm:
                _normalize(keys, heads * head, layer.key_norm, model.epsilon)
        chunk, position = buffers.token_chunks[token], buffers.positions[token]
        block = np.int64(buffers.block_tables[buffers.table_begins[chunk] + position // BLOCK_SIZE])
        key_block, value_block = layer.keys + block * key_bytes, layer.values + block * value_bytes
        first, last = (0, heads) if is_whole else (piece, piece + 1)
        for index in range(first, last):
            for query in range(index * group, (index + 1) * group):
                at = queries + 4 * query * head
                if layer.query_norm and not is_whole:
                    _normalize(at, head, layer.query_norm, model.epsilon)
                _rotate(at, position, layer)
                for d in range(head):
                    write_f32(at + 4 * d, read_f32(at + 4 * d) * layer.scale)
            at = keys + 4 * index * head
            if layer.key_norm and not is_whole:
                _normalize(at, head, layer.key_norm, model.epsilon)
            _rotate(at, position, layer)
            place = position % BLOCK_SIZE
            store_key(key_block, index, heads, head, place, at, model.is_narrow)
            value = row + 4 * (layer.value_at + index * head)
            store_value(value_block, index, heads, head, padded, place, value, model.is_narrow)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _normalize(at: int, count: int, weights: int, epsilon: Any) -> None:
    total = np.float32(0)
    for d in range(count):
        x = read_f32(at + 4 * d)
        total += x * x
    factor = _ONE / np.sqrt(total / np.float32(count) + epsilon)
    for d in range(count):
        write_f32(at + 4 * d, read_f32(at + 4 * d) * factor * read_f32(weights + 4 * d))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _rotate(at: int, position: int, layer: Any) -> None:
    half = layer.rotary_half
    cosines, sines = layer.cosines + 4 * position * half, layer.sines + 4 * position * half
    apart, step = (4, 8) if layer.is_interleaved else (4 * half, 4)
    for i in range(half):
        cosine, sine = read_f32(cosines + 4 * i), read_f32(sines + 4 * i)
        first, second = read_f32(at + step * i), read_f32(at + step * i + apart)
        write_f32(at + step * i, first * cosine - second * sine)
        write_f32(at + step * i + apart, second * cosine + first * sine)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _attend(kernels: Any, state: int, thread: int, layer: Any, model: Any, buffers: Any) -> None:
    """Sum up every tile; whole, or its spans one by one."""
    counts, tiles = buffers.counts, buffers.tiles
    num_spans = counts[NUM_SPANS]
    heads, head = layer.num_kv_heads, layer.head_size
    group = layer.num_heads // heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    key_bytes, value_bytes = block_bytes(heads, head, model.is_narrow), block_bytes(heads, padded, model.is_narrow)
    stride, out_stride = 4 * buffers.projected.shape[1], 4 * buffers.attended.shape[1]
    part = buffers.works[thread].ctypes.data
    total = part + 4 * (buffers.works.shape[1] - TILE * (padded + 2))
    while True:
        task = take_task(state)
        if task >= counts[NUM_TILES] * num_spans:
            return
        tile, only = tiles[task // num_spans], task % num_spans
        chunk, first_row, num_rows, index = tile[CHUNK], tile[FIRST_ROW], tile[ROWS], tile[HEAD]
        position = np.int64(buffers.past_lengths[chunk])
        begin = np.int64(buffers.chunk_begins[chunk])
        queries = buffers.projected.ctypes.data + begin * stride + 4 * (layer.query_at + index * group * head)
        first, last = _spans(layer, position + first_row // group, position + (first_row + num_rows - 1) // group)
        if num_spans == 1:
            begin_fold(total, padded)
        elif only < first or only >= last:
            continue
        else:
            first, last = only, only + 1
        for span in range(first, last):
            attend_span(
                kernels, part, queries, 4 * head, group, stride, first_row, num_rows, position, span, layer.keys, layer.values,
                key_bytes, value_bytes, buffers.block_tables, np.int64(buffers.table_begins[chunk]), index, heads, head, padded,
                layer.window, layer.softcap, model.is_narrow,
            )  # fmt: skip
            if num_spans == 1:
                fold(total, part, num_rows, padded)
            else:
                kept = buffers.partials[tile[FIRST_PARTIAL] + span].ctypes.data
                for i in range(TILE * (padded + 2)):
                    write_f32(kept + 4 * i, read_f32(part + 4 * i))
        if num_spans == 1:
            out = buffers.attended.ctypes.data + begin * out_stride + 4 * index * group * head
            finish_fold(total, out, 4 * head, group, out_stride, first_row, num_rows, head, padded)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _spans(layer: Any, nearest: int, furthest: int) -> Any:
    """The spans, from the first to before the last, that a tile's rows see."""
    first = 0
    if layer.window > 0:
        first = max(0, nearest - layer.window + 1) // SPAN
    return first, furthest // SPAN + 1


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _fold_spans(state: int, thread: int, layer: Any, buffers: Any) -> None:
    """Put the spans of each tile together."""
    tiles = buffers.tiles
    head, group = layer.head_size, layer.num_heads // layer.num_kv_heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    out_stride = 4 * buffers.attended.shape[1]
    total = buffers.works[thread].ctypes.data
    while True:
        task = take_task(state)
        if task >= buffers.counts[NUM_TILES]:
            return
        tile = tiles[task]
        chunk, first_row, num_rows, index = tile[CHUNK], tile[FIRST_ROW], tile[ROWS], tile[HEAD]
        position = np.int64(buffers.past_lengths[chunk])
        first, last = _spans(layer, position + first_row // group, position + (first_row + num_rows - 1) // group)
        begin_fold(total, padded)
        for span in range(first, last):
            fold(total, buffers.partials[tile[FIRST_PARTIAL] + span].ctypes.data, num_rows, padded)
        out = buffers.attended.ctypes.data + buffers.chunk_begins[chunk] * out_stride + 4 * index * group * head
        finish_fold(total, out, 4 * head, group, out_stride, first_row, num_rows, head, padded)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _lm_head(
    kernels: Any, state: int, num_threads: int, thread: int, matrices: Any, hidden: int, stride: int, model: Any,
    buffers: Any
) -> None:  # fmt: skip
    """Logits of the sampled tokens."""
    counts = buffers.counts
    num_rows, logits, logits_stride = counts[NUM_LOGITS], counts[LOGITS], counts[LOGITS_STRIDE]
    _prepare(kernels, state, num_threads, NORMALIZED, hidden, stride, model.final_norm, 0, model.width, matrices, model, buffers, thread, True)
    meet(state, num_threads)
    _multiply(kernels, state, num_threads, matrices, num_rows, logits, logits_stride, 0, model.logit_scale, buffers, thread)
    if model.logit_softcap > np.float32(0):
        meet(state, num_threads)
        while True:
            row = take_task(state)
            if row >= num_rows:
                return
            call_kernel(kernels[CAP], (logits + row * logits_stride, logits_stride // (4 * LANES)), model.logit_softcap)
