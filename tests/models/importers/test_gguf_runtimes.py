"""What the imported models compute, on ONNX Runtime and on OpenVINO, against transformers and llama.cpp."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
import openvino as ov
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer

from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.openvino.runner import load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.models.importers import ImportedModel
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_weights import FLOAT_TYPES, add_matrix
from vmm_server.models.importers.onnx_matrix import add_product, add_row_lookup
from vmm_server.models.importers.onnx_writer import ModelWriter

pytestmark = pytest.mark.runtime

DATA = Path(__file__).resolve().parents[2] / "data"

Floats = NDArray[np.float32]
Feed = dict[str, NDArray[np.generic]]
Run = Callable[[Feed], dict[str, Floats]]
Load = Callable[[Path], Run]
Convert = Callable[..., tuple[Path, ImportedModel]]

FAMILIES = [
    *("llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_yarn", "qwen3", "gemma", "gemma3"),
    *("phi3", "phi3_long", "phi3_short", "granite", "smollm3", "olmo2", "olmo3"),
]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""OpenVINO otherwise rounds activations to 8 bits where zero points are integers."""
LLAMA_CPP_PERPLEXITY = 15.926
"""llama-perplexity (b11434) on the default model's file and tests/data/ppl.txt, 3 chunks of 512 tokens."""


def _onnxruntime(path: Path) -> Run:
    session = ort.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _openvino(path: Path) -> Run:
    compiled = ov.Core().compile_model(path, "CPU", EXACT)
    names = [output.any_name for output in compiled.outputs]

    def run(feed: Feed) -> dict[str, Floats]:
        results = compiled(feed)
        return {name: results[name].copy() for name in names}

    return run


@pytest.fixture(params=[_onnxruntime, _openvino], ids=["onnxruntime", "openvino"])
def load(request: pytest.FixtureRequest) -> Load:
    """Load an ONNX file; a call then gives all outputs by name."""
    loader: Load = request.param
    return loader


def _first_step(tokens: NDArray[np.int64], folder: Path) -> Feed:
    """One sequence from its start, with the empty cache that genai_config.json tells of."""
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    feed: Feed = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    for layer in range(decoder["num_hidden_layers"]):
        for kind in ("key", "value"):
            shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
            feed[f"past_key_values.{layer}.{kind}"] = np.zeros(shape, np.float32)
    return feed


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(
    name: str,
    load: Load,
    convert: Convert,
    tiny_models: ModuleType,
    reference_logits: Mapping[str, Floats],
) -> None:
    folder, _ = convert(name)
    run = load(folder / "model.onnx")
    for tokens, expected in zip(tiny_models.TOKENS, reference_logits[name], strict=True):
        actual = run(_first_step(tokens, folder))["logits"][0]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_soft_capped_attention_is_not_for_openvino(
    convert: Convert, tiny_models: ModuleType, reference_logits: Mapping[str, Floats]
) -> None:
    folder, model = convert("gemma2")
    assert model.adapter == "openvino"  # any; OpenVINO itself refuses it, and the next one is tried
    run = _onnxruntime(folder / "model.onnx")
    for tokens, expected in zip(tiny_models.TOKENS, reference_logits["gemma2"], strict=True):
        actual = run(_first_step(tokens, folder))["logits"][0]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    with pytest.raises(UnsupportedModel, match="GroupQueryAttention: softcap is not supported"):
        load_runner(folder, RunnerOptions(kv_cache_bytes=2**20))


def test_every_tiny_model_has_a_reference(tiny_models: ModuleType, reference_logits: Mapping[str, Floats]) -> None:
    assert {*FAMILIES, "gemma2"} == set(tiny_models.MODELS) == set(reference_logits)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "smollm3"])
def test_the_cache_goes_on_where_the_prompt_ended(
    name: str,
    load: Load,
    convert: Convert,
    tiny_models: ModuleType,
    reference_logits: Mapping[str, Floats],
) -> None:
    folder, _ = convert(name)
    run = load(folder / "model.onnx")
    tokens, expected = tiny_models.TOKENS[0], reference_logits[name][0]
    results = run(_first_step(tokens[:12], folder))
    for position in range(12, len(tokens)):
        feed: Feed = {"input_ids": tokens[None, position : position + 1]}
        feed["attention_mask"] = np.ones((1, position + 1), np.int64)
        feed |= {key.replace("present", "past_key_values"): array for key, array in results.items() if key != "logits"}
        results = run(feed)
        np.testing.assert_allclose(
            results["logits"][0, 0], expected[position], atol=1e-5 * np.abs(expected).max(), rtol=0
        )


