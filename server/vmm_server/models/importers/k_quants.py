"""Rows of floats → GGUF's quantised blocks: the super-block types Q4_K, Q5_K and Q6_K, and all that gguf makes itself.

A super-block is 256 weights in groups of 16 or 32. Each group's scale (and minimum) is searched for: a range of
candidates around the obvious one rounds the weights to levels, least squares fits scale and minimum to these levels,
and the candidate with the smallest weighted error wins (llama.cpp, ggml-quants.c: make_qkx2_quants, make_qx_quants;
large weights count more). Then the groups' scales are themselves rounded, to 6 or 8 bits of the super-block's, and the
levels are taken anew for what they became. Last, and here we go beyond llama.cpp, least squares fits the super-block's
own scale (and minimum) to all its levels.

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
_Halves = NDArray[np.float16]
_Float = TypeVar("_Float", np.float32, np.float64)
_SUPER_BLOCK = 256
_CHUNK_BLOCKS = 256
"""Super-blocks that are worked on at a time: few enough that all that is computed of them stays in a core's cache."""
_LEAST_SPREAD = 1e-5
"""Of a group's levels, as a part of their mean square, that is no error of rounding."""
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
    return np.concatenate([header, _nibbles(levels)], axis=1)


def _q5_k(weights: _Floats) -> _Bytes:
    header, levels = _affine(weights, _FIVE_BITS)
    high = np.packbits(levels.transpose(0, 2, 1) >> np.uint8(4), axis=2, bitorder="little")[:, :, 0]
    return np.concatenate([header, high, _nibbles(levels & np.uint8(15))], axis=1)


def _nibbles(levels: _Bytes) -> _Bytes:
    """4-bit levels `[blocks, 8, 32]` to bytes `[blocks, 128]`: two groups share 32 bytes, first the low bits."""
    return (levels[:, ::2] | levels[:, 1::2] << np.uint8(4)).reshape(len(levels), -1)


def _q6_k(weights: _Floats) -> _Bytes:
    scales = _search_symmetric(np.ascontiguousarray(weights.reshape(-1, 16).T)).reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    inverse = _divide(-128.0, largest)
    steps = np.minimum(np.rint(inverse * scales), 127)
    whole = _divide(1.0, inverse).astype(np.float16)
    groups = weights.reshape(-1, 16, 16)
    signed = _signed_levels(groups, whole, steps)
    weighted = _importance(groups, axis=2) * signed
    # the scale that fits these levels best, by least squares, and the levels that fit that one
    refitted = _divide(
        (_group_dot(weighted, groups) * steps).sum(axis=1), (_group_dot(weighted, signed) * steps * steps).sum(axis=1)
    )
    whole = np.where(refitted == 0, whole[:, 0], refitted).astype(np.float16)[:, None]
    levels = (_signed_levels(groups, whole, steps).astype(np.int8) + np.int8(32)).view(np.uint8).reshape(-1, 2, 4, 32)
    low = levels[:, :, :2] & np.uint8(15) | levels[:, :, 2:] << np.uint8(4)
    high = np.bitwise_or.reduce(levels >> np.uint8(4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None], axis=2)
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), steps.astype(np.int8).view(np.uint8), whole.view(np.uint8))
    return np.concatenate(parts, axis=1)


def _signed_levels(groups: _Floats, whole: _Halves, steps: _Doubles) -> _Floats:
    """-32 to 31, for weights `[blocks, 16, 16]` and the scales of their super-blocks and groups."""
    scales = (whole.astype(np.float32) * steps.astype(np.float32))[:, :, None]
    levels: _Floats = np.clip(np.rint(_divide(groups, scales)), -32, 31)
    return levels


