"""Rows of floats → GGUF's quantised blocks: the super-block types Q4_K, Q5_K and Q6_K, and all that gguf makes itself.

A super-block is 256 weights in groups of 16 or 32. Each group's scale (and minimum) is searched for: a range of
candidates around the obvious one rounds the weights to levels, least squares fits scale and minimum to these levels,
and the candidate with the smallest weighted error wins (llama.cpp, ggml-quants.c: make_qkx2_quants, make_qx_quants;
large weights count more). Then the groups' scales are themselves rounded to 6 or 8 bits of the super-block's, and the
levels are taken anew for what they became.

Every error is computed from a few sums a group, so a candidate costs one pass over the weights. Groups are columns
here (`[group size, groups]`): a sum over a group is then a sum of long rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]
_Float = TypeVar("_Float", np.float32, np.float64)
_SUPER_BLOCK = 256
_CHUNK_BLOCKS = 256
"""Super-blocks that are worked on at a time: few enough that all that is computed of them stays in a core's cache."""
MAX_WEIGHT = 65504.0
"""Scales are float16; larger weights have none."""


def quantize_rows(kind: GGMLQuantizationType, rows: _Floats) -> _Bytes:
    """Blocks of `kind`, uint8 `[n, row bytes]`, of `rows`, float32 `[n, k]`, k being whole blocks.

    All weights are at most `MAX_WEIGHT` and numbers: the caller has looked.
    """
    if kind not in _K_QUANTS:
        with np.errstate(all="ignore"):  # a block of zeros has no scale to divide by
            blocks: _Bytes = quants.quantize(rows, kind)
        return blocks
    quantize = _K_QUANTS[kind]
    weights = np.ascontiguousarray(rows, np.float32).reshape(-1, _SUPER_BLOCK)
    packed = np.empty((len(weights), GGML_QUANT_SIZES[kind][1]), np.uint8)
    for start in range(0, len(weights), _CHUNK_BLOCKS):
        packed[start : start + _CHUNK_BLOCKS] = quantize(weights[start : start + _CHUNK_BLOCKS])
    return packed.reshape(len(rows), -1)


@dataclass(frozen=True, slots=True)
class _Search:
    """The candidates for a group of 32 with levels 0 to `top`: what its span is divided by."""

    top: int
    spans: tuple[float, ...]


_FOUR_BITS = _Search(15, tuple(15 - 1 + 0.1 * step for step in range(21)))
_FIVE_BITS = _Search(31, tuple(31 - 0.5 + 0.1 * step for step in range(16)))
_SIX_BIT_SPANS = tuple(32 + 0.1 * step for step in (0, *range(-9, 0), *range(1, 10)))


def _q4_k(weights: _Floats) -> _Bytes:
    header, levels = _affine(weights, _FOUR_BITS)
    return np.concatenate([header, _halves(levels)], axis=1)


def _q5_k(weights: _Floats) -> _Bytes:
    header, levels = _affine(weights, _FIVE_BITS)
    high = np.packbits(levels.transpose(0, 2, 1) >> np.uint8(4), axis=2, bitorder="little")[:, :, 0]
    return np.concatenate([header, high, _halves(levels & np.uint8(15))], axis=1)


def _halves(levels: _Bytes) -> _Bytes:
    """4-bit levels `[blocks, 8, 32]` to bytes `[blocks, 128]`: two groups share 32 bytes, first the low bits."""
    return (levels[:, ::2] | levels[:, 1::2] << np.uint8(4)).reshape(len(levels), -1)


def _q6_k(weights: _Floats) -> _Bytes:
    scales = _search_symmetric(np.ascontiguousarray(weights.reshape(-1, 16).T)).reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    inverse = _divide(-128.0, largest)
    steps = np.minimum(np.rint(inverse * scales), 127).astype(np.int8)
    whole = _divide(1.0, inverse).astype(np.float16)
    groups = whole.astype(np.float32)[:, :, None] * steps.astype(np.float32)[:, :, None]
    signed = np.clip(np.rint(_divide(weights.reshape(-1, 16, 16), groups)), -32, 31)
    levels = (signed.astype(np.int8) + np.int8(32)).view(np.uint8).reshape(-1, 2, 4, 32)
    low = levels[:, :, :2] & np.uint8(15) | levels[:, :, 2:] << np.uint8(4)
    high = np.bitwise_or.reduce(levels >> np.uint8(4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None], axis=2)
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), steps.view(np.uint8), whole.view(np.uint8))
    return np.concatenate(parts, axis=1)


def _affine(weights: _Floats, search: _Search) -> tuple[_Bytes, _Bytes]:
    """The first 16 bytes of super-blocks `[blocks, 16]` and the levels `[blocks, 8, 32]`, for `d sc level - dmin m`."""
    scales, minima = _search_affine(np.ascontiguousarray(weights.reshape(-1, 32).T), search)
    scale, scale_steps = _six_bits(scales.reshape(-1, 8))
    minimum, minimum_steps = _six_bits(minima.reshape(-1, 8))
    groups = weights.reshape(-1, 8, 32)
    step = scale.astype(np.float32) * scale_steps
    raised = groups + (minimum.astype(np.float32) * minimum_steps)[:, :, None]
    levels = np.clip(np.rint(_divide(raised, step[:, :, None])), 0, search.top).astype(np.uint8)
    header = (scale.view(np.uint8), minimum.view(np.uint8), _pack_six_bits(scale_steps, minimum_steps))
    return np.concatenate(header, axis=1), levels


