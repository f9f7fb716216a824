"""The phases of a step that multiply: inputs are prepared, and panels of the matrices shared out."""

from typing import Any

import numpy as np

from vmm_adapters.cpu.attention import size_class
from vmm_adapters.cpu.compiled import compiled
from vmm_adapters.cpu.floats import WIDTH, Element
from vmm_adapters.cpu.kernels import COPY, FLOATS, PANELS, QUANTIZE, SIZES, SUM_OF_SQUARES
from vmm_adapters.cpu.memory import call_kernel, read_f32, write_f32
from vmm_adapters.cpu.numerics import LANES, NORMALIZED, PLAIN
from vmm_adapters.cpu.panels import BLOCK, PANEL
from vmm_adapters.cpu.share import NUM_LOGITS, NUM_TOKENS, TASKS_A_THREAD
from vmm_adapters.cpu.team import meet, take_task

MANY_TOKENS = 32
"""From here on rows are shared out too."""
_MAX_PANELS = 8
_MIN_BLOCKS = 8
_MAX_ROWS, _NUM_SIZES = SIZES[-1], len(SIZES)
_F32 = int(Element.F32)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled  # type: ignore[untyped-decorator]
def prepare(share: Any, source: int, values: int, stride: int, second: int, width: int, matrices: Any) -> None:
    """Make the inputs of the next products, one row a token, of what lies at `values`.

    `source` as in `numerics`; `second`: the norm's weights, or `up` of the first row.
    """
    _prepare(share, source, values, stride, second, width, matrices, share.buffers.counts[NUM_TOKENS], False)


@compiled  # type: ignore[untyped-decorator]
def prepare_sampled(share: Any, values: int, stride: int, norm: int, width: int, matrices: Any) -> None:
    """The same of those tokens that logits are wanted for, normalised."""
    _prepare(share, NORMALIZED, values, stride, norm, width, matrices, share.buffers.counts[NUM_LOGITS], True)


