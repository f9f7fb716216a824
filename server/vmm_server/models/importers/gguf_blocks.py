"""GGUF's quantised blocks, taken apart without changing a single weight.

Every format below is, per group of 16 or 32 weights along a row, `weight = scale * level + offset` with small
integer levels. `decode` returns exactly those three; the layouts are those of ggml-quants.c and
ggml-common.h. The super-block formats (`_K`, 256 weights) keep a float16 scale of the whole and small integer
scales a group; their product is exact in float32, so nothing is rounded here either.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of one tensor piece: `weight = scale * (level - centre) + offset`, `centre` being the format's."""

    levels: _Bytes
    """uint8 `[groups, group_size]`."""
    scales: _Floats
    """float32 `[groups]`."""
    offsets: _Floats | None
    """float32 `[groups]`, or `None` for a format without."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One of GGUF's quantised types."""

    bits: int
    """Levels are below `2 ** bits`."""
    group_size: int
    """Weights that share a scale."""
    centre: int
    """The level that stands for a weight of 0 (plus the offset)."""
    affine: bool
    """Whether groups have offsets."""
    decode: Callable[[_Bytes], Groups]
    """Raw blocks, uint8 `[blocks, block bytes]`, to groups in the order of the weights."""


_IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8).view(
    np.uint8
) ^ np.uint8(0x80)
"""What the sixteen indices of IQ4_NL and IQ4_XS stand for (ggml: `kvalues_iq4nl`), in offset binary."""


def _halves(blocks: _Bytes, start: int) -> _Floats:
    """The float16 at byte `start` of every block, as float32 `[blocks]`."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)[:, 0].astype(np.float32)


def _nibbles(packed: _Bytes) -> _Bytes:
    """Bytes `[n, b]` to levels `[n, 2 b]`: all low nibbles first, then all high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(packed: _Bytes) -> _Bytes:
    """Four bytes, 32 bits in order, to what they add to 5-bit levels: `[n, 32]`, 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _bit_planes(packed: _Bytes, bits: int) -> _Bytes:
    """`[..., b]` bytes to `[..., 8 / bits, b]` levels: the lowest bits of all bytes come first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8(2**bits - 1)


def _q4_0(blocks: _Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 2:]), _halves(blocks, 0), None)


def _q4_1(blocks: _Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(blocks: _Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), _halves(blocks, 0), None)


def _q5_1(blocks: _Bytes) -> Groups:
    levels = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Groups(levels, _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: _Bytes) -> Groups:
    return Groups(blocks[:, 2:] ^ np.uint8(0x80), _halves(blocks, 0), None)  # int8 to offset binary


def _iq4_nl(blocks: _Bytes) -> Groups:
    return Groups(_IQ4_LEVELS[_nibbles(blocks[:, 2:])], _halves(blocks, 0), None)


