"""The whole pass on tiny folders, without a runtime: what is written, and what is refused."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.folders import describe_folder, detect_format
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_quantize import quantize_gguf
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.quantization_mix import parse_quantization
from vmm_server.models.importers.safetensors_folder import import_safetensors

Write = Callable[..., Path]
Convert = Callable[..., tuple[Path, ImportedModel]]


@pytest.fixture
def convert(tmp_path: Path, write_folder: Write) -> Convert:
    """`convert("llama", quantize="q8_0", **write_folder's arguments)`: (folder, description)."""

    def run(name: str, quantize: str | None = None, **changes: object) -> tuple[Path, ImportedModel]:
        source, folder = write_folder(name, **changes), tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        mix = parse_quantization(quantize) if quantize else None
        return folder, import_safetensors(source, folder, quantize=mix)

    return run


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))


def test_writes_the_folder_and_describes_it(convert: Convert) -> None:
    folder, model = convert("qwen3", dtype="BF16")
    assert model == ImportedModel(
        family="qwen3",
        parameter_count=141952,
        parameter_size="142K",
        quantization="BF16",
        context_length=64,
        embedding_length=64,
        capabilities=("completion",),
        has_chat_template=True,
        license=None,
        name=None,
    )
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert (config["type"], config["vocab_size"], config["eos_token_id"]) == ("qwen3", 96, 1)
    assert detect_format(folder) == "onnx"
    assert describe_folder(folder).context_length == 64


@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        *((name, None) for name in ("llama", "mistral", "qwen2", "gemma3", "phi3", "olmo3")),
        *(("llama", "q8_0"), ("qwen3", "q4_0"), ("gemma3", "q4_1"), ("smollm3", "q5_0")),
    ],
)
def test_the_same_weights_give_the_same_model_as_gguf(
    name: str, quantize: str | None, convert: Convert, write_tiny: Write, tmp_path: Path
) -> None:
    folder, described = convert(name, quantize, shards=3)
    source, other = write_tiny(name), tmp_path / "other"
    other.mkdir()
    if quantize:
        quantize_gguf(source, target := tmp_path / "q.gguf", parse_quantization(quantize), lambda done, total: None)
        source = target
    assert import_gguf(source, other).parameter_count == described.parameter_count
    for file in ("model.onnx", "model.onnx.data"):
        assert (folder / file).read_bytes() == (other / file).read_bytes()


def test_one_file_or_several_is_the_same(convert: Convert) -> None:
    one, _ = convert("qwen2")
    (one_source := one.parent / "qwen2-folder" / "model.safetensors").unlink()
    several, _ = convert("qwen2", shards=4)
    assert not one_source.exists()
    assert all((one / path.name).read_bytes() == path.read_bytes() for path in several.iterdir())


def test_memory_is_bounded_by_a_piece_not_by_the_model(convert: Convert, tiny_models: ModuleType) -> None:
    tensors = tiny_models.weights(tiny_models.MODELS["llama"])
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] = np.zeros((200_000, 64), np.float32)

    peaks: list[int] = []

    def imported(source: Path, folder: Path) -> None:
        tracemalloc.start()
        try:
            import_safetensors(source, folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    folder, _ = convert("llama", tensors=tensors, config={"vocab_size": 200_000})
    (again := folder.parent / "again").mkdir()
    imported(folder.parent / "llama-folder", again)
    assert (again / "model.onnx.data").stat().st_size > 100e6
    assert peaks[0] < 24e6


# Tokens


def test_every_token_that_ends_an_answer_is_told(convert: Convert, write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama")
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 6], "pad_token_id": -1}')
    edit(source / "config.json", bos_token_id=0, eos_token_id=7)
    import_safetensors(source, folder := _empty(tmp_path / "out"))
    model = json.loads((folder / "genai_config.json").read_text())["model"]
    assert model["eos_token_id"] == [5, 6, 1], "generation_config.json's, then the tokeniser's own"
    assert (model["bos_token_id"], model["pad_token_id"]) == (0, 5)
    (source / "generation_config.json").unlink()
    import_safetensors(source, folder := _empty(tmp_path / "again"))
    assert json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"] == [7, 1]


def test_a_model_that_would_never_stop_is_refused(write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama")
    (source / "generation_config.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(CorruptFile, match="nothing says which token ends an answer"):
        import_safetensors(source, _empty(tmp_path / "out"))


def test_added_tokens_without_embeddings_are_left_out(write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama")
    content = json.loads((source / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 96, "content": "<image>"})
    (source / "tokenizer.json").write_text(json.dumps(content))
    import_safetensors(source, folder := _empty(tmp_path / "out"))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<image>") is None


def test_a_vocabulary_larger_than_the_embeddings_is_refused(convert: Convert, tiny_models: ModuleType) -> None:
    tensors = tiny_models.weights(tiny_models.MODELS["llama"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:90]
    with pytest.raises(CorruptFile, match=r"tokenizer\.json: has the token 95 but the model embeddings for 90"):
        convert("llama", tensors=tensors)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokeniser_that_cannot_be_read_is_refused(write_folder: Write, tmp_path: Path, content: str | None) -> None:
    source = write_folder("llama")
    (source / "tokenizer.json").unlink()
    if content:
        (source / "tokenizer.json").write_text(content)
    with pytest.raises(ImportFailed, match=r"tokenizer\.json"):
        import_safetensors(source, _empty(tmp_path / "out"))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


# Tensors


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[ModuleType, str], dict[str, Any]]:
    def run(tiny_models: ModuleType, name: str) -> dict[str, Any]:
        tensors = tiny_models.weights(tiny_models.MODELS[name])
        change(tensors)
        return dict(tensors)

    return run


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        (
            "llama",
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            CorruptFile,
            r"'model\.layers\.1\.mlp\.up_proj",
        ),
        ("llama", lambda t: t.pop("lm_head.weight"), CorruptFile, r"lacks the tensor 'lm_head\.weight'"),
        ("llama", lambda t: t.pop("model.norm.weight"), CorruptFile, r"lacks the tensor 'model\.norm\.weight'"),
        ("qwen2", lambda t: t.pop("model.layers.2.self_attn.k_proj.bias"), CorruptFile, r"2\.self_attn\.k_proj\.bias"),
        (
            "gemma3",
            lambda t: t.pop("model.layers.0.pre_feedforward_layernorm.weight"),
            CorruptFile,
            "0.pre_feedforward",
        ),
        (
            "llama",
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}),
            ImportFailed,
            r"no place for, such as 'model\.layers\.0\.self_attn\.q_proj\.bias'",
        ),
        (
            "llama",
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": np.zeros((64, 64), np.float32)}),
            CorruptFile,
            r"'model\.layers\.0\.self_attn\.k_proj\.weight' is 64x64, 32x64 is expected",
        ),
        (
            "llama",
            lambda t: t.update({"model.norm.weight": np.zeros((0,), np.float32)}),
            CorruptFile,
            r"'model\.norm\.weight' is empty",
        ),
        ("llama", lambda t: t.update({"visual.proj": np.zeros(4, np.float32)}), ImportFailed, r"'visual\.proj'"),
    ],
)
def test_a_tensor_that_is_missing_or_wrong_is_named(
    name: str,
    change: Callable[[dict[str, Any]], object],
    error: type[Exception],
    words: str,
    convert: Convert,
    tiny_models: ModuleType,
) -> None:
    with pytest.raises(error, match=words):
        convert(name, tensors=_changed(change)(tiny_models, name))


def test_what_transformers_does_not_read_is_not_read(convert: Convert, tiny_models: ModuleType) -> None:
    tied, _ = convert("llama3")
    tensors = tiny_models.weights(tiny_models.MODELS["llama3"])
    tensors["lm_head.weight"] = np.ones((96, 64), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    again, _ = convert("llama3", tensors=tensors)
    assert (again / "model.onnx.data").read_bytes() == (tied / "model.onnx.data").read_bytes()


def test_a_dtype_that_is_not_read_is_named(convert: Convert) -> None:
    with pytest.raises(ImportFailed, match=r"tensor 'model\.embed_tokens\.weight' is stored as I64") as caught:
        convert("llama", dtype="I64")
    assert "F32, F16, BF16" in str(caught.value.hint)


def test_weights_that_are_no_numbers_cannot_be_quantised(convert: Convert, tiny_models: ModuleType) -> None:
    tensors = tiny_models.weights(tiny_models.MODELS["llama"])
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    with pytest.raises(CorruptFile, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' has weights that are no numbers"):
        convert("llama", "q8_0", tensors=tensors)


# Shards


def _shards(folder: Path) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def test_a_missing_shard_is_named(write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama", shards=2)
    _shards(source).unlink()
    with pytest.raises(CorruptFile, match=r"model-00002-of-00002\.safetensors: is missing"):
        import_safetensors(source, tmp_path)


def test_a_shard_without_what_the_index_promises(write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama", shards=2)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.more.weight"] = _shards(source).name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"00002\.safetensors: lacks the tensor 'model\.more\.weight'"):
        import_safetensors(source, tmp_path)


def test_a_tensor_in_two_shards(write_folder: Write, tmp_path: Path) -> None:
    source = write_folder("llama", shards=2)
    _shards(source).write_bytes((source / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(CorruptFile, match="is in another file as well"):
        import_safetensors(source, tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": ["a"]},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": 1}},
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(write_folder: Write, tmp_path: Path, index: object) -> None:
    source = write_folder("llama", shards=2)
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"model\.safetensors\.index\.json"):
        import_safetensors(source, tmp_path)


def test_pickled_weights_are_never_read(write_folder: Write) -> None:
    source = write_folder("llama")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ImportFailed, match=r"pytorch_model\.bin is pickled, and is never read"):
        detect_format(source)