def _six_bits(values: _Doubles) -> tuple[NDArray[np.float16], _Bytes]:
    """Eight numbers ≥ 0 a super-block as multiples, 0 to 63, of one: float16 `[blocks, 1]`, uint8 `[blocks, 8]`."""
    largest = values.max(axis=1, keepdims=True)
    steps = np.clip(np.rint(_divide(63.0, largest) * values), 0, 63).astype(np.uint8)
    return (largest / 63).astype(np.float16), steps


def _pack_six_bits(scales: _Bytes, minima: _Bytes) -> _Bytes:
    """Eight 6-bit scales and minima to 12 bytes (ggml: `get_scale_min_k4`): the last four's upper bits lie apart."""
    first = scales[:, :4] | scales[:, 4:] >> np.uint8(4) << np.uint8(6)
    second = minima[:, :4] | minima[:, 4:] >> np.uint8(4) << np.uint8(6)
    third = scales[:, 4:] & np.uint8(15) | minima[:, 4:] << np.uint8(4)
    return np.concatenate([first, second, third], axis=1)


def _search_affine(x: _Floats, search: _Search) -> tuple[_Doubles, _Doubles]:
    """Scale and minimum, both ≥ 0, of each group in `x` `[32, groups]`: `x ≈ scale * level - minimum`.

    The best candidate's minimum is where the next one's levels start, so the range moves while it is searched.
    """
    importance = np.sqrt(np.mean(x * x, axis=0)) + np.abs(x)
    low, high = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    wx = importance * x
    sum_w, sum_x, sum_xx = _sum(importance), _sum(wx), _dot(wx, x)
    best = np.full(x.shape[1], np.inf)
    scales, levels, weighted = np.zeros_like(best), np.empty_like(x), np.empty_like(x)
    for index, candidate in enumerate((float(search.top), *search.spans)):
        inverse = _divide(candidate, high - low)
        np.subtract(x, low, out=levels)
        np.multiply(levels, inverse, out=levels)
        np.clip(np.rint(levels, out=levels), 0, search.top, out=levels)
        np.multiply(importance, levels, out=weighted)
        sum_l, sum_ll, sum_xl = _sum(weighted), _dot(weighted, levels), _dot(wx, levels)
        determinant = sum_w * sum_ll - sum_l * sum_l
        if index == 0:  # the obvious range, as it is
            scale, offset = _divide(1.0, inverse.astype(np.float64)), low.astype(np.float64)
        else:
            scale = _divide(sum_w * sum_xl - sum_x * sum_l, determinant)
            offset = _divide(sum_ll * sum_x - sum_l * sum_xl, determinant)
            scale = np.where(offset > 0, _divide(sum_xl, sum_ll), scale)  # a group can only be lowered: it starts at 0
            offset = np.minimum(offset, 0)
        # sum of w (scale l + offset - x)², multiplied out
        error = scale * (scale * sum_ll + 2 * offset * sum_l - 2 * sum_xl)
        error += offset * (offset * sum_w - 2 * sum_x) + sum_xx
        is_better = (error < best) & (determinant > 0)
        best = np.where(is_better, error, best)
        scales = np.where(is_better, scale, scales)
        low = np.where(is_better, offset, low).astype(np.float32)
    return np.maximum(scales, 0), -low.astype(np.float64)


def _search_symmetric(x: _Floats) -> _Doubles:
    """The scale of each group in `x` `[16, groups]`, of either sign: `x ≈ scale * level` with levels -32 to 31."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    xxx = x * x * x  # large weights count more: by their square
    xx = x * x
    best, scales = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    levels, weighted = np.empty_like(x), np.empty_like(x)
    for candidate in _SIX_BIT_SPANS:
        np.multiply(x, _divide(-candidate, peak), out=levels)
        np.clip(np.rint(levels, out=levels), -32, 31, out=levels)
        np.multiply(xx, levels, out=weighted)
        sum_xl, sum_ll = _dot(xxx, levels), _dot(weighted, levels)
        gain = _divide(sum_xl * sum_xl, sum_ll)
        is_better = gain > best
        best = np.where(is_better, gain, best)
        scales = np.where(is_better, _divide(sum_xl, sum_ll), scales)
    return scales


def _sum(values: _Floats) -> _Doubles:
    total: _Doubles = values.sum(axis=0).astype(np.float64)
    return total


def _dot(first: _Floats, second: _Floats) -> _Doubles:
    total: _Doubles = np.einsum("ig,ig->g", first, second).astype(np.float64)
    return total


def _divide(dividend: NDArray[_Float] | float, divisor: NDArray[_Float]) -> NDArray[_Float]:
    """A quotient, 0 where there is nothing to divide by."""
    is_zero = divisor == 0
    return np.where(is_zero, 0, dividend / np.where(is_zero, 1, divisor)).astype(divisor.dtype)


_K_QUANTS: dict[GGMLQuantizationType, Callable[[_Floats], _Bytes]] = {
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}