def _iq4_xs(blocks: _Bytes) -> Groups:
    low = np.stack([blocks[:, 4:8] & 0x0F, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = ((blocks[:, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & np.uint8(3)).reshape(-1, 8)
    scales = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
    levels = _IQ4_LEVELS[_bit_planes(blocks[:, 8:].reshape(-1, 8, 16), 4)]
    return _super_block(levels, 32, _halves(blocks, 0), scales)


def _q2_k(blocks: _Bytes) -> Groups:
    scales, mins = blocks[:, :16] & 0x0F, blocks[:, :16] >> 4
    levels = _bit_planes(blocks[:, 16:80].reshape(-1, 2, 32), 2)
    return _super_block(levels, 16, _halves(blocks, 80), scales, _halves(blocks, 82), mins)


def _q3_k(blocks: _Bytes) -> Groups:
    low = _bit_planes(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    high = _bit_planes(blocks[:, :32], 1).reshape(-1, 2, 4, 32) << np.uint8(2)
    packed = blocks[:, 96:108]
    scales = _nibbles(packed[:, :8]) | (_bit_planes(packed[:, 8:], 2).reshape(-1, 16) << np.uint8(4))
    return _super_block(low | high, 16, _halves(blocks, 108), scales.astype(np.int8) - np.int8(32))


def _six_bit_scales(packed: _Bytes) -> tuple[_Bytes, _Bytes]:
    """Twelve bytes to eight 6-bit scales and eight 6-bit minima (ggml: `get_scale_min_k4`)."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 0x0F) | (first >> 6) << np.uint8(4)], axis=1)
    mins = np.concatenate([second & 63, third >> 4 | (second >> 6) << np.uint8(4)], axis=1)
    return scales, mins


def _q4_k(blocks: _Bytes) -> Groups:
    scales, mins = _six_bit_scales(blocks[:, 4:16])
    levels = _bit_planes(blocks[:, 16:].reshape(-1, 4, 32), 4)
    return _super_block(levels, 32, _halves(blocks, 0), scales, _halves(blocks, 2), mins)


def _q5_k(blocks: _Bytes) -> Groups:
    scales, mins = _six_bit_scales(blocks[:, 4:16])
    low = _bit_planes(blocks[:, 48:].reshape(-1, 4, 32), 4)
    high = _bit_planes(blocks[:, 16:48], 1).reshape(-1, 4, 2, 32) << np.uint8(4)
    return _super_block(low | high, 32, _halves(blocks, 0), scales, _halves(blocks, 2), mins)


def _q6_k(blocks: _Bytes) -> Groups:
    low = _bit_planes(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = _bit_planes(blocks[:, 128:192].reshape(-1, 2, 32), 2) << np.uint8(4)
    return _super_block(low | high, 16, _halves(blocks, 208), blocks[:, 192:208].view(np.int8))


def _super_block(
    levels: _Bytes,
    group_size: int,
    scale: _Floats,
    group_scales: NDArray[np.generic],
    minimum: _Floats | None = None,
    group_minima: NDArray[np.generic] | None = None,
) -> Groups:
    """Multiply the scale (and minimum) of each super-block into its groups: `weight = d sc level - dmin m`."""
    scales = scale[:, None] * group_scales.astype(np.float32)
    offsets = None
    if minimum is not None and group_minima is not None:
        offsets = -(minimum[:, None] * group_minima.astype(np.float32)).reshape(-1)
    return Groups(levels.reshape(-1, group_size), scales.reshape(-1), offsets)


BLOCK_FORMATS: dict[GGMLQuantizationType, BlockFormat] = {
    GGMLQuantizationType.Q4_0: BlockFormat(bits=4, group_size=32, centre=8, affine=False, decode=_q4_0),
    GGMLQuantizationType.Q4_1: BlockFormat(bits=4, group_size=32, centre=0, affine=True, decode=_q4_1),
    GGMLQuantizationType.Q5_0: BlockFormat(bits=5, group_size=32, centre=16, affine=False, decode=_q5_0),
    GGMLQuantizationType.Q5_1: BlockFormat(bits=5, group_size=32, centre=0, affine=True, decode=_q5_1),
    GGMLQuantizationType.Q8_0: BlockFormat(bits=8, group_size=32, centre=128, affine=False, decode=_q8_0),
    GGMLQuantizationType.IQ4_NL: BlockFormat(bits=8, group_size=32, centre=128, affine=False, decode=_iq4_nl),
    GGMLQuantizationType.IQ4_XS: BlockFormat(bits=8, group_size=32, centre=128, affine=False, decode=_iq4_xs),
    GGMLQuantizationType.Q2_K: BlockFormat(bits=2, group_size=16, centre=0, affine=True, decode=_q2_k),
    GGMLQuantizationType.Q3_K: BlockFormat(bits=3, group_size=16, centre=4, affine=False, decode=_q3_k),
    GGMLQuantizationType.Q4_K: BlockFormat(bits=4, group_size=32, centre=0, affine=True, decode=_q4_k),
    GGMLQuantizationType.Q5_K: BlockFormat(bits=5, group_size=32, centre=0, affine=True, decode=_q5_k),
    GGMLQuantizationType.Q6_K: BlockFormat(bits=6, group_size=16, centre=32, affine=False, decode=_q6_k),
}
"""The quantised types that are read; all others are refused by name."""
