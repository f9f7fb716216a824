"""Rows of float weights → the blocks of 32 that `com.microsoft.MatMulNBits` multiplies by: 8 bits, or 4.

8 bits are symmetric: a block's largest weight is level 127 or -127, as in GGUF's Q8_0. 4 bits have a scale and a whole
zero point, which every runtime multiplies by at full speed, and both are searched for: each candidate range rounds the
weights to levels, least squares fits the scale to these levels, and the candidate with the smallest weighted error
wins (as llama.cpp searches, ggml-quants.c: make_qkx2_quants; large weights count more).

Blocks are columns here (`[32, blocks]`): a sum over a block is then a sum of long rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Weights that share a scale."""
_CHUNK = 4096
"""Blocks that are worked on at a time: few enough that all that is computed of them stays in a core's cache."""
_TOP = 15
_LEAST_SPAN = 1e-30
_SHARES = tuple(1.1 - 0.05 * step for step in range(10))
"""Of the span from a block's lowest to its highest weight, the part that the levels are laid over."""

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantised rows: `weight = scale * (level - zero point)`."""

    levels: _Bytes
    """`[rows, groups, 32]`."""
    scales: _Floats
    """`[rows, groups]`."""
    zero_points: _Bytes | None
    """`[rows, groups]`; `None` means the middle, `2 ** (bits - 1)`."""

    def weights(self, bits: int) -> _Floats:
        """What they stand for: `[rows, groups * 32]`."""
        zero = np.float32(2 ** (bits - 1)) if self.zero_points is None else self.zero_points[:, :, None]
        found: _Floats = (self.levels.astype(np.float32) - zero) * self.scales[:, :, None]
        return found.reshape(len(found), -1)


def quantize_blocks(rows: _Floats, bits: int) -> Blocks:
    """Blocks of 8 or 4 bits of float32 `[n, k]`, k being whole blocks; all weights are numbers."""
    return _eight_bits(rows) if bits == 8 else _four_bits(rows)


def _eight_bits(rows: _Floats) -> Blocks:
    groups = rows.reshape(len(rows), -1, BLOCK)
    scales = _or_zero(np.abs(groups).max(axis=2)) / np.float32(127)
    levels = np.rint(_divide(groups, scales[:, :, None])) + np.float32(128)
    return Blocks(levels.astype(np.uint8), scales, None)


def _four_bits(rows: _Floats) -> Blocks:
    shape = (len(rows), rows.shape[1] // BLOCK)
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, BLOCK)
    scales, zeros = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.uint8)
    levels = np.empty(blocks.shape, np.uint8)
    for start in range(0, len(blocks), _CHUNK):
        part = slice(start, start + _CHUNK)
        x = np.ascontiguousarray(blocks[part].T)
        scale, zero = _search(x)
        scales[part], zeros[part] = scale, zero
        levels[part] = _levels(x, _divide(np.ones_like(scale), scale), zero).T
    return Blocks(levels.reshape(*shape, BLOCK), scales.reshape(shape), zeros.reshape(shape))


def _search(x: _Floats) -> tuple[_Floats, _Floats]:
    """Scale ≥ 0 and zero point, 0 to 15, of each block in `x` `[32, blocks]`. A block of zeros has scale 0."""
    importance = np.sqrt(np.mean(x * x, axis=0, keepdims=True)) + np.abs(x)
    wx = importance * x
    low, high = np.minimum(x.min(axis=0), np.float32(0)), np.maximum(x.max(axis=0), np.float32(0))
    span = _or_zero(high - low)
    best, scales, zeros = np.zeros(x.shape[1]), np.zeros_like(low), np.full_like(low, 8)
    for share in _SHARES:
        inverse = _divide(np.full_like(low, _TOP / share), span)
        # the part that is cut off is cut off at both ends
        middle = (high + low) / 2
        zero = np.clip(np.rint(np.float32(_TOP / 2) - middle * inverse), 0, _TOP)
        centred = _levels(x, inverse, zero) - zero
        sum_xl, sum_ll = _dot(wx, centred), _dot(importance * centred, centred)
        gain = _divide(sum_xl * sum_xl, sum_ll)  # how much less than the sum of w x² the error is
        is_better = (gain > best) & (sum_xl > 0)
        best = np.where(is_better, gain, best)
        scales = np.where(is_better, _divide(sum_xl, sum_ll), scales).astype(np.float32)
        zeros = np.where(is_better, zero, zeros)
    return scales, zeros


def _or_zero(spans: _Floats) -> _Floats:
    """What is too small to divide by counts as nothing."""
    return np.where(spans < _LEAST_SPAN, np.float32(0), spans)


def _levels(x: _Floats, inverse: _Floats, zero: _Floats) -> _Floats:
    levels: _Floats = np.clip(np.rint(x * inverse) + zero, 0, _TOP)
    return levels


def _dot(first: _Floats, second: _Floats) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.einsum("ig,ig->g", first, second).astype(np.float64)
    return total


def _divide(dividend: NDArray[np.floating], divisor: NDArray[np.floating]) -> NDArray[np.floating]:
    """A quotient, 0 where there is nothing to divide by."""
    is_zero = divisor == 0
    return np.where(is_zero, 0, dividend / np.where(is_zero, 1, divisor))
