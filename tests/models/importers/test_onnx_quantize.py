"""Decoders in 8 and 4 bits: the matrices found say what the file says, and what is written is what they are."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers import ImportedModel
from vmm_server.models.importers.graph_matrices import DecoderGraph
from vmm_server.models.importers.onnx_quantize import plan_quantized, write_quantized
from vmm_server.models.importers.weight_blocks import BLOCK, quantize_blocks

Floats = NDArray[np.float32]
Convert = Callable[..., tuple[Path, ImportedModel]]
SEED = np.random.default_rng(0)
WEIGHTS = st.floats(-60000, 60000, width=32, allow_subnormal=False)


def quantized(folder: Path, bits: int, **options: bool) -> Path:
    target = folder.with_name(f"{folder.name}-{bits}")
    target.mkdir()
    write_quantized(plan_quantized(folder / "model.onnx", bits, **options), target, lambda done, total: None)
    return target


def read_all(folder: Path) -> dict[str, Floats]:
    """The matrices by the node that has the result."""
    graph = DecoderGraph(folder / "model.onnx")
    return {graph.graph.node[each.node].output[0]: each.read(0, each.rows) for each in graph.matrices()}


def logits(folder: Path, config: Path, tokens: NDArray[np.int64], *, openvino: bool = False) -> Floats:
    decoder = json.loads((config / "genai_config.json").read_text())["model"]["decoder"]
    feed: dict[str, NDArray[np.generic]] = {"input_ids": tokens[None]}
    feed["attention_mask"] = np.ones((1, len(tokens)), np.int64)
    for layer in range(decoder["num_hidden_layers"]):
        for kind in ("key", "value"):
            shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
            feed[f"past_key_values.{layer}.{kind}"] = np.zeros(shape, np.float32)
    if openvino:
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        found: Floats = ov.Core().compile_model(folder / "model.onnx", "CPU", exact)(feed)["logits"].copy()
        return found
    return np.asarray(ort.InferenceSession(str(folder / "model.onnx")).run(["logits"], feed)[0], np.float32)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(2 * BLOCK)), elements=WEIGHTS))
@settings(deadline=None)
def test_eight_bits_are_off_by_half_a_step_at_most(rows: Floats) -> None:
    blocks = quantize_blocks(rows, 8)
    step = np.repeat(blocks.scales, BLOCK, axis=1)
    assert (np.abs(blocks.weights(8) - rows) <= 0.5001 * step + 1e-30).all()  # less than that counts as 0


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(2 * BLOCK)), elements=WEIGHTS))
@settings(deadline=None)
def test_four_bits_are_levels_and_whole_zero_points(rows: Floats) -> None:
    blocks = quantize_blocks(rows, 4)
    assert blocks.zero_points is not None
    assert blocks.levels.max(initial=0) <= 15
    assert blocks.zero_points.max(initial=0) <= 15
    assert np.isfinite(blocks.scales).all()
    assert (blocks.scales >= 0).all()
    groups = rows.reshape(len(rows), -1, BLOCK)
    lost = np.square(blocks.weights(4).reshape(groups.shape).astype(np.float64) - groups).sum()
    assert lost <= np.square(groups.astype(np.float64)).sum(), "worse than no weights at all"


def test_the_search_beats_a_plain_rounding() -> None:
    rows = SEED.standard_normal((64, 512)).astype(np.float32)
    found = np.square(quantize_blocks(rows, 4).weights(4) - rows).mean()
    plain = gguf.dequantize(gguf.quantize(rows, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    assert found < 0.85 * np.square(plain.reshape(rows.shape) - rows).mean()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_1", "Q5_1", "Q8_0"])
def test_matrices_say_what_the_file_says(kind: str, convert: Convert) -> None:
    exact, _ = convert("qwen3", quantization="F32")
    folder, _ = convert("qwen3", quantization=kind)
    quantization, found = GGMLQuantizationType[kind], read_all(folder)
    products = {name: weights for name, weights in read_all(exact).items() if "embed" not in name}
    assert len(products) == 3 * 7 + 1, "seven in each layer, and the head"
    for name, weights in products.items():
        other = name.replace("/MatMul/", "/MatMulNBits/") if kind.startswith("Q") else name
        other = name.replace("/MatMul/", "/offsets/Add/") if kind == "Q5_1" else other
        expected = gguf.dequantize(gguf.quantize(weights, quantization), quantization).reshape(weights.shape)
        np.testing.assert_allclose(found[other], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("name", "kind", "bits"),
    [("llama3", "F16", 8), ("llama3", "F16", 4), ("qwen3", "F32", 4), ("gemma3", "BF16", 8), ("llama3", "Q5_1", 4)],
)
def test_what_is_written_computes_what_its_matrices_say(
    name: str, kind: str, bits: int, convert: Convert, tiny_models: object
) -> None:
    """The same graph with the quantised weights as floats is the judge, on both runtimes."""
    folder, _ = convert(name, quantization=kind)
    tokens: NDArray[np.int64] = tiny_models.TOKENS[0]  # type: ignore[attr-defined]
    target = quantized(folder, bits)
    assert (target / "model.onnx.data").stat().st_size < (folder / "model.onnx.data").stat().st_size
    expected = with_weights(folder, target, tokens)
    for openvino in (False, True):
        actual = logits(target, folder, tokens, openvino=openvino)
        np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max(), rtol=0)


def with_weights(folder: Path, target: Path, tokens: NDArray[np.int64]) -> Floats:
    """What the decoder in `folder` says with the weights of the one in `target`, each as floats."""
    graph, model = DecoderGraph(target / "model.onnx"), onnx.load(target / "model.onnx")
    for each in graph.matrices():
        node = model.graph.node[each.node]
        if node.op_type == "MatMulNBits":
            weights = numpy_helper.from_array(each.read(0, each.rows).T.copy(), f"{node.name}/floats")
            model.graph.initializer.append(weights)
            node.CopyFrom(helper.make_node("MatMul", [node.input[0], weights.name], list(node.output), node.name))
    plain = target.with_name(f"{target.name}-plain")
    plain.mkdir()
    onnx.save(model, plain / "model.onnx")
    return logits(plain, folder, tokens)


@pytest.mark.runtime
def test_eight_bits_say_nearly_what_the_decoder_says(convert: Convert, tiny_models: object) -> None:
    tokens: NDArray[np.int64] = tiny_models.TOKENS[0]  # type: ignore[attr-defined]
    folder, _ = convert("llama3", quantization="F16")
    expected = logits(folder, folder, tokens)
    eight, four = (np.abs(logits(quantized(folder, bits), folder, tokens) - expected).max() for bits in (8, 4))
    assert eight < 0.05 * np.abs(expected).max()
    assert eight < four / 3


def test_embedding_head_and_values_keep_eight_bits(convert: Convert) -> None:
    folder, _ = convert("qwen3", quantization="F16")
    graph = onnx.load(quantized(folder, 4) / "model.onnx", load_external_data=False).graph
    bits = {
        node.name: next(each.i for each in node.attribute if each.name == "bits")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    kept = {name for name, each in bits.items() if each == 8}
    assert kept == {"/lm_head/MatMulNBits", *(f"/model/layers.{n}/attn/v_proj/MatMulNBits" for n in range(3))}
    assert {each for name, each in bits.items() if name not in kept} == {4}
    assert "model.embed_tokens.int8.qweight" in {tensor.name for tensor in graph.initializer}


def test_a_tied_head_shares_the_embedding(convert: Convert) -> None:
    folder, _ = convert("llama3", quantization="F16")
    names = [
        each.name for each in onnx.load(quantized(folder, 8) / "model.onnx", load_external_data=False).graph.initializer
    ]
    assert len([name for name in names if "embed" in name and name.endswith(".qweight")]) == 1
    assert len(names) == len(set(names))
    assert not any(name.endswith(".weight") and "norm" not in name for name in names)


def test_nothing_to_do_is_told(convert: Convert) -> None:
    folder, _ = convert("llama3", quantization="Q4_1")
    for bits in (4, 8):
        plan = plan_quantized(folder / "model.onnx", bits)
        assert (plan.num_matrices, plan.bits_before) == (0, 4)
    assert plan_quantized(folder / "model.onnx", 8, widen=True).num_matrices > 0


def builder_form(folder: Path, weight: NDArray[np.generic], opset: int = 21) -> None:
    """What onnxruntime-genai's builder writes in half precision, as far as matrices go."""
    table = SEED.standard_normal((48, weight.shape[0])).astype(np.float16)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], "/model/embed_tokens/Gather"),
        helper.make_node("MatMul", ["rows", "weight"], ["logits"], "/lm_head/MatMul"),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, [1, "n", "v"])
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "g", [ids], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")


@pytest.mark.runtime
def test_half_precision_as_the_builder_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    builder_form(folder, (SEED.standard_normal((64, 40)) / 8).astype(np.float16))
    target = quantized(folder, 8)
    ids = np.arange(5)[None]
    expected, actual = (
        ort.InferenceSession(str(each / "model.onnx")).run(None, {"input_ids": ids})[0] for each in (folder, target)
    )
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual.astype(np.float32), expected.astype(np.float32), atol=0.05)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weight = np.full((64, 40), np.nan, np.float16)
    builder_form(tmp_path, weight)
    plan = plan_quantized(tmp_path / "model.onnx", 8)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(CorruptFile, match="no numbers"):
        write_quantized(plan, target, lambda done, total: None)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    builder_form(tmp_path, np.ones((64, 40), np.float16), opset=11)
    with pytest.raises(ImportFailed, match="opset 11"):
        plan_quantized(tmp_path / "model.onnx", 8)
    builder_form(tmp_path, np.ones((64, 40), np.float16))
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(CorruptFile, match="ends before"):
        plan_quantized(tmp_path / "model.onnx", 8)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptFile, match="no readable ONNX file"):
        plan_quantized(tmp_path / "model.onnx", 8)
