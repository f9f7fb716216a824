"""The whole pass on tiny files, without a runtime: what is written, and what is refused."""

import errno
import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_config import read_config
from vmm_server.models.importers.gguf_graph import MAX_ROPE_TABLE_BYTES, max_positions
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.imported import ImportedModel

FILES = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"}


Convert = Callable[..., tuple[Path, ImportedModel]]


def test_writes_the_folder_and_describes_it(convert: Convert) -> None:
    folder, model = convert("qwen3", quantization="Q8_0")
    assert FILES | {"chat_template.jinja"} <= {path.name for path in folder.iterdir()}
    assert model == ImportedModel(
        family="qwen3",
        parameter_count=141952,
        parameter_size="142K",
        quantization="Q8_0",
        context_length=64,
        embedding_length=64,
        capabilities=("completion",),
        has_chat_template=True,
        license="apache-2.0",
        name="tiny",
    )
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert config["type"] == "qwen3"
    assert config["vocab_size"] == 96
    assert config["context_length"] == 64
    assert config["eos_token_id"] == 1
    assert config["decoder"]["head_size"] == 32


def test_the_same_file_gives_the_same_bytes(convert: Convert) -> None:
    first, _ = convert("gemma3", quantization="Q4_1")
    second, _ = convert("gemma3", quantization="Q4_1")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_the_graph_is_valid_onnx_and_its_tensors_can_be_mapped(convert: Convert) -> None:
    folder, _ = convert("llama", quantization="Q4_0")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert model.ir_version == 10
    assert {each.domain: each.version for each in model.opset_import} == {"": 21, "com.microsoft": 1}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    taken = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {each.key: each.value for each in tensor.external_data}
            assert entry["location"] == "model.onnx.data"
            assert int(entry["offset"]) % 64 == 0
            taken.append((int(entry["offset"]), int(entry["length"])))
    taken.sort()
    assert all(start + length <= after for (start, length), (after, _) in pairwise(taken))
    assert sum(taken[-1]) == (folder / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_tied_embedding_is_stored_once(convert: Convert, kind: str) -> None:
    folder, _ = convert("llama3", quantization=kind)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    head = next(node for node in graph.node if "logits" in node.output)
    names = {tensor.name for tensor in graph.initializer if tensor.name.startswith(("model.embed_tokens", "lm_head"))}
    lookups = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    assert names <= lookups
    assert all(name.startswith("model.embed_tokens") for name in names)
    assert head.name.startswith("/lm_head/")


def test_progress_ends_with_everything(tmp_path: Path, write_tiny: Callable[..., Path]) -> None:
    source, folder = write_tiny("llama"), tmp_path / "out"
    folder.mkdir()
    seen: list[tuple[int, int]] = []
    import_gguf(source, folder, lambda done, total: seen.append((done, total)))
    total = (folder / "model.onnx.data").stat().st_size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {each for _, each in seen} == {total}
    assert seen[-1] == (total, total)


def test_memory_is_bounded_by_a_piece_not_by_the_model(tmp_path: Path, tiny_models: ModuleType) -> None:
    model, rows = tiny_models.MODELS["llama"], 400_000
    tensors = tiny_models.gguf_tensors(model)
    tensors["token_embd.weight"] = np.zeros((rows, 64), np.float32)
    tensors["output.weight"] = np.zeros((rows, 64), np.float32)
    source, folder = tmp_path / "large.gguf", tmp_path / "out"
    folder.mkdir()
    tiny_models.write_gguf(source, model, tensors, GGMLQuantizationType.Q8_0)
    assert source.stat().st_size > 50e6
    del tensors
    tracemalloc.start()
    try:
        import_gguf(source, folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6


@pytest.mark.parametrize("architecture", ["mamba", "gpt2"])
def test_an_unknown_architecture_is_named_with_those_that_are_known(tmp_path: Path, architecture: str) -> None:
    source = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(source, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitecture, match=repr(architecture)) as caught:
        import_gguf(source, tmp_path)
    assert "llama, qwen2, qwen3, phi3, granite" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("qwen3moe", "mixtures"), ("granitehybrid", "granite4")],
)
def test_a_family_that_cannot_run_is_refused_with_the_reason(tmp_path: Path, architecture: str, words: str) -> None:
    source = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(source, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitecture, match=f"'{architecture}' is not supported: .*{words}"):
        import_gguf(source, tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"expert_count": 8}, "experts"),
        ({"rope.scaling.type": "dynamic"}, "rope scaling 'dynamic'"),
        ({"attn_logit_softcapping": 50.0}, "soft-capped"),
        ({"attention.value_length": 8}, "value heads"),
        ({"attention.head_count_kv": [1, 2, 2]}, "differs between layers"),
    ],
)
def test_a_variant_that_is_not_built_is_refused(convert: Convert, keys: dict[str, object], words: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=words):
        convert("llama", keys=keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"block_count": None}, "llama.block_count is None"),
        ({"block_count": 2**31}, "llama.block_count is 2147483648"),
        ({"block_count": 4}, r"lacks the tensor 'blk\.3\.attn_norm\.weight'"),
        ({"attention.head_count": 0}, "attention.head_count is 0"),
        ({"attention.head_count_kv": 3}, "a divisor of 4"),
        ({"attention.head_count": 8}, r"'blk\.0\.attn_k\.weight' is 32x64, 16x64 is expected"),
        ({"embedding_length": 32}, r"'token_embd\.weight' is 96x64, anyx32 is expected"),
        ({"embedding_length": "wide"}, "embedding_length is 'wide'"),
        ({"rope.dimension_count": 15}, "an even number"),
        ({"rope.freq_base": 1.0}, "a number above 1"),
        ({"rope.scaling.type": "longrope"}, r"lacks the tensor 'rope_factors_short\.weight'"),
        ({"embedding_length": 2}, "attention.key_length is 0"),
        ({"attention.key_length": 2**31}, "attention.key_length is 2147483648"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1e-30}, "no usable rotation"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "a positive number"),
    ],
)
def test_keys_that_cannot_be_right_are_named(convert: Convert, keys: dict[str, object], words: str) -> None:
    with pytest.raises(CorruptFile, match=words):
        convert("llama", keys=keys)


