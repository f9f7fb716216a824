"""What our importers write runs on the CPU adapter's kernels, of every family, and says what its numbers say.

References are transformers' logits, and the plan computed in float64 (`cpu_reference`). Weights that are floats are
multiplied as such, and only keys and values are rounded, to halves. Inputs of products with blocks of levels have 8
bits: those logits are near.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.adapters import cpu_reference

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.cpu.runner import load_runner
from vmm_adapters.types import Batch, Chunk, KVCacheType, RunnerOptions
from vmm_server.models.importers import ImportedModel

pytestmark = pytest.mark.runtime

Floats = NDArray[np.float32]
Convert = Callable[..., tuple[Path, ImportedModel]]
NAMES = [
    *("llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"),
    *("phi3", "phi3_long", "phi3_short", "granite", "smollm3", "olmo2", "olmo3"),
]
KINDS = {"F16": "mistral", "BF16": "llama", "Q4_0": "qwen2_yarn", "Q4_1": "gemma2", "Q5_1": "phi3", "Q8_0": "llama3"}
"""Types of GGML, each with a family; between them are soft caps, packed projections, biases, windows."""
HALVES, BYTES = 2e-3, 2e-2
"""Relative to the greatest logit, how far one may be with keys and values in halves and in bytes."""


@pytest.fixture
def run(kernel_cache: Path) -> Callable[..., Floats]:
    """`run(folder, tokens, sizes)`: logits of all tokens, computed in chunks of so many."""
    options = RunnerOptions(kv_cache_bytes=8 << 20, max_sequences=4, num_threads=2, shared_cache_dir=kernel_cache)

    def compute(
        folder: Path, tokens: NDArray[np.int64], sizes: tuple[int, ...], kv_cache_type: KVCacheType = "f16"
    ) -> Floats:
        runner = load_runner(folder, replace(options, kv_cache_type=kv_cache_type))
        ends = np.cumsum(sizes)
        assert ends[-1] == len(tokens)
        chunks = [
            Chunk(tokens[end - size : end].tolist(), int(end) - size, [2, 0], size)
            for end, size in zip(ends, sizes, strict=True)
        ]
        logits = [runner.execute(Batch((chunk,))).copy() for chunk in chunks]
        runner.close()
        return np.concatenate(logits)

    return compute


def reference(folder: Path, tokens: NDArray[np.int64]) -> NDArray[np.floating]:
    return cpu_reference.logits(read_plan(folder / "model.onnx", context_length=None), tokens)


def error(logits: Floats, expected: NDArray[np.floating]) -> float:
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_every_family_says_what_transformers_says(
    name: str,
    run: Callable[..., Floats],
    convert: Convert,
    tiny_models: ModuleType,
    reference_logits: Mapping[str, Floats],
) -> None:
    folder, model = convert(name)
    assert model.adapter == "openvino"  # any that can
    for tokens, expected in zip(tiny_models.TOKENS, reference_logits[name], strict=True):
        assert error(run(folder, tokens, (len(tokens),)), expected) < HALVES


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_weights_says_what_the_file_says(
    kind: str, run: Callable[..., Floats], convert: Convert, tiny_models: ModuleType
) -> None:
    folder, _ = convert(KINDS[kind], quantization=kind)
    tokens = tiny_models.TOKENS[0]
    expected = reference(folder, tokens)
    logits = run(folder, tokens, (len(tokens),))
    if not kind.startswith("Q"):
        assert error(logits, expected) < HALVES
    cosines = (logits * expected).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.997
    best, second = np.sort(expected, axis=1)[:, -1], np.sort(expected, axis=1)[:, -2]
    is_clear = best - second > 0.1 * np.abs(expected).max()
    assert (logits.argmax(1) == expected.argmax(1))[is_clear].all()
    assert (run(folder, tokens, (1, 7, len(tokens) - 8)) == logits).all()


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "qwen3"])
def test_keys_and_values_in_bytes_are_near_those_in_halves(
    name: str, run: Callable[..., Floats], convert: Convert, tiny_models: ModuleType
) -> None:
    folder, _ = convert(name)
    tokens = tiny_models.TOKENS[0]
    logits = run(folder, tokens, (len(tokens),), "u8")
    assert 0 < error(logits, run(folder, tokens, (len(tokens),), "f16")) < BYTES
    assert (run(folder, tokens, (5, len(tokens) - 5), "u8") == logits).all()
