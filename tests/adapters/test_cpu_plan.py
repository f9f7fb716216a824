"""Plans of published layouts compute what ONNX Runtime computes, and run so; anything else is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.cpu.plan import Activation, DecoderPlan, DenseMatrix, QuantizedMatrix
from vmm_adapters.cpu.runner import CPURunner
from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions

from . import cpu_reference
from .builder_decoder import BuilderDecoder, make_decoder
from .tiny_decoder import TinyDecoder, dense_logits, write_decoder

TOKENS = np.random.default_rng(1).integers(0, 48, 14)
CONTEXT = 64


def plan_of(model: onnx.ModelProto | Path, tmp_path: Path, context_length: int | None = CONTEXT) -> DecoderPlan:
    if isinstance(model, Path):
        return read_plan(model / "model.onnx", context_length=context_length)
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    return read_plan(tmp_path / "model.onnx", context_length=context_length)


def onnxruntime_logits(model: onnx.ModelProto, config: BuilderDecoder, tokens: NDArray[np.int64]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feed: dict[str, NDArray[Any]] = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    for layer in range(config.layers):
        for part in ("key", "value"):
            shape = (1, config.kv_heads, 0, config.head_size)
            feed[f"past_key_values.{layer}.{part}"] = np.zeros(shape, np.float32)
    return np.asarray(session.run(["logits"], feed)[0][0])


def check_same(actual: NDArray[np.floating], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def check_runs(plan: DecoderPlan, expected: NDArray[Any], cache_dir: Path) -> None:
    """Near, where products round their inputs to 8 bits; else up to keys and values in halves."""
    runner = CPURunner(plan, RunnerOptions(kv_cache_bytes=1 << 20, num_threads=2, shared_cache_dir=cache_dir))
    rows, tokens = [], TOKENS.tolist()
    for start, stop in ((0, 3), (3, 4), (4, len(tokens))):
        rows.append(runner.execute(Batch((Chunk(tokens[start:stop], start, [1], stop - start),))).copy())
    runner.close()
    logits = np.concatenate(rows)
    is_exact = isinstance(plan.layers[0].down.matrix, DenseMatrix)
    assert np.abs(logits - expected).max() < (2e-3 if is_exact else 0.1) * np.abs(expected).max()
    cosine = (logits * expected).sum() / np.linalg.norm(logits) / np.linalg.norm(expected)
    assert cosine > (0.999999 if is_exact else 0.998)


TINY = {
    "default": TinyDecoder(),
    "packed Q, K, V": TinyDecoder(packed_qkv=True),
    "packed Q, K, V with biases": TinyDecoder(packed_qkv=True, qkv_bias=True),
    "biases": TinyDecoder(qkv_bias=True),
    "head norms": TinyDecoder(qk_norm=True),
    "windows": TinyDecoder(windows=(-1, 5)),
    "two rotary tables": TinyDecoder(rope_bases=(10_000.0, 100.0)),
    "part of the head rotated": TinyDecoder(rotary_size=16),
    "neighbours rotated": TinyDecoder(rotary_interleaved=True),
    "rotated before": TinyDecoder(rotary_outside=True),
    "a part rotated before": TinyDecoder(rotary_outside=True, rotary_size=16, rotary_interleaved=True),
    "rotated nowhere": TinyDecoder(rotary_nowhere=True),
    "positions given": TinyDecoder(positions_given=True),
    "a scale": TinyDecoder(scale=0.3),
    "scores capped": TinyDecoder(softcap=2.0),
    "4 bits": TinyDecoder(weight_bits=4),
    "8 bits": TinyDecoder(weight_bits=8),
    "float zero points": TinyDecoder(weight_bits=4, float_zero_points=True),
    "an embedding of 4 bits": TinyDecoder(weight_bits=4, embedding="gather_block_quantized_4"),
    "an embedding of 8 bits": TinyDecoder(weight_bits=8, embedding="gather_block_quantized_8"),
    "rows taken apart": TinyDecoder(weight_bits=8, embedding="gather_then_dequantize", tied=True),
}


@pytest.mark.runtime
@pytest.mark.parametrize("name", TINY)
def test_tiny_decoders_compute_what_onnx_runtime_computes(name: str, tmp_path: Path, kernel_cache: Path) -> None:
    config = replace(TINY[name], vocab_size=48)
    folder = write_decoder(tmp_path, config)
    plan = plan_of(folder, tmp_path)
    assert (plan.embedding is plan.lm_head.matrix) == config.tied
    expected = dense_logits(folder, config, TOKENS.tolist())
    check_same(cpu_reference.logits(plan, TOKENS), expected)
    check_runs(plan, expected, kernel_cache)


BUILT = {
    "4 bits": BuilderDecoder(),
    "4 bits, symmetric": BuilderDecoder(is_symmetric=True),
    "4 bits, blocks of 16": BuilderDecoder(block_size=16),
    "4 bits, blocks longer than a row": BuilderDecoder(block_size=128, embedding="tied"),
    "a last block that is not full": BuilderDecoder(heads=5, kv_heads=1, embedding="tied"),
    "8 bits": BuilderDecoder(bits=8, embedding="tied"),
    "8 bits, symmetric": BuilderDecoder(bits=8, is_symmetric=True),
    "a head of 8 bits": BuilderDecoder(head_bits=8, embedding="tied"),
    "floats": BuilderDecoder(bits=None),
    "floats, tied": BuilderDecoder(bits=None, embedding="tied", head_bias=True),
    "signed embedding": BuilderDecoder(embedding="int4", is_symmetric=True),
    "signed embedding with zero points": BuilderDecoder(embedding="int4"),
    "unsigned embedding": BuilderDecoder(embedding="uint4"),
    "unsigned embedding, no zero points": BuilderDecoder(embedding="uint4", is_symmetric=True),
    "an odd number of blocks": BuilderDecoder(heads=6, embedding="uint4"),
    "Q, K, V apart": BuilderDecoder(packed_qkv=False, qkv_bias=True),
    "a packed bias": BuilderDecoder(qkv_bias=True, head_bias=True),
    "biases in the product": BuilderDecoder(qkv_bias=True, head_bias=True, fused_bias=True, is_symmetric=True),
    "qwen3": BuilderDecoder(head_norms=True, qkv_bias=True, head_size=32),
    "qwen3, Q, K, V apart": BuilderDecoder(head_norms=True, packed_qkv=False),
    "gate and up in one": BuilderDecoder(gate_up="fused"),
    "gemma": BuilderDecoder(activation="gelu_tanh", embedding_scale=8.0),
    "gemma2": BuilderDecoder(activation="gelu_tanh", embedding_scale=8.0, post_norms=True, softcap=3.0),
    "gelu": BuilderDecoder(activation="gelu"),
    "fast gelu": BuilderDecoder(activation="fast_gelu"),
    "quick gelu that is SiLU": BuilderDecoder(activation="quick_gelu"),
    "granite": BuilderDecoder(embedding_scale=6.0, residual_scale=0.4, logit_scale=0.3),
    "one layer": BuilderDecoder(layers=1),
}


@pytest.mark.runtime
@pytest.mark.parametrize("name", BUILT)
def test_built_decoders_compute_what_onnx_runtime_computes(name: str, tmp_path: Path, kernel_cache: Path) -> None:
    config = BUILT[name]
    model = make_decoder(config)
    plan = plan_of(model, tmp_path)
    assert (plan.embedding is plan.lm_head.matrix) == (config.embedding == "tied")
    expected = onnxruntime_logits(model, config, TOKENS)
    check_same(cpu_reference.logits(plan, TOKENS), expected)
    check_runs(plan, expected, kernel_cache)


@pytest.mark.runtime
def test_a_head_for_last_rows_alone_is_one_for_any_row(tmp_path: Path) -> None:
    config = BuilderDecoder(prunes_head=True)
    model = make_decoder(config)
    expected = onnxruntime_logits(model, config, TOKENS)
    assert len(expected) == 1
    check_same(cpu_reference.logits(plan_of(model, tmp_path), TOKENS)[-1:], expected)


@pytest.mark.runtime
def test_tables_for_short_texts_are_taken_where_no_text_is_longer(tmp_path: Path) -> None:
    config = BuilderDecoder(long_rope_from=20)
    model = make_decoder(config)
    plan = plan_of(model, tmp_path, context_length=20)
    assert plan.context_length == 20
    check_same(cpu_reference.logits(plan, TOKENS), onnxruntime_logits(model, config, TOKENS))


def test_longer_texts_are_refused_where_they_rotate_by_other_tables(tmp_path: Path) -> None:
    model = make_decoder(BuilderDecoder(long_rope_from=20))
    for context_length in (None, 21):
        with pytest.raises(UnsupportedModel, match=r"^If '/model/rope_caches_subgraph/If': .* up to 20"):
            plan_of(model, tmp_path, context_length)


@pytest.mark.parametrize(
    ("rows", "context_length", "expected"), [(64, None, 64), (64, 48, 48), (64, 100, 64), (None, 100, 100)]
)
def test_positions_are_bounded_by_tables_and_by_the_config(
    rows: int | None, context_length: int | None, expected: int, tmp_path: Path
) -> None:
    config = TinyDecoder(rotary_nowhere=True) if rows is None else TinyDecoder(context_length=rows)
    assert plan_of(write_decoder(tmp_path, config), tmp_path, context_length).context_length == expected


def test_positions_without_any_bound_are_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path, TinyDecoder(rotary_nowhere=True))
    with pytest.raises(UnsupportedModel, match="set context_length"):
        plan_of(folder, tmp_path, None)


def test_what_a_plan_says(tmp_path: Path) -> None:
    config = TinyDecoder(windows=(-1, 5), rotary_size=16, softcap=2.0, weight_bits=4, float_zero_points=True)
    plan = plan_of(write_decoder(tmp_path, config), tmp_path)
    assert (plan.width, plan.vocab_size, plan.context_length, len(plan.layers)) == (64, 80, CONTEXT, 2)
    assert plan.epsilon == pytest.approx(1e-6)
    assert [layer.attention.window for layer in plan.layers] == [None, 5]
    attention, layer = plan.layers[0].attention, plan.layers[0]
    assert (attention.num_heads, attention.num_kv_heads, attention.head_size) == (4, 2, 32)
    assert attention.scale == pytest.approx(32**-0.5)
    assert attention.softcap == 2.0
    assert attention.rotary is not None
    assert attention.rotary is plan.layers[1].attention.rotary
    assert attention.rotary.cosines.shape == (256, 8)
    assert layer.activation is Activation.SILU
    down = layer.down.matrix
    assert isinstance(down, QuantizedMatrix)
    assert (down.name, down.bits, down.block_size, down.levels.shape) == ("layer.0.down.packed", 4, 32, (64, 3, 16))
    assert down.zero_points is not None
    assert down.zero_points.dtype == np.float32
    assert isinstance(plan.embedding, DenseMatrix)


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    """Weights stay float16; vectors are float32; the casts of logits and norms are no nodes."""
    plans = [plan_of(write_decoder(tmp_path / str(half), TinyDecoder(half=half)), tmp_path) for half in (False, True)]
    assert plans[1].lm_head.matrix.values.dtype == np.float16  # type: ignore[union-attr]
    assert plans[1].final_norm.dtype == np.float32
    exact, half = (cpu_reference.logits(plan, TOKENS) for plan in plans)
    np.testing.assert_allclose(half, exact, atol=0.02 * np.abs(exact).max())


def test_bfloat16_is_read_as_its_bits(tmp_path: Path) -> None:
    model = make_decoder(BuilderDecoder(bits=None))
    expected = cpu_reference.logits(plan_of(model, tmp_path), TOKENS)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("MatMul.weight"):
            bits = (numpy_helper.to_array(tensor).view(np.uint32) >> 16).astype(np.uint16)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, bits.shape, bits.tobytes(), raw=True))
    plan = plan_of(model, tmp_path)
    head = plan.lm_head.matrix
    assert isinstance(head, DenseMatrix)
    assert head.is_bfloat16
    assert head.values.dtype == np.uint16
    assert head.values.shape == (48, 64)
    np.testing.assert_allclose(cpu_reference.logits(plan, TOKENS), expected, atol=0.1 * np.abs(expected).max())


def test_norms_of_heads_inside_attention_are_those_before_it(tmp_path: Path) -> None:
    """What the builder writes for other devices, where the kernel normalises; ONNX Runtime's own has none on a CPU."""
    model = make_decoder(BuilderDecoder(head_norms=True, packed_qkv=False))
    expected = cpu_reference.logits(plan_of(model, tmp_path), TOKENS)
    for node in [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]:
        base = node.name.removesuffix("GroupQueryAttention")
        inputs = [f"{base}q_proj/MatMul_Q4/output_0", f"{base}k_proj/MatMul_Q4/output_0", *node.input[2:]]
        weights = [f"{base}{part}_norm.layernorm.weight"[1:].replace("/", ".") for part in "qk"]
        node.input[:] = [*inputs, *[""] * (14 - len(inputs)), *weights]
        node.attribute.append(helper.make_attribute("qk_norm_epsilon", 1e-5))
    np.testing.assert_array_equal(cpu_reference.logits(plan_of(model, tmp_path), TOKENS), expected)
