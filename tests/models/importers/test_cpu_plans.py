"""What our importers write is read into plans, of every family and type, that compute what transformers computes."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from tests.adapters import cpu_reference
from tests.adapters.graph_changes import Change, attribute, constant, reads

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.cpu.plan import DecoderPlan, DenseMatrix, Linear, Matrix, QuantizedMatrix
from vmm_adapters.cpu.runner import CPURunner
from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.models.importers import ImportedModel
from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS
from vmm_server.models.importers.gguf_config import DecoderConfig, RopeConfig
from vmm_server.models.importers.gguf_families import FAMILIES
from vmm_server.models.importers.gguf_graph import build_decoder
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.onnx_quantize import plan_quantized, write_quantized
from vmm_server.models.importers.onnx_writer import ModelWriter

Floats = NDArray[np.float32]
Convert = Callable[..., tuple[Path, ImportedModel]]
Blocks = Callable[..., NDArray[np.uint8]]

NAMES = [
    *("llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"),
    *("phi3", "phi3_long", "phi3_short", "granite", "smollm3", "olmo2", "olmo3"),
]
TWO_BITS = GGMLQuantizationType.Q2_K
BLOCK_SCALES = {
    GGMLQuantizationType.Q4_0: 1e-2,
    GGMLQuantizationType.Q4_1: 1e-2,
    GGMLQuantizationType.Q5_0: 1e-2,
    GGMLQuantizationType.Q5_1: 3e-3,
    GGMLQuantizationType.Q8_0: 3e-4,
    GGMLQuantizationType.IQ4_NL: 5e-4,
    GGMLQuantizationType.IQ4_XS: 2e-5,
    GGMLQuantizationType.Q3_K: 2e-5,
    GGMLQuantizationType.Q4_K: 2e-5,
    GGMLQuantizationType.Q5_K: 2e-5,
    GGMLQuantizationType.Q6_K: 2e-5,
}
"""Types of blocks, and scales by which random ones are weights of a usual size."""
LAYER_SHAPES = {
    "attn_q": (256, 256),
    "attn_k": (128, 256),
    "attn_v": (128, 256),
    "attn_output": (256, 256),
    "ffn_gate": (512, 256),
    "ffn_up": (512, 256),
    "ffn_down": (256, 512),
}
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def plan_of(folder: Path) -> DecoderPlan:
    return read_plan(folder / "model.onnx", context_length=None)


def linears(plan: DecoderPlan) -> list[Linear]:
    """Every product, in order."""
    found = [
        (*layer.attention.projections, layer.attention.output, *layer.gate_up, layer.down) for layer in plan.layers
    ]
    return [*(each for layer in found for each in layer), plan.lm_head]


def matrices(plan: DecoderPlan) -> list[Matrix]:
    return [plan.embedding, *(each.matrix for each in linears(plan))]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(
    name: str, convert: Convert, tiny_models: ModuleType, reference_logits: Mapping[str, Floats]
) -> None:
    plan = plan_of(convert(name)[0])
    assert plan.context_length == tiny_models.CONTEXT
    assert (plan.embedding is plan.lm_head.matrix) == tiny_models.MODELS[name].tied
    for tokens, expected in zip(tiny_models.TOKENS, reference_logits[name], strict=True):
        actual = cpu_reference.logits(plan, tokens)
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_every_tiny_model_and_type_is_tried(tiny_models: ModuleType) -> None:
    assert set(NAMES) == set(tiny_models.MODELS)
    assert set(BLOCK_SCALES) == set(BLOCK_FORMATS) - {TWO_BITS}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["llama3", "qwen3"])  # tied, and with an lm_head of its own
def test_matrices_say_what_the_file_says(name: str, kind: str, convert: Convert) -> None:
    exact, folder = plan_of(convert(name)[0]), plan_of(convert(name, quantization=kind)[0])
    quantization = GGMLQuantizationType[kind]
    assert len(matrices(folder)) == 2 + 7 * len(exact.layers)
    for before, after in zip(matrices(exact), matrices(folder), strict=True):
        assert isinstance(after, QuantizedMatrix if kind.startswith("Q") else DenseMatrix)
        weights = np.ascontiguousarray(cpu_reference.dense(before), np.float32)
        expected = gguf.dequantize(gguf.quantize(weights, quantization), quantization).reshape(weights.shape)
        np.testing.assert_allclose(cpu_reference.dense(after), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [kind for kind in BLOCK_FORMATS if kind is not TWO_BITS], ids=lambda kind: kind.name)
def test_every_type_of_block_says_what_the_file_says(
    kind: GGMLQuantizationType, tmp_path: Path, random_blocks: Blocks
) -> None:
    weights = write_blocks(tmp_path, kind, random_blocks)
    plan = plan_of(tmp_path)
    assert plan.embedding is plan.lm_head.matrix
    names = ["token_embd", *(f"blk.0.{name}" for name in LAYER_SHAPES), "token_embd"]
    for name, matrix in zip(names, matrices(plan), strict=True):
        expected = weights[f"{name}.weight"]
        np.testing.assert_allclose(
            cpu_reference.dense(matrix), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.runtime
@pytest.mark.parametrize("kind", BLOCK_SCALES, ids=lambda kind: kind.name)
def test_every_type_of_block_runs(
    kind: GGMLQuantizationType, tmp_path: Path, random_blocks: Blocks, kernel_cache: Path
) -> None:
    write_blocks(tmp_path, kind, partial(random_blocks, scale=BLOCK_SCALES[kind]))
    plan = plan_of(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 96, 40)
    runner = CPURunner(plan, RunnerOptions(kv_cache_bytes=1 << 20, num_threads=2, shared_cache_dir=kernel_cache))
    logits = runner.execute(Batch((Chunk(tokens.tolist(), 0, [0, 1], 40),))).copy()
    for start, token in enumerate(tokens.tolist()):
        assert (runner.execute(Batch((Chunk([token], start, [0, 1]),)))[0] == logits[start]).all()
    runner.close()
    expected = cpu_reference.logits(plan, tokens)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert (logits * expected).sum() > 0.999 * np.linalg.norm(logits) * np.linalg.norm(expected)


def test_levels_of_two_bits_are_refused_by_name(tmp_path: Path, random_blocks: Blocks) -> None:
    write_blocks(tmp_path, TWO_BITS, random_blocks)
    with pytest.raises(UnsupportedModel, match=r"^MatMulNBits '/lm_head/MatMulNBits': 2 bits are not supported"):
        plan_of(tmp_path)


def write_blocks(folder: Path, kind: GGMLQuantizationType, random_blocks: Blocks) -> dict[str, Floats]:
    """A decoder of one layer, 256 wide, with random blocks for matrices; their weights by the file's names."""
    rng, raw, weights = np.random.default_rng(0), {}, {}
    block_size = gguf.GGML_QUANT_SIZES[kind][0]
    shapes = {"token_embd": (96, 256)} | {f"blk.0.{name}": shape for name, shape in LAYER_SHAPES.items()}
    for seed, (name, (rows, columns)) in enumerate(shapes.items()):
        raw[f"{name}.weight"] = random_blocks(kind, rows * columns // block_size, seed).reshape(rows, -1)
        weights[f"{name}.weight"] = gguf.dequantize(raw[f"{name}.weight"], kind).reshape(rows, columns)
    writer = gguf.GGUFWriter(folder / "blocks.gguf", "qwen2")
    for name, blocks in raw.items():
        writer.add_tensor(name, blocks, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.standard_normal(256).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = DecoderConfig(
        family="qwen2",
        traits=FAMILIES["qwen2"],
        num_layers=1,
        context_length=64,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_size=64,
        epsilon=1e-5,
        rope=RopeConfig(64, 1e4),
        local_rope=None,
        window=None,
        windowed_layers=(False,),
        attention_scale=0.125,
        logit_softcap=None,
    )
    onnx_writer = ModelWriter("blocks")
    with GGUFFile(folder / "blocks.gguf") as file:
        build_decoder(onnx_writer, file, config)
        onnx_writer.write(folder, lambda done, total: None)
    return weights


@pytest.mark.parametrize(
    ("name", "kind", "bits"),
    [("llama3", "F16", 8), ("llama3", "F16", 4), ("qwen3", "F32", 4), ("gemma3", "BF16", 8), ("llama3", "Q5_1", 4)],
)
def test_variants_in_fewer_bits_are_read(
    name: str, kind: str, bits: int, convert: Convert, tmp_path: Path, tiny_models: ModuleType
) -> None:
    folder, _ = convert(name, quantization=kind)
    target = tmp_path / "variant"
    target.mkdir()
    write_quantized(plan_quantized(folder / "model.onnx", bits), target, lambda done, total: None)
    original, plan = plan_of(folder), plan_of(target)
    assert (plan.embedding is plan.lm_head.matrix) == tiny_models.MODELS[name].tied
    assert {each.bits for each in matrices(plan) if isinstance(each, QuantizedMatrix)} == {8, bits}
    for before, after in zip(matrices(original), matrices(plan), strict=True):
        assert isinstance(after, QuantizedMatrix)
        weights = cpu_reference.dense(before)
        error = np.abs(cpu_reference.dense(after) - weights).max() / np.abs(weights).max()
        assert error < 1.5 * 2.0**-after.bits


def test_levels_and_scales_are_views_of_the_file(convert: Convert) -> None:
    folder, _ = convert("llama", quantization="Q4_1")
    plan = plan_of(folder)
    assert plan.files == (str(folder / "model.onnx.data"),)
    for matrix in matrices(plan):
        assert isinstance(matrix, QuantizedMatrix)
        for array in (matrix.levels, matrix.scales, matrix.zero_points):
            assert isinstance(_owner(array), np.memmap)


def _owner(array: object) -> object:
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap) and array.base is not None:
        array = array.base
    return array


TABLE = np.stack([np.arange(256) >> 4, np.arange(256) & 15], axis=1).astype(np.float32)
OFFSETS = "/model/layers.2/mlp/down_proj/offsets"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("Q4_1", constant("/model/embed_tokens/levels/Gather", 0, TABLE), "is not that of two levels in each byte"),
        ("Q5_1", constant(f"{OFFSETS}/ReduceSum", 1, np.array([2])), f"ReduceSum '{OFFSETS}/ReduceSum'"),
        ("Q5_1", attribute(f"{OFFSETS}/ReduceSum", keepdims=1), f"ReduceSum '{OFFSETS}/ReduceSum'"),
        ("Q5_1", constant(f"{OFFSETS}/Reshape", 1, np.array([0, 0, -1, 16])), f"Reshape '{OFFSETS}/Reshape'"),
        ("Q5_1", attribute(f"{OFFSETS}/Transpose", perm=[0, 1]), f"Transpose '{OFFSETS}/Transpose'"),
        (
            *("Q5_1", reads(f"{OFFSETS}/Reshape", 0, "/model/layers.2/mlp/up_proj/offsets/Add/output_0")),
            f"Reshape '{OFFSETS}/Reshape': the input of MatMulNBits",
        ),
    ],
)
def test_other_forms_of_levels_and_offsets_are_refused_by_name(
    kind: str, change: Change, message: str, convert: Convert
) -> None:
    folder, _ = convert("llama", quantization=kind)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match=re.escape(message)):
        plan_of(folder)
