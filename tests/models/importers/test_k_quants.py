"""Floats → super-blocks: gguf reads them back, and they are no further off than llama.cpp's own."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS
from vmm_server.models.importers.k_quants import MAX_WEIGHT, quantize_rows

K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
LLAMA_CPP = json.loads((Path(__file__).resolve().parents[2] / "data" / "k_quants_rmse.json").read_text())
"""The root of the mean squared error of what ggml_quantize_chunk makes of `drawn` rows."""
STEPS = {"Q4_K": 1 / 15, "Q5_K": 1 / 31, "Q6_K": 1 / 32}
"""Between levels, of the largest weight; with a minimum the range can be twice that."""

drawings = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "exponent": st.integers(-3, 4),
        "shift": st.sampled_from([0.0, 0.0, 3.0, -3.0]),
        "zeros": st.sampled_from([0.0, 0.5, 0.99]),
        "constant": st.booleans(),
    }
)


def drawn(name: str) -> NDArray[np.float32]:
    """Rows `[64, 1024]` of a generator whose stream numpy keeps for ever."""
    random = np.random.RandomState(7)
    size = (64, 1024)
    draws = {
        "normal": lambda: random.standard_normal(size),
        "heavy_tailed": lambda: random.standard_t(3, size),
        "one_sided": lambda: random.gamma(2, 1, size),
    }
    return (0.02 * draws[name]()).astype(np.float32)


def restored(kind: str, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    quantized = quantize_rows(GGMLQuantizationType[kind], rows)
    weights: NDArray[np.float64] = dequantize(quantized, GGMLQuantizationType[kind]).astype(np.float64)
    return weights


@pytest.mark.parametrize("name", ["normal", "heavy_tailed", "one_sided"])
@pytest.mark.parametrize("kind", K_QUANTS)
def test_the_error_is_not_above_llama_cpps(kind: str, name: str) -> None:
    rows = drawn(name)
    error = np.sqrt(np.mean((restored(kind, rows) - rows) ** 2))
    assert 0.99 * LLAMA_CPP[kind][name] < error <= LLAMA_CPP[kind][name]


@pytest.mark.parametrize("kind", K_QUANTS)
@given(drawing=drawings)
def test_every_weight_comes_back_within_its_step(kind: str, drawing: dict[str, float]) -> None:
    random = np.random.default_rng(int(drawing["seed"]))
    rows = random.standard_normal((2, 512)) + drawing["shift"]
    rows[random.random(rows.shape) < drawing["zeros"]] = 0
    if drawing["constant"]:
        rows[:, 256:] = rows[:, :1]
    rows = (rows * 10.0 ** drawing["exponent"]).astype(np.float32)
    found = restored(kind, rows)
    peaks = np.abs(rows).reshape(-1, 256).max(axis=1)
    furthest = np.abs(found - rows).reshape(-1, 256).max(axis=1)
    rounding = 4096 * 2.0**-25  # of the super-block's float16 scale, times the largest level and group scale
    assert (furthest <= STEPS[kind] * 3 * peaks + rounding).all()


@pytest.mark.parametrize("kind", K_QUANTS)
def test_our_reader_and_ggufs_agree_on_what_is_written(kind: str) -> None:
    rows = drawn("normal")[:2]
    form = BLOCK_FORMATS[GGMLQuantizationType[kind]]
    blocks = quantize_rows(GGMLQuantizationType[kind], rows)
    groups = form.decode(blocks.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]))
    weights = groups.scales[:, None] * (groups.levels.astype(np.float32) - form.centre)
    if groups.offsets is not None:
        weights += groups.offsets[:, None]
    np.testing.assert_allclose(weights.reshape(rows.shape), restored(kind, rows), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [*K_QUANTS, "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_rows_keep_their_order_and_zeros_stay_zeros(kind: str) -> None:
    """Of more super-blocks than are worked on at a time."""
    rows = np.zeros((300, 512), np.float32)
    rows[np.arange(300), np.arange(300)] = np.arange(1, 301)
    found = restored(kind, rows)
    np.testing.assert_allclose(found, rows, rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize("value", [MAX_WEIGHT, -MAX_WEIGHT, 1.0, -1.0])
def test_a_block_of_one_value_comes_back(kind: str, value: float) -> None:
    rows = np.full((1, 256), value, np.float32)
    np.testing.assert_allclose(restored(kind, rows), rows, rtol=0.01)


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2])
def test_blocks_of_nearly_one_value_come_back(kind: str, noise: float) -> None:
    """Their levels are all but one and the same: a line through them is nearly any line."""
    random = np.random.default_rng(1)
    values = np.concatenate([random.uniform(0.5, 5, (500, 1)), -random.uniform(0.5, 5, (500, 1))])
    rows = (values * (1 + noise * random.standard_normal((1000, 256)))).astype(np.float32)
    np.testing.assert_allclose(restored(kind, rows), rows, rtol=0.05)
