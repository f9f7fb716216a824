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

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest, UnsupportedArchitecture
from vmm_server.models.importers.folders import describe_folder, detect_format
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_quantize import quantize_gguf
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.quantization_mix import parse_quantization
from vmm_server.models.importers.safetensors_config import read_text_config
from vmm_server.models.importers.safetensors_folder import check_safetensors, import_safetensors

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


# Configurations


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("llama3", {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": "llama3"}),
        (
            "llama_linear",
            {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4}},
        ),
        (
            "gemma3",
            {
                "rope_parameters": None,
                "layer_types": None,
                "sliding_window_pattern": 3,
                "rope_theta": 1000.0,
                "rope_local_base_freq": 100.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ("qwen2", {"rope_parameters": None, "rope_theta": 1e6, "sliding_window": 6, "max_window_layers": 1}),
    ],
)
def test_what_transformers_wrote_before_version_5_means_the_same(
    name: str, old: dict[str, object], write_folder: Write, tiny_models: ModuleType
) -> None:
    if old["rope_parameters"] is None and old.get("rope_scaling") == "llama3":
        given = dict(tiny_models.MODELS[name].config["rope_parameters"])
        del given["rope_theta"]
        old = old | {"rope_scaling": given}
    new = read_text_config(write_folder(name))
    assert repr(read_text_config(write_folder(name, config=old))) == repr(new)


def test_layers_with_a_window_as_each_family_has_them(write_folder: Write) -> None:
    def windowed(name: str, **changes: object) -> tuple[bool, ...]:
        return read_text_config(write_folder(name, config=changes)).decoder.windowed_layers

    assert windowed("mistral") == (True, True, True)
    assert windowed("mistral", sliding_window=64) == (False, False, False), "a window of the whole context is none"
    on = {"use_sliding_window": True, "sliding_window": 6}
    assert windowed("qwen2", sliding_window=6) == (False, False, False)
    assert windowed("qwen2", **on, max_window_layers=1) == (False, True, True)
    assert windowed("qwen2", **on, layer_types=["sliding_attention", *["full_attention"] * 2]) == (True, False, False)
    assert windowed("smollm3", **on) == (False, False, False, True, False)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"model_type": "mamba"}, UnsupportedArchitecture, r"config\.json: the model family 'mamba'"),
        ({"model_type": None}, UnsupportedArchitecture, "the model family None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedArchitecture, "only LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ImportFailed, "quantised by gptq"),
        ({"quantization_config": {"bits": 4}}, ImportFailed, "quantised by an unnamed method"),
        ({"hidden_act": "relu"}, UnsupportedArchitecture, "hidden_act 'relu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedArchitecture, "rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, CorruptFile, r"rope_scaling\.factor is None"),
        ({"rope_scaling": [1]}, CorruptFile, r"rope_scaling is '\[1\]'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, CorruptFile, "at least 1 is expected"),
        ({"rope_theta": "fast"}, CorruptFile, "rope_theta is 'fast'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedArchitecture, "partial_rotary_factor 0.5"),
        ({"num_hidden_layers": "3"}, CorruptFile, "num_hidden_layers is '3'"),
        ({"hidden_size": None}, CorruptFile, "hidden_size is None"),
        ({"num_key_value_heads": 3}, CorruptFile, "a divisor of 4"),
        ({"head_dim": 0}, CorruptFile, "head_dim is 0"),
        ({"rms_norm_eps": -1}, CorruptFile, "rms_norm_eps is -1"),
        ({"tie_word_embeddings": "yes"}, CorruptFile, "tie_word_embeddings is 'yes'"),
        ({"num_hidden_layers": 2**40}, CorruptFile, "num_hidden_layers is 1099511627776, at most 1024"),
        ({"head_dim": 2**40}, CorruptFile, "head_dim is 1099511627776, at most 4096"),
        ({"hidden_size": 2}, CorruptFile, "head_dim is 0"),
    ],
)
def test_what_cannot_be_imported_is_known_from_config_json_alone(
    write_folder: Write, config: dict[str, object], error: type[Exception], words: str
) -> None:
    folder = write_folder("llama", config=config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(error, match=words) as caught:
        check_safetensors(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "unrotated"),
    [
        ({}, {3}),
        ({"no_rope_layers": None, "no_rope_layer_interval": 2}, {1, 3}),
        ({"no_rope_layers": [0, 1, 1, 1, 0]}, {0, 4}),
    ],
)
def test_layers_without_rotary_embedding(write_folder: Write, entries: dict[str, object], unrotated: set[int]) -> None:
    folder = write_folder("smollm3")
    edit(folder / "config.json", **entries)
    assert read_text_config(folder).decoder.unrotated_layers == unrotated
    edit(folder / "config.json", no_rope_layers=[1])
    with pytest.raises(CorruptFile, match="no_rope_layers is no list with an entry for each of 5 layers"):
        read_text_config(folder)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_longrope_has_three_names(write_folder: Write, kind: str) -> None:
    folder = write_folder("phi3_long")
    new = read_text_config(folder)
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta, old = rope["rope_theta"], {key: rope[key] for key in ("long_factor", "short_factor")}
    edit(folder / "config.json", rope_parameters=..., rope_theta=theta, rope_scaling=old | {"type": kind})
    assert read_text_config(folder).metadata == new.metadata
    assert read_text_config(folder).rope_factors == pytest.approx(rope["long_factor"])
    edit(folder / "config.json", rope_scaling=old | {"type": kind, "long_factor": [1.0]})
    with pytest.raises(CorruptFile, match=r"rope_scaling\.long_factor is no list of 8 numbers"):
        read_text_config(folder)


def test_a_part_of_each_head_is_rotated_in_phi_alone(write_folder: Write) -> None:
    folder = write_folder("phi3")
    assert read_text_config(folder).decoder.rope.dimensions == 16
    folder = write_folder("qwen2")
    edit(folder / "config.json", partial_rotary_factor=0.5)
    with pytest.raises(UnsupportedArchitecture, match=r"partial_rotary_factor 0\.5"):
        read_text_config(folder)


def test_the_first_gemmas_say_gelu_and_mean_its_approximation(write_folder: Write) -> None:
    folder = write_folder("gemma")
    edit(folder / "config.json", hidden_activation=..., hidden_act="gelu")
    assert read_text_config(folder).decoder.traits.activation == "gelu_tanh"


def test_an_unknown_family_hears_what_there_is(write_folder: Write) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        check_safetensors(write_folder("llama", config={"model_type": "gpt2"}))
    assert "llama, mistral, qwen2" in str(caught.value.hint)
    assert "bert" in str(caught.value.hint)


def test_a_sentence_transformer_is_no_text_model(write_folder: Write) -> None:
    folder = write_folder("qwen3")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UnsupportedArchitecture, match="the encoder family 'qwen3'"):
        check_safetensors(folder)


def test_encoders_are_not_quantised(write_folder: Write, tmp_path: Path) -> None:
    folder = write_folder("qwen3", config={"model_type": "bert"})
    with pytest.raises(InvalidRequest, match="encoders cannot be quantized"):
        import_safetensors(folder, tmp_path, quantize=parse_quantization("q8_0"))


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