@pytest.mark.parametrize("name", ["gemma3", "phi3", "granite", "smollm3", "olmo3"])
def test_the_paged_runner_computes_the_same(
    name: str, convert: Convert, tiny_models: ModuleType, reference_logits: Mapping[str, Floats]
) -> None:
    """Two prompts in one batch, one of them in two parts."""
    folder, _ = convert(name)
    options = RunnerOptions(kv_cache_bytes=4 * 2**20, max_batched_tokens=64, max_sequences=2)
    runner = load_runner(folder, options, properties=EXACT | {"KV_CACHE_PRECISION": "f32"})
    first, second = tiny_models.TOKENS.tolist()
    rows = runner.execute(Batch((Chunk(first[:12], 0, [3], 12), Chunk(second, 0, [1], 20)))).copy()
    actual = np.concatenate([rows[:12], runner.execute(Batch((Chunk(first[12:], 12, [3], 8),))), rows[12:]])
    runner.close()
    expected = reference_logits[name].reshape(actual.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_gemma3_scales_logits_down_softly_where_the_file_says_so(
    load: Load, convert: Convert, tiny_models: ModuleType, reference_logits: Mapping[str, Floats]
) -> None:
    folder, _ = convert("gemma3", keys={"final_logit_softcapping": 8.0})
    actual = load(folder / "model.onnx")(_first_step(tiny_models.TOKENS[0], folder))["logits"][0]
    np.testing.assert_allclose(actual, 8 * np.tanh(reference_logits["gemma3"][0] / 8), atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama3", "qwen3"])  # tied, and with an lm_head of its own
def test_quantised_logits_are_those_of_the_dequantised_file(
    name: str, kind: str, load: Load, convert: Convert, tiny_models: ModuleType
) -> None:
    quantization = GGMLQuantizationType[kind]
    folder, _ = convert(name, quantization=kind)
    tensors = {
        each: array
        if array.ndim == 1
        else gguf.dequantize(gguf.quantize(array, quantization), quantization).reshape(array.shape)
        for each, array in tiny_models.gguf_tensors(tiny_models.MODELS[name]).items()
    }
    reference, _ = convert(name, tensors=tensors)
    tokens = tiny_models.TOKENS[0]
    expected = load(reference / "model.onnx")(_first_step(tokens, reference))["logits"]
    actual = load(folder / "model.onnx")(_first_step(tokens, folder))["logits"]
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("kind", [*FLOAT_TYPES, *BLOCK_FORMATS], ids=lambda kind: kind.name)
def test_products_and_row_lookups_are_exact(
    kind: GGMLQuantizationType, load: Load, tmp_path: Path, random_blocks: Callable[..., NDArray[np.uint8]]
) -> None:
    rows, columns = 48, 512
    rng = np.random.default_rng(0)
    if kind in BLOCK_FORMATS:
        raw = random_blocks(kind, rows * columns // GGML_QUANT_SIZES[kind][0]).reshape(rows, -1)
    else:
        raw = gguf.quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
    weights = gguf.dequantize(raw, kind).reshape(rows, columns).astype(np.float64)
    source = tmp_path / "matrix.gguf"
    file_writer = gguf.GGUFWriter(source, "llama")
    file_writer.add_tensor("matrix", raw, raw_dtype=kind)
    file_writer.write_header_to_file()
    file_writer.write_kv_data_to_file()
    file_writer.write_tensors_to_file()
    file_writer.close()
    writer = ModelWriter("test")
    with GGUFFile(source) as file:
        ids = writer.input("ids", TensorProto.INT64, ["batch", "sequence"])
        value = writer.input("value", TensorProto.FLOAT, ["batch", "sequence", columns])
        matrix = add_matrix(writer, file, file.tensors["matrix"], "matrix")
        product = add_product(writer, "/product", value, matrix)
        looked_up = add_row_lookup(writer, "/lookup", ids, matrix)
        writer.output(product, TensorProto.FLOAT, ["batch", "sequence", rows])
        writer.output(looked_up, TensorProto.FLOAT, ["batch", "sequence", columns])
        writer.write(tmp_path, lambda done, total: None)
    values = rng.standard_normal((1, 5, columns)).astype(np.float32)
    chosen = np.array([[0, 7, 47, 7, 1]])
    results = load(tmp_path / "model.onnx")({"ids": chosen, "value": values})
    expected = values @ weights.T
    np.testing.assert_allclose(results[product], expected, atol=3e-6 * np.abs(expected).max(), rtol=0)
    np.testing.assert_allclose(results[looked_up], weights[chosen], atol=5e-7 * np.abs(weights).max(), rtol=0)


@pytest.fixture(scope="module")
def imported(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, imported."""
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(smollm2_gguf, folder)
    return folder


def test_onnxruntime_genai_runs_the_folder(imported: Path) -> None:
    model = og.Model(str(imported))
    tokenizer = og.Tokenizer(model)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=26)
    generator = og.Generator(model, params)
    generator.append_tokens(
        tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    )
    answer = []
    while not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    assert "Paris" in tokenizer.decode(np.array(answer, np.int32))


def _chunks(folder: Path, count: int) -> list[NDArray[np.int64]]:
    text = (DATA / "ppl.txt").read_text("utf-8")
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return [np.array(tokens[512 * index : 512 * (index + 1)], np.int64) for index in range(count)]


def _log_likelihoods(logits: Floats, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each token of the chunk's second half, natural log (llama-perplexity scores only those)."""
    scores = logits[len(tokens) // 2 : -1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    targets = tokens[len(tokens) // 2 + 1 :]
    return scores[np.arange(len(targets)), targets]


def test_perplexity_is_that_of_llama_cpp_on_either_runtime(imported: Path) -> None:
    chunks = _chunks(imported, 3)
    run = _openvino(imported / "model.onnx")
    likelihoods = [_log_likelihoods(run(_first_step(each, imported))["logits"][0], each) for each in chunks]
    perplexity = np.exp(-np.concatenate(likelihoods).mean())
    assert perplexity == pytest.approx(LLAMA_CPP_PERPLEXITY, rel=0.005)
    other = _onnxruntime(imported / "model.onnx")(_first_step(chunks[0], imported))["logits"][0]
    assert _log_likelihoods(other, chunks[0]).mean() == pytest.approx(likelihoods[0].mean(), abs=1e-4)