def _affine(weights: _Floats, search: _Search) -> tuple[_Bytes, _Bytes]:
    """The first 16 bytes of super-blocks `[blocks, 16]` and the levels `[blocks, 8, 32]`, for `d sc level - dmin m`."""
    scales, minima = _search_affine(np.ascontiguousarray(weights.reshape(-1, 32).T), search)
    (scale, scale_steps), (minimum, minimum_steps) = _six_bits(scales.reshape(-1, 8)), _six_bits(minima.reshape(-1, 8))
    groups = weights.reshape(-1, 8, 32)
    levels = _levels(groups, scale * scale_steps, minimum * minimum_steps, search.top)
    scale, minimum = _refit(groups, levels, scale_steps, minimum_steps, (scale, minimum))
    levels = _levels(groups, scale * scale_steps, minimum * minimum_steps, search.top)
    header = (
        scale.astype(np.float16).view(np.uint8),
        minimum.astype(np.float16).view(np.uint8),
        _pack_six_bits(scale_steps, minimum_steps),
    )
    return np.concatenate(header, axis=1), levels.astype(np.uint8)


def _levels(groups: _Floats, scales: _Floats, minima: _Floats, top: int) -> _Floats:
    """0 to `top`, for weights `[blocks, 8, 32]` and the scales and minima `[blocks, 8]` of their groups."""
    levels: _Floats = np.clip(np.rint(_divide(groups + minima[:, :, None], scales[:, :, None])), 0, top)
    return levels


def _refit(
    groups: _Floats, levels: _Floats, scale_steps: _Bytes, minimum_steps: _Bytes, found: tuple[_Floats, _Floats]
) -> tuple[_Floats, _Floats]:
    """The scale and minimum of each super-block that fit its levels best, by least squares; else those `found`."""
    importance = _importance(groups, axis=2)
    weighted = importance * levels
    a, b = scale_steps.astype(np.float64), minimum_steps.astype(np.float64)
    sum_aa = (a * a * _group_dot(weighted, levels)).sum(axis=1, keepdims=True)
    sum_ab = (a * b * weighted.sum(axis=2)).sum(axis=1, keepdims=True)
    sum_bb = (b * b * importance.sum(axis=2)).sum(axis=1, keepdims=True)
    sum_ax = (a * _group_dot(weighted, groups)).sum(axis=1, keepdims=True)
    sum_bx = (b * _group_dot(importance, groups)).sum(axis=1, keepdims=True)
    determinant = sum_aa * sum_bb - sum_ab * sum_ab
    scale = _divide(sum_ax * sum_bb - sum_ab * sum_bx, determinant)
    minimum = _divide(sum_ab * sum_ax - sum_aa * sum_bx, determinant)
    is_fit = (scale > 0) & (minimum > 0)
    return _as_halves(np.where(is_fit, scale, found[0])), _as_halves(np.where(is_fit, minimum, found[1]))


def _six_bits(values: _Doubles) -> tuple[_Floats, _Bytes]:
    """Eight numbers ≥ 0 a super-block as multiples, 0 to 63, of one: `[blocks, 1]`, and uint8 `[blocks, 8]`."""
    largest = values.max(axis=1, keepdims=True)
    steps = np.clip(np.rint(_divide(63.0, largest) * values), 0, 63).astype(np.uint8)
    return _as_halves(largest / 63), steps


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
    importance = _importance(x, axis=0)
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
        is_better = error < best
        if index > 0:  # levels that are all the same fit any line
            is_better &= determinant > _LEAST_SPREAD * sum_w * sum_ll
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


def _importance(groups: _Floats, axis: int) -> _Floats:
    """What a weight's error counts: more for large weights. `axis` is the one along a group."""
    size = np.abs(groups)
    weights: _Floats = np.sqrt(np.mean(groups * groups, axis=axis, keepdims=True)) + size
    return weights


def _as_halves(values: _Doubles) -> _Floats:
    """Rounded to what float16 can hold."""
    return values.astype(np.float16).astype(np.float32)


def _group_dot(first: _Floats, second: _Floats) -> _Doubles:
    """Of groups that are rows: `[blocks, groups]`."""
    total: _Doubles = np.einsum("bgi,bgi->bg", first, second).astype(np.float64)
    return total


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
