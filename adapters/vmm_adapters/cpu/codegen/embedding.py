"""Rows of the embedding, from the panels that the products read: one packed matrix serves both."""

from typing import Any

import numpy as np

from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.memory import from_bfloat16, from_half, read_f32, read_i64, read_u8, read_u16, write_f32
from vmm_adapters.cpu.codegen.team import finish, take_task
from vmm_adapters.cpu.formats import BLOCK, FORMS, PANEL, WIDTH, Element

_BITS, _FACTORS = (np.array(numbers) for numbers in zip(*((f.bits, f.num_factors) for f in FORMS), strict=True))
_IS_WIDE = np.array([form.has_wide_factors for form in FORMS])
_IS_BIASED = np.array([form.has_biases for form in FORMS])
_F32, _F16 = int(Element.F32), int(Element.F16)


@compiled  # type: ignore[untyped-decorator]
def embed(share: Any, phase: int, matrix: Any) -> None:
    """Rows of the matrix, widened, into the residual stream."""
    step, scale = share.step, share.model.embedding_scale
    num_done = 0
    while True:
        token = take_task(share, phase, step.num_tokens)
        if token < 0:
            break
        num_done += 1
        row, out = read_i64(step.token_ids + 8 * token), step.hidden + token * step.hidden_stride
        if matrix.is_dense:
            at = matrix.levels + row // WIDTH * matrix.panel_bytes
            for k in range(matrix.columns):
                write_f32(out + 4 * k, _dense(matrix.form, at, k * WIDTH + row % WIDTH) * scale)
        else:
            _embed_blocks(matrix, row, out, scale)
    finish(share, phase, step.num_tokens, num_done)


@compiled  # type: ignore[untyped-decorator]
def _dense(element: int, at: int, index: int) -> Any:
    if element == _F32:
        return read_f32(at + 4 * index)
    if element == _F16:
        return from_half(read_u16(at + 2 * index))
    return from_bfloat16(read_u16(at + 2 * index))


@compiled  # type: ignore[untyped-decorator]
def _embed_blocks(matrix: Any, row: int, out: int, scale: Any) -> None:
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
            write_f32(out + 4 * k, (factor * np.float32(level) + bias) * scale)
        else:
            write_f32(out + 4 * k, factor * np.float32(level - (1 << (bits - 1))) * scale)