@compiled  # type: ignore[untyped-decorator]
def _prepare(
    share: Any, source: int, values: int, stride: int, second: int, width: int, matrices: Any, num_rows: int,
    is_sampled: bool
) -> None:  # fmt: skip
    buffers, num_blocks = share.buffers, matrices[0].num_blocks
    wants_floats = wants_blocks = False
    for matrix in matrices:
        wants_floats |= matrix.is_dense != 0
        wants_blocks |= matrix.is_dense == 0
    # few rows are cut, so that every thread has something to do
    pieces = 1 if num_rows >= share.num_threads else min(share.num_threads, max(1, num_blocks // _MIN_BLOCKS))
    size = (num_blocks + pieces - 1) // pieces
    quantized, scales, sums = buffers.quantized.ctypes.data, buffers.scales.ctypes.data, buffers.sums.ctypes.data
    floats, work = buffers.floats.ctypes.data, buffers.works[share.thread].ctypes.data
    while True:
        task = take_task(share.state)
        if task >= num_rows * pieces:
            return
        row, first = task // pieces, task % pieces * size
        count = min(size, num_blocks - first)
        if count <= 0:
            continue
        token = buffers.sampled[row] if is_sampled else row
        at = values + token * stride
        other, factor = second + token * stride, _ONE
        if source == NORMALIZED:
            other, factor = second, _norm_factor(share, at, num_blocks * (BLOCK // LANES), width, work)
        if wants_floats:
            target = floats + 4 * row * buffers.floats.shape[1]
            call_kernel(share.kernels[COPY + source], (at, other, first, count, target), factor)
        if wants_blocks:
            tile = row // PANEL * num_blocks * PANEL
            places = (quantized + tile * BLOCK, scales + 4 * tile, sums + 4 * tile)
            words = (at, other, first, count, row % PANEL, *places)
            call_kernel(share.kernels[QUANTIZE + source], words, factor)


@compiled  # type: ignore[untyped-decorator]
def _norm_factor(share: Any, at: int, num_vectors: int, width: int, work: int) -> Any:
    """1 / sqrt(mean of squares + epsilon)."""
    call_kernel(share.kernels[SUM_OF_SQUARES], (at, num_vectors, work), _ZERO)
    return _ONE / np.sqrt(read_f32(work) / np.float32(width) + share.model.epsilon)


@compiled  # type: ignore[untyped-decorator]
def multiply(share: Any, matrices: Any, num_rows: int, out: int, stride: int, adds: int, scale: Any) -> None:
    """Products of the prepared inputs with these matrices, `scale` times, added to what is there or not.

    A task is some panels by all rows, or by a part of them.
    """
    wanted = TASKS_A_THREAD * share.num_threads
    total = 0
    for matrix in matrices:
        total += matrix.num_panels
    size = min(_MAX_PANELS, max(1, total // wanted))
    groups = 0
    for matrix in matrices:
        groups += (matrix.num_panels + size - 1) // size
    parts = 1
    if num_rows >= MANY_TOKENS and groups < wanted:
        parts = min((wanted + groups - 1) // groups, num_rows // PANEL)
    rows = ((num_rows + parts - 1) // parts + PANEL - 1) // PANEL * PANEL
    while True:
        task = take_task(share.state)
        if task >= groups * parts:
            return
        first_row, group = task % parts * rows, task // parts
        last_row = min(num_rows, first_row + rows)
        for matrix in matrices:
            mine = (matrix.num_panels + size - 1) // size
            if group < mine:
                for panel in range(group * size, min(matrix.num_panels, (group + 1) * size)):
                    if matrix.is_dense:
                        _multiply_floats(share, matrix, panel, first_row, last_row, out, stride, adds, scale)
                    else:
                        _multiply_blocks(share, matrix, panel, first_row, last_row, out, stride, adds, scale)
                break
            group -= mine


@compiled  # type: ignore[untyped-decorator]
def _multiply_blocks(
    share: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any
) -> None:
    buffers = share.buffers
    quantized, scales, sums = buffers.quantized.ctypes.data, buffers.scales.ctypes.data, buffers.sums.ctypes.data
    levels = matrix.levels + panel * matrix.panel_bytes
    factors, biases = matrix.factors + panel * matrix.factor_bytes, matrix.biases + panel * matrix.factor_bytes
    columns = 4 * (matrix.out_at + panel * PANEL)
    for row in range(first_row, last_row, _MAX_ROWS):
        tile = row // PANEL * matrix.num_blocks * PANEL + row % PANEL
        kernel = share.kernels[PANELS + _NUM_SIZES * matrix.form + size_class(min(_MAX_ROWS, last_row - row))]
        inputs = (quantized + tile * BLOCK, scales + 4 * tile, sums + 4 * tile, matrix.num_blocks)
        target = (out + row * stride + columns, stride, matrix.added + 4 * panel * PANEL, adds)
        call_kernel(kernel, (levels, factors, biases, *inputs, *target), scale)


@compiled  # type: ignore[untyped-decorator]
def _multiply_floats(
    share: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any
) -> None:
    buffers = share.buffers
    floats, line = buffers.floats.ctypes.data, 4 * buffers.floats.shape[1]
    work = buffers.works[share.thread].ctypes.data
    size = 4 if matrix.form == _F32 else 2
    added = matrix.added + 4 * panel * WIDTH
    for row in range(first_row, last_row, _MAX_ROWS):
        count = min(_MAX_ROWS, last_row - row)
        kernel = share.kernels[FLOATS + _NUM_SIZES * matrix.form + size_class(count)]
        weights = (matrix.levels + panel * matrix.panel_bytes, WIDTH * size, matrix.columns)
        call_kernel(kernel, (floats + row * line, line, *weights, work, 4 * WIDTH), _ZERO)
        for i in range(count):
            target = out + (row + i) * stride + 4 * (matrix.out_at + panel * WIDTH)
            for n in range(WIDTH):
                before = read_f32(target + 4 * n) if adds else _ZERO
                found = read_f32(work + 4 * (i * WIDTH + n)) + read_f32(added + 4 * n)
                write_f32(target + 4 * n, before + scale * found)


@compiled  # type: ignore[untyped-decorator]
def add_product(share: Any, matrices: Any, norm: int, scale: Any) -> None:
    """Add a product to the residual stream, through a norm where there is one; all threads have met when it is done."""
    buffers, model, num_tokens = share.buffers, share.model, share.buffers.counts[NUM_TOKENS]
    hidden, delta, stride = buffers.hidden.ctypes.data, buffers.delta.ctypes.data, 4 * buffers.hidden.shape[1]
    if not norm:
        multiply(share, matrices, num_tokens, hidden, stride, 1, scale)
        meet(share.state, share.num_threads)
        return
    multiply(share, matrices, num_tokens, delta, stride, 0, _ONE)
    meet(share.state, share.num_threads)
    work = buffers.works[share.thread].ctypes.data
    while True:
        token = take_task(share.state)
        if token >= num_tokens:
            break
        at, target = delta + token * stride, hidden + token * stride
        factor = scale * _norm_factor(share, at, stride // (4 * LANES), model.width, work)
        for k in range(model.width):
            x = read_f32(at + 4 * k) * factor * read_f32(norm + 4 * k)
            write_f32(target + 4 * k, read_f32(target + 4 * k) + x)
    meet(share.state, share.num_threads)


@compiled  # type: ignore[untyped-decorator]
def norm_or_plain(norm: int) -> int:
    """The source of inputs that a norm may come before."""
    return NORMALIZED if norm else PLAIN
