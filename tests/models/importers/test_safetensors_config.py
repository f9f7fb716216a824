"""What is made of a config.json, and what is refused by it alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest, UnsupportedArchitecture
from vmm_server.models.importers.quantization_mix import parse_quantization
from vmm_server.models.importers.safetensors_config import read_text_config
from vmm_server.models.importers.safetensors_folder import check_safetensors, import_safetensors

Write = Callable[..., Path]
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))


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
        ({"model_type": None}, UnsupportedArchitecture, "the model family 'None'"),
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
        ({"rope_scaling": _LLAMA3 | {"factor": 1e300}}, CorruptFile, "rope_scaling has factors of 1e"),
        ({"rope_scaling": _LLAMA3 | {"low_freq_factor": 4}}, CorruptFile, "low_freq_factor is not below"),
        ({"model_type": ["llama"]}, UnsupportedArchitecture, "the model family .*llama"),
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


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "llama3", "yarn", "linear"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*_LLAMA3, "type", "full_attention", "long_factor", "rope_theta"]), inner)
    ),
    max_leaves=6,
)
_ENTRIES = [
    *("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "no_rope_layers", "hidden_act"),
    *("tie_word_embeddings", "attention_bias", "quantization_config", "eos_token_id", "vocab_size"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["llama3", "gemma3", "phi3_long", "smollm3", "qwen2_yarn"]),
    changes=st.dictionaries(st.sampled_from(_ENTRIES), _JSON, min_size=1, max_size=3),
)
def test_whatever_config_json_says_it_is_read_or_refused(
    write_folder: Write, name: str, changes: dict[str, object]
) -> None:
    folder = write_folder(name)
    message = str(folder)
    edit(folder / "config.json", **changes)
    try:
        check_safetensors(folder)
    except ImportFailed as error:
        message = error.message
    assert str(folder) in message
    assert "\n" not in message


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


def test_only_text_models_are_quantised(write_folder: Write, tmp_path: Path) -> None:
    folder = write_folder("qwen3", config={"model_type": "bert"})
    with pytest.raises(InvalidRequest, match="only models that write text can be quantized"):
        import_safetensors(folder, tmp_path, quantize=parse_quantization("q8_0"))
