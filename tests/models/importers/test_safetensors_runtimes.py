"""What models imported from safetensors compute, on ONNX Runtime and on OpenVINO, against transformers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
from numpy.typing import NDArray

from vmm_server.models.importers.safetensors_config import FAMILIES
from vmm_server.models.importers.safetensors_folder import import_safetensors

pytestmark = pytest.mark.runtime

Floats = NDArray[np.float32]
Run = Callable[[Mapping[str, NDArray[np.generic]]], Floats]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
MODELS = [
    *("llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_yarn", "qwen3", "gemma", "gemma3"),
    *("phi3", "phi3_long", "phi3_short", "granite", "smollm3", "olmo2", "olmo3"),
]


def _onnxruntime(path: Path) -> Run:
    session = ort.InferenceSession(str(path))
    return lambda feed: session.run(["logits"], feed)[0]


def _openvino(path: Path) -> Run:
    compiled = ov.Core().compile_model(path, "CPU", EXACT)
    return lambda feed: compiled(feed)["logits"].copy()


@pytest.fixture(params=[_onnxruntime, _openvino], ids=["onnxruntime", "openvino"])
def load(request: pytest.FixtureRequest) -> Callable[[Path], Run]:
    """Load an ONNX file; a call then gives the logits."""
    loader: Callable[[Path], Run] = request.param
    return loader


def _logits(run: Run, folder: Path, tokens: NDArray[np.int64]) -> Floats:
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    feed: dict[str, NDArray[np.generic]] = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
    }
    shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    for layer in range(decoder["num_hidden_layers"]):
        for kind in ("key", "value"):
            feed[f"past_key_values.{layer}.{kind}"] = np.zeros(shape, np.float32)
    return run(feed)[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(
    name: str,
    load: Callable[[Path], Run],
    tmp_path: Path,
    write_folder: Callable[..., Path],
    tiny_models: ModuleType,
    reference_logits: Mapping[str, Floats],
) -> None:
    import_safetensors(write_folder(name, shards=2), tmp_path)
    run = load(tmp_path / "model.onnx")
    for tokens, expected in zip(tiny_models.TOKENS, reference_logits[name], strict=True):
        actual = _logits(run, tmp_path, tokens)
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_soft_capped_attention_is_for_onnx_runtime(
    tmp_path: Path,
    write_folder: Callable[..., Path],
    tiny_models: ModuleType,
    reference_logits: Mapping[str, Floats],
) -> None:
    assert import_safetensors(write_folder("gemma2"), tmp_path).adapter == "openvino"  # any that can
    expected = reference_logits["gemma2"][0]
    actual = _logits(_onnxruntime(tmp_path / "model.onnx"), tmp_path, tiny_models.TOKENS[0])
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_every_family_has_a_reference(tiny_models: ModuleType) -> None:
    names = (*MODELS, "gemma2")
    assert {tiny_models.MODELS[name].model_class for name in names} == {each.model_class for each in FAMILIES.values()}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights_are_computed_with_exactly(
    dtype: str,
    load: Callable[[Path], Run],
    tmp_path: Path,
    write_folder: Callable[..., Path],
    tiny_models: ModuleType,
) -> None:
    """As the same weights, spelt out as float32."""
    exact = {name: _rounded(array, dtype) for name, array in tiny_models.weights(tiny_models.MODELS["qwen3"]).items()}
    logits = []
    for kind in (dtype, "F32"):
        (folder := tmp_path / kind).mkdir()
        assert import_safetensors(write_folder("qwen3", exact, dtype=kind), folder).quantization == kind
        logits.append(_logits(load(folder / "model.onnx"), folder, tiny_models.TOKENS[0]))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6 * np.abs(logits[1]).max(), rtol=0)


def _rounded(array: Floats, dtype: str) -> Floats:
    if dtype == "F16":
        return array.astype(np.float16).astype(np.float32)
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