@pytest.mark.parametrize(
    ("name", "keys", "rotated"),
    [
        ("smollm3", {}, [1, 1, 1, 0, 1]),
        ("granite", {}, [1, 1, 1]),
        ("granite", {"rope.scaling.finetuned": True}, [1, 1, 1]),
        ("granite", {"rope.scaling.finetuned": False}, [0, 0, 0]),
    ],
)
def test_layers_without_rotary_embedding(
    convert: Convert, name: str, keys: dict[str, object], rotated: list[int]
) -> None:
    folder, _ = convert(name, keys=keys)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    attributes = [{each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} for node in nodes]
    assert [each["do_rotary"] for each in attributes] == rotated
    assert [len(node.input) for node in nodes] == [9 if is_rotated else 7 for is_rotated in rotated]


@pytest.mark.parametrize("missing", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_longrope_needs_the_factors_of_the_whole_context(
    convert: Convert, tiny_models: ModuleType, missing: str
) -> None:
    tensors = _without(tiny_models.gguf_tensors(tiny_models.MODELS["phi3_long"]), missing)
    keys = {"rope.scaling.type": "longrope"}
    if "short" in missing:
        convert("phi3_long", tensors=tensors, keys=keys)
    else:
        with pytest.raises(CorruptFile, match=rf"lacks the tensor '{missing}'"):
            convert("phi3_long", tensors=tensors, keys=keys)


def _without(tensors: dict[str, NDArray[np.float32]], name: str) -> dict[str, NDArray[np.float32]]:
    return {each: array for each, array in tensors.items() if each != name}


def test_a_missing_tensor_is_named(convert: Convert, tiny_models: ModuleType) -> None:
    tensors = _without(tiny_models.gguf_tensors(tiny_models.MODELS["llama"]), "blk.1.ffn_up.weight")
    with pytest.raises(CorruptFile, match=r"blk\.1\.ffn_up\.weight"):
        convert("llama", tensors=tensors)


def test_a_tensor_without_a_place_is_refused_not_dropped(convert: Convert, tiny_models: ModuleType) -> None:
    tensors = tiny_models.gguf_tensors(tiny_models.MODELS["llama"])
    tensors["blk.0.ffn_gate_inp.weight"] = np.zeros((4, 64), np.float32)
    with pytest.raises(ImportFailed, match=r"no place for, such as 'blk\.0\.ffn_gate_inp\.weight'"):
        convert("llama", tensors=tensors)


def test_a_type_that_is_not_read_is_named_with_those_that_are(convert: Convert) -> None:
    with pytest.raises(ImportFailed, match="TQ1_0") as caught:
        convert(
            "llama",
            tensors={"token_embd.weight": np.zeros((96, 256), np.float32)},
            quantization="TQ1_0",
            keys={"embedding_length": 256},
        )
    assert "Q4_0, Q4_1" in str(caught.value.hint)


def test_scales_that_are_no_numbers_are_corruption(tmp_path: Path, write_tiny: Callable[..., Path]) -> None:
    source = write_tiny("llama", quantization="Q4_0")
    entry = next(tensor for tensor in gguf.GGUFReader(source).tensors if tensor.name == "blk.0.attn_v.weight")
    with source.open("r+b") as file:
        file.seek(entry.data_offset)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(CorruptFile, match=r"'blk\.0\.attn_v\.weight' has scales that are not numbers"):
        import_gguf(source, tmp_path)


def test_a_folder_that_cannot_be_written_is_the_stores_error(tmp_path: Path, write_tiny: Callable[..., Path]) -> None:
    source = write_tiny("llama")

    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="No space left on device"):
        import_gguf(source, tmp_path, full)
    with pytest.raises(StoreError, match="No such file or directory"):
        import_gguf(source, tmp_path / "nowhere")


def test_rotary_tables_do_not_grow_with_absurd_contexts(write_tiny: Callable[..., Path]) -> None:
    with GGUFFile(write_tiny("gemma3", keys={"context_length": 2**30})) as file:
        config = read_config(file)
    assert config.context_length == 2**30
    assert max_positions(config) == MAX_ROPE_TABLE_BYTES // (2 * 2 * 4 * 16)  # two layers' kinds, cosine and sine


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_imported_or_refused_never_a_crash(
    tmp_path: Path, write_tiny: Callable[..., Path], changes: list[tuple[int, int]]
) -> None:
    original, source, folder = tmp_path / "gemma3.gguf", tmp_path / "damaged.gguf", tmp_path / "out"
    if not original.exists():
        write_tiny("gemma3", quantization="Q4_1")
        folder.mkdir()
    content = bytearray(original.read_bytes())
    for position, value in changes:
        content[position] = value
    source.write_bytes(bytes(content))
    message = str(source)
    try:
        import_gguf(source, folder)
    except ImportFailed as error:
        message = error.message
    assert str(source) in message
    assert "\n" not in message
