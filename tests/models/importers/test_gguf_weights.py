"""Every quantised type against llama.cpp's own dequantiser: no weight may change."""

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS
from vmm_server.models.importers.gguf_weights import pack, stored_bits
from vmm_server.models.importers.onnx_matrix import unpacking_table

Blocks = Callable[..., NDArray[np.uint8]]
TYPES = list(BLOCK_FORMATS)
EPSILON = np.finfo(np.float32).eps


def _dequantize(packed: tuple[NDArray[Any], ...], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """As `MatMulNBits` defines it, plus the offset for 8 bits: float32 `[groups, group_size]`."""
    form = BLOCK_FORMATS[kind]
    bits = stored_bits(form)
    levels = unpacking_table(bits)[packed[0]].reshape(len(packed[0]), -1)
    zero, offset = np.float32(2 ** (bits - 1)), np.float32(0)
    if form.affine and bits < 8:
        zero = packed[2][:, None]
    elif form.affine:
        offset = packed[2][:, None]
    return (levels - zero) * packed[1][:, None] + offset


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_packed_weights_are_the_files_own(kind: GGMLQuantizationType, random_blocks: Blocks) -> None:
    blocks = random_blocks(kind, 400)
    form = BLOCK_FORMATS[kind]
    expected = gguf.dequantize(blocks, kind).reshape(-1, form.group_size)
    packed = pack(form.decode(blocks), form)
    assert packed[0].shape == (len(expected), form.group_size * stored_bits(form) // 8)
    actual = _dequantize(packed, kind)
    if not form.affine:
        assert np.array_equal(actual, expected)
    else:  # a zero point is a quotient: rounded once
        largest = np.abs(expected).max(axis=1, keepdims=True)
        assert (np.abs(actual - expected) <= 4 * EPSILON * largest).all()


@pytest.mark.parametrize("kind", [kind for kind in TYPES if BLOCK_FORMATS[kind].affine], ids=lambda kind: kind.name)
def test_a_group_of_one_repeated_weight_keeps_it(kind: GGMLQuantizationType, random_blocks: Blocks) -> None:
    blocks = random_blocks(kind, 50)
    start = 80 if kind is GGMLQuantizationType.Q2_K else 0
    blocks[:, start : start + 2] = 0  # scale 0: what is left is the offset
    form = BLOCK_FORMATS[kind]
    packed = pack(form.decode(blocks), form)
    expected = gguf.dequantize(blocks, kind).reshape(-1, form.group_size)
    assert np.abs(expected).max() > 0
    assert all(np.isfinite(part).all() for part in packed)
    assert np.array_equal(_dequantize(packed, kind), expected)


@given(
    kind=st.sampled_from(TYPES),
    content=st.binary(min_size=256, max_size=256),
    numbers=st.lists(
        st.floats(width=16, allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000),
        min_size=2,
        max_size=2,
    ),
)
def test_any_block_survives(kind: GGMLQuantizationType, content: bytes, numbers: list[float]) -> None:
    size = gguf.GGML_QUANT_SIZES[kind][1]
    block = np.frombuffer(content[:size], np.uint8).copy().reshape(1, size)
    form = BLOCK_FORMATS[kind]
    starts = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind.name, (0, 2) if form.affine else (0,))
    for start, number in zip(starts, numbers, strict=False):
        block[0, start : start + 2] = np.frombuffer(np.float16(number).tobytes(), np.uint8)
    expected = gguf.dequantize(block, kind).reshape(-1, form.group_size)
    groups = form.decode(block)
    exact = (groups.levels.astype(np.float32) - form.centre) * groups.scales[:, None]
    if groups.offsets is not None:
        exact = exact + groups.offsets[:, None]
    assert np.array_equal(exact, expected)
    offsets = np.abs(groups.offsets)[:, None] if groups.offsets is not None else 0
    tolerance = 4 * EPSILON * (np.abs(expected).max(axis=1, keepdims=True) + offsets)
    assert (np.abs(_dequantize(pack(groups, form), kind) - expected) <= tolerance).all()


def test_levels_go_up_in_bits_and_never_down() -> None:
    assert {kind.name: stored_bits(form) for kind, form in BLOCK_FORMATS.items()} == {
        "Q4_0": 4,
        "Q4_1": 4,
        "Q5_0": 8,
        "Q5_1": 8,
        "Q8_0": 8,
        "IQ4_NL": 8,
        "IQ4_XS": 8,
        "Q2_K": 2,
        "Q3_K": 4,
        "Q4_K": 4,
        "Q5_K": 8,
        "Q6_K": 8,
    }
