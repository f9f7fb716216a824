"""The phases of a step that multiply: inputs are prepared, and panels of the matrices shared out.

Several matrices may take the same inputs: those from `first` to before `last`.
"""

from typing import Any

import numpy as np

from vmm_adapters.cpu.codegen.attention import size_class
from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.kernels import COPY, FLOATS, PANELS, QUANTIZE, SIZES, SUM_OF_SQUARES
from vmm_adapters.cpu.codegen.memory import call_kernel, read_f32, read_i64, write_f32
from vmm_adapters.cpu.codegen.numerics import LANES, NORMALIZED
from vmm_adapters.cpu.codegen.team import finish, take_task
from vmm_adapters.cpu.formats import BLOCK, PANEL, WIDTH, Element
from vmm_adapters.cpu.share import TASKS_A_THREAD

MANY_TOKENS = 32
"""From here on rows are shared out too."""
_MAX_PANELS = 8
_MIN_BLOCKS = 8
_MAX_ROWS, _NUM_SIZES = SIZES[-1], len(SIZES)
_F32 = int(Element.F32)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled  # type: ignore[untyped-decorator]
def prepare(
    share: Any, phase: int, source: int, values: int, stride: int, second: int, matrices: Any, first: int, last: int,
    is_sampled: bool
) -> None:  # fmt: skip
    """Make inputs of what lies at `values` for each token, or for each that logits are wanted for.

    `source` as in `numerics`; `second`: the norm's weights, or `up` of the first token.
    """
    step, num_blocks = share.step, matrices[first].num_blocks
    num_rows = step.num_logits if is_sampled else step.num_tokens
    wants_floats = wants_blocks = False
    for index in range(first, last):
        wants_floats |= matrices[index].is_dense != 0
        wants_blocks |= matrices[index].is_dense == 0
    # few rows are cut, so that every thread has something to do
    pieces = 1 if num_rows >= share.num_threads else min(share.num_threads, max(1, num_blocks // _MIN_BLOCKS))
    size = (num_blocks + pieces - 1) // pieces
    num_done = 0
    while True:
        task = take_task(share, phase, num_rows * pieces)
        if task < 0:
            break
        num_done += 1
        row, block = task // pieces, task % pieces * size
        count = min(size, num_blocks - block)
        if count <= 0:
            continue
        token = read_i64(step.sampled + 8 * row) if is_sampled else row
        at = values + token * stride
        other, factor = second + token * stride, _ONE
        if source == NORMALIZED:
            other, factor = second, _norm_factor(share, at, num_blocks * (BLOCK // LANES))
        if wants_floats:
            words = (at, other, block, count, step.floats + row * step.floats_stride)
            call_kernel(share.kernels, COPY + source, words, factor)
        if wants_blocks:
            tile = row // PANEL * num_blocks * PANEL
            places = (step.quantized + tile * BLOCK, step.scales + 4 * tile, step.sums + 4 * tile)
            call_kernel(share.kernels, QUANTIZE + source, (at, other, block, count, row % PANEL, *places), factor)
    finish(share, phase, num_rows * pieces, num_done)


@compiled  # type: ignore[untyped-decorator]
def _norm_factor(share: Any, at: int, num_vectors: int) -> Any:
    """1 / sqrt(mean of squares + epsilon)."""
    work = share.step.works + share.thread * share.step.work_stride
    call_kernel(share.kernels, SUM_OF_SQUARES, (at, num_vectors, work), _ZERO)
    return _ONE / np.sqrt(read_f32(work) / np.float32(share.model.width) + share.model.epsilon)


@compiled  # type: ignore[untyped-decorator]
def multiply(
    share: Any,
    phase: int,
    matrices: Any,
    first: int,
    last: int,
    num_rows: int,
    out: int,
    stride: int,
    adds: int,
    scale: Any,
) -> None:
    """Products of the prepared inputs, `scale` times, added to what is there or not. One row an input.

    A task is some panels by all rows, or by a part of them.
    """
    wanted = TASKS_A_THREAD * share.num_threads
    total = 0
    for index in range(first, last):
        total += matrices[index].num_panels
    size = min(_MAX_PANELS, max(1, total // wanted))
    groups = 0
    for index in range(first, last):
        groups += (matrices[index].num_panels + size - 1) // size
    parts = 1
    if num_rows >= MANY_TOKENS and groups < wanted:
        parts = min((wanted + groups - 1) // groups, num_rows // PANEL)
    rows = ((num_rows + parts - 1) // parts + PANEL - 1) // PANEL * PANEL
    num_done = 0
    while True:
        task = take_task(share, phase, groups * parts)
        if task < 0:
            break
        num_done += 1
        group, index = task // parts, first
        while group >= (matrices[index].num_panels + size - 1) // size:
            group -= (matrices[index].num_panels + size - 1) // size
            index += 1
        matrix = matrices[index]
        first_row = task % parts * rows
        last_row = min(num_rows, first_row + rows)
        for panel in range(group * size, min(matrix.num_panels, (group + 1) * size)):
            if matrix.is_dense:
                _multiply_floats(share, matrix, panel, first_row, last_row, out, stride, adds, scale)
            else:
                _multiply_blocks(share, matrix, panel, first_row, last_row, out, stride, adds, scale)
    finish(share, phase, groups * parts, num_done)


@compiled  # type: ignore[untyped-decorator]
def _multiply_blocks(
    share: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any
) -> None:
    step = share.step
    factors = panel * matrix.factor_bytes
    weights = (matrix.levels + panel * matrix.panel_bytes, matrix.factors + factors, matrix.biases + factors)
    columns = 4 * (matrix.out_at + panel * PANEL)
    for row in range(first_row, last_row, _MAX_ROWS):
        tile = row // PANEL * matrix.num_blocks * PANEL + row % PANEL
        inputs = (step.quantized + tile * BLOCK, step.scales + 4 * tile, step.sums + 4 * tile, matrix.num_blocks)
        target = (out + row * stride + columns, stride, matrix.added + 4 * panel * PANEL, adds)
        kernel = PANELS + _NUM_SIZES * matrix.form + size_class(min(_MAX_ROWS, last_row - row))
        call_kernel(share.kernels, kernel, (*weights, *inputs, *target), scale)


@compiled  # type: ignore[untyped-decorator]
def _multiply_floats(
    share: Any, matrix: Any, panel: int, first_row: int, last_row: int, out: int, stride: int, adds: int, scale: Any
) -> None:
    step = share.step
    work = step.works + share.thread * step.work_stride
    size = 4 if matrix.form == _F32 else 2
    weights = (matrix.levels + panel * matrix.panel_bytes, WIDTH * size, matrix.columns)
    added = matrix.added + 4 * panel * WIDTH
    for row in range(first_row, last_row, _MAX_ROWS):
        count = min(_MAX_ROWS, last_row - row)
        kernel = FLOATS + _NUM_SIZES * matrix.form + size_class(count)
        inputs = (step.floats + row * step.floats_stride, step.floats_stride)
        call_kernel(share.kernels, kernel, (*inputs, *weights, work, 4 * WIDTH), _ZERO)
        for i in range(count):
            target = out + (row + i) * stride + 4 * (matrix.out_at + panel * WIDTH)
            for n in range(WIDTH):
                before = read_f32(target + 4 * n) if adds else _ZERO
                found = read_f32(work + 4 * (i * WIDTH + n)) + read_f32(added + 4 * n)
                write_f32(target + 4 * n, before + scale * found)


@compiled  # type: ignore[untyped-decorator]
def add_product(share: Any, phase: int, matrices: Any, index: int, norm: int, scale: Any) -> None:
    """Add a product to the residual stream, in one phase, or in two where a norm comes before it is added."""
    step, width = share.step, share.model.width
    stride = step.hidden_stride
    if not norm:
        multiply(share, phase, matrices, index, index + 1, step.num_tokens, step.hidden, stride, 1, scale)
        return
    multiply(share, phase, matrices, index, index + 1, step.num_tokens, step.delta, stride, 0, _ONE)
    num_done = 0
    while True:
        token = take_task(share, phase + 1, step.num_tokens)
        if token < 0:
            break
        num_done += 1
        at, target = step.delta + token * stride, step.hidden + token * stride
        factor = scale * _norm_factor(share, at, stride // (4 * LANES))
        for k in range(width):
            x = read_f32(at + 4 * k) * factor * read_f32(norm + 4 * k)
            write_f32(target + 4 * k, read_f32(target + 4 * k) + x)
    finish(share, phase + 1, step.num_tokens, num_done)
