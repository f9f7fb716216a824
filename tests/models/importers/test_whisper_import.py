"""Whisper from transformers' folders and from CTranslate2's: one ONNX folder, whatever it came from."""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.ctranslate2_file import CTranslate2File
from vmm_server.models.importers.safetensors_folder import check_safetensors, import_safetensors
from vmm_server.models.importers.whisper import import_whisper
from vmm_server.models.importers.whisper_config import WhisperConfig
from vmm_server.models.importers.whisper_tokens import find_alignment_heads

from .tiny_whisper import (
    ALIGNMENT_HEADS,
    SIZES,
    ct2_variables,
    make_weights,
    serialize_ct2,
    write_ctranslate2,
    write_transformers,
)

GRAPHS = ("encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data")
WEIGHTS = make_weights()
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[Path], Path]:
    """Import a folder into a new one."""

    def run(source: Path) -> Path:
        target = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        import_whisper(source, target)
        return target

    return run


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def digests(folder: Path, names: tuple[str, ...] = GRAPHS) -> list[str]:
    return [sha256((folder / name).read_bytes()).hexdigest() for name in names]


def stored(folder: Path, name: str) -> tuple[str, NDArray[Any]]:
    """(type, values) of a decoder's initialiser."""
    model = onnx.load(folder / "decoder.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return onnx.TensorProto.DataType.Name(tensor.data_type), onnx.numpy_helper.to_array(tensor)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    first = convert(write_transformers(tmp_path / "one", WEIGHTS))
    sharded = convert(write_transformers(tmp_path / "three", WEIGHTS, shards=3))
    converted = convert(write_ctranslate2(tmp_path / "ct2", WEIGHTS))
    assert digests(first) == digests(sharded) == digests(converted)
    small = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
    assert digests(first, small) == digests(sharded, small)
    same = ("config.json", "preprocessor_config.json", "tokenizer.json")
    assert digests(first, same) == digests(converted, same)
    assert sorted(path.name for path in first.iterdir()) == sorted({*small, *GRAPHS})


def test_graphs_have_standard_operators_of_opset_17_alone(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    folder = convert(write_transformers(tmp_path / "source", WEIGHTS))
    for name in ("encoder.onnx", "decoder.onnx"):
        onnx.checker.check_model(str(folder / name), full_check=True)
        model = onnx.load(folder / name, load_external_data=False)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
        assert len([each for each in model.graph.initializer if each.name == "decoder.embed_tokens.weight"]) == (
            name == "decoder.onnx"
        )


@pytest.mark.parametrize(("dtype", "stored_as"), [("F16", "FLOAT16"), ("F32", "FLOAT"), ("BF16", "BFLOAT16")])
def test_weights_are_kept_as_they_are(
    dtype: str, stored_as: str, tmp_path: Path, convert: Callable[[Path], Path]
) -> None:
    folder = convert(write_transformers(tmp_path / "source", WEIGHTS, dtype=dtype))
    kind, found = stored(folder, "decoder.embed_tokens.weight")
    assert kind == stored_as
    exact = 2**-7 if dtype == "BF16" else 0
    np.testing.assert_allclose(found.astype(np.float32), WEIGHTS["decoder.embed_tokens.weight"], rtol=exact)
    assert stored(folder, "decoder.layer_norm.bias")[0] == "FLOAT"
    assert describe_folder(folder).quantization == dtype


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_parts_of_one_matrix_in_several_types(dtype: str, tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    folder = convert(write_transformers(tmp_path / "source", WEIGHTS, dtype=dtype, odd="k_proj.weight"))
    kind, found = stored(folder, "decoder.layers.0.self_attn.qkv_proj.weight")
    assert kind == "FLOAT"
    expected = np.concatenate([WEIGHTS[f"decoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    np.testing.assert_allclose(found, expected, rtol=2**-7 if dtype == "BF16" else 0)


@pytest.mark.parametrize("quantization", ["float32", "bfloat16", "int8", "int16"])
def test_every_type_of_ctranslate2(quantization: str, tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    folder = convert(write_ctranslate2(tmp_path / "source", WEIGHTS, quantization=quantization))
    for name, part in (("decoder.embed_tokens", None), ("decoder.layers.1.self_attn.qkv_proj", "q k v")):
        expected = WEIGHTS.get(f"{name}.weight")
        if part:
            rows = [WEIGHTS[f"decoder.layers.1.self_attn.{each}_proj.weight"] for each in part.split()]
            expected = np.concatenate(rows)
        kind, found = stored(folder, f"{name}.weight")
        assert kind == {"float32": "FLOAT", "bfloat16": "BFLOAT16"}.get(quantization, "FLOAT16")
        assert expected is not None
        largest = np.abs(expected).max()
        error = {"float32": 0, "bfloat16": 2**-7, "int8": 0.51 / 127, "int16": 0.51 / 1024}[quantization] * largest
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=error + 2**-11 * largest)


def test_what_is_said_of_the_folder(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    source = write_transformers(tmp_path / "source", WEIGHTS)
    assert detect_format(source) == "safetensors"
    check_safetensors(source)
    folder = convert(source)
    assert detect_format(folder) == "onnx"
    imported = describe_folder(folder)
    assert (imported.family, imported.capabilities) == ("whisper", ("transcription", "translation"))
    assert imported.parameter_count == sum(value.size for value in WEIGHTS.values())
    assert (imported.context_length, imported.quantization) == (32, "F16")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {
        "alignment_heads": ALIGNMENT_HEADS,
        "begin_suppress_tokens": [3],
        "bos_token_id": 10,
        "decoder_start_token_id": 11,
        "eos_token_id": 10,
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 12, "<|de|>": 13},
        "max_initial_timestamp_index": 50,
        "max_length": 32,
        "no_timestamps_token_id": 19,
        "pad_token_id": 10,
        "prev_sot_token_id": 17,
        "suppress_tokens": [1, 2],
        "task_to_id": {"transcribe": 15, "translate": 14},
    }
    config = json.loads((folder / "config.json").read_text())
    assert SIZES.items() <= config.items()
    features = json.loads((folder / "preprocessor_config.json").read_text())
    assert (features["feature_size"], features["nb_max_frames"]) == (8, 40)


def test_an_english_model_of_ctranslate2_has_no_languages(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    """Its `lang_ids` are those of multilingual models."""
    source = write_ctranslate2(tmp_path / "source", WEIGHTS)
    assert detect_format(source) == "ctranslate2"
    with pytest.raises(ImportFailed, match="have to be imported first"):
        describe_folder(source)
    folder = convert(source)
    assert describe_folder(folder).capabilities == ("transcription",)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["lang_to_id"], generation["is_multilingual"]) == ({}, False)
    assert (generation["suppress_tokens"], generation["begin_suppress_tokens"]) == ([1, 2], [3])


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    target, told = tmp_path / "out", []
    target.mkdir()
    import_safetensors(
        write_transformers(tmp_path / "source", WEIGHTS), target, lambda done, total: told.append((done, total))
    )
    size = sum((target / name).stat().st_size for name in GRAPHS if name.endswith(".data"))
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert {total for _, total in told} == {size}


CONFIG = WhisperConfig(**SIZES)
FC2 = "decoder/layer_0/ffn/linear_1"
UPPER_HALF = tuple((1, head) for head in range(4))


@pytest.mark.parametrize(
    ("found", "heads"),
    [
        ([[1, 3], [0, 0]], ((1, 3), (0, 0))),
        (None, UPPER_HALF),
        ([], UPPER_HALF),
        ([[1, 3], [7, 0]], UPPER_HALF),
        ([[1, 4]], UPPER_HALF),
        ([[1, 3], [1, 3]], UPPER_HALF),
        ([[True, 0]], UPPER_HALF),
        ("heads", UPPER_HALF),
        ([[1]], UPPER_HALF),
    ],
)
def test_alignment_heads_that_are_not_this_models_are_not_taken(found: object, heads: object) -> None:
    assert find_alignment_heads(found, CONFIG) == heads


@pytest.mark.parametrize(
    ("file", "change", "error", "words"),
    [
        ("config.json", {"activation_function": "relu"}, UnsupportedArchitecture, "activation_function is 'relu'"),
        ("config.json", {"scale_embedding": True}, UnsupportedArchitecture, "scale_embedding is True"),
        ("config.json", {"tie_word_embeddings": False}, UnsupportedArchitecture, "tie_word_embeddings is False"),
        ("config.json", {"encoder_attention_heads": 3}, UnsupportedArchitecture, "3 heads do not divide"),
        ("config.json", {"decoder_layers": 10**6}, UnsupportedArchitecture, "more than 256 layers"),
        ("config.json", {"d_model": None}, CorruptFile, "d_model is None"),
        ("config.json", {"vocab_size": 1520}, CorruptFile, "tokens up to 1520, the model's vocabulary is 1520"),
        ("config.json", {"decoder_layers": 3}, CorruptFile, r"lacks the tensor model\.decoder\.layers\.2"),
        ("config.json", {"decoder_ffn_dim": 25}, CorruptFile, r"fc1\.weight has the shape \(24, 16\), \(25, 16\)"),
        ("config.json", {"max_target_positions": 33}, CorruptFile, r"embed_positions\.weight has the shape"),
        ("generation_config.json", {"suppress_tokens": [9999]}, CorruptFile, "suppress_tokens is no list of tokens"),
        ("generation_config.json", {"begin_suppress_tokens": "x"}, CorruptFile, "begin_suppress_tokens is no list"),
        ("tokenizer.json", {"added_tokens": [{"content": []}, 7]}, CorruptFile, r"has no token <\|endoftext\|>"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named_before_a_weight_is_written(
    file: str,
    change: dict[str, object],
    error: type[ImportFailed],
    words: str,
    tmp_path: Path,
    convert: Callable[[Path], Path],
) -> None:
    source = write_transformers(tmp_path / "source", WEIGHTS)
    edit(source / file, lambda content: content.update(change))
    with pytest.raises(ImportFailed, match=words) as caught:
        convert(source)
    assert type(caught.value) is error
    assert not list(tmp_path.glob("out-*/*"))


def test_files_that_are_missing_are_named(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    source = write_transformers(tmp_path / "source", WEIGHTS, shards=2)
    (source / "tokenizer.json").rename(source / "kept")
    with pytest.raises(ImportFailed, match=r"has no tokenizer\.json"):
        check_safetensors(source)
    (source / "kept").rename(source / "tokenizer.json")
    folder = convert(source)
    for name in (*GRAPHS, "generation_config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CorruptFile, match=name):
            describe_folder(folder)
        (folder / name).write_bytes(content)
    whole = (folder / "decoder.onnx.data").read_bytes()
    (folder / "decoder.onnx.data").write_bytes(whole[:-1])
    with pytest.raises(CorruptFile, match=r"decoder\.onnx\.data: is cut off"):
        describe_folder(folder)
    second = source / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.write_bytes((source / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(CorruptFile, match=r"00002\.safetensors: tensor .* is in another file as well"):
        convert(source)
    second.write_bytes(content)
    convert(source)
    second.unlink()
    with pytest.raises(CorruptFile, match=r"model-00002-of-00002\.safetensors: is missing"):
        convert(source)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"decoder/activation": np.int8(0)}, UnsupportedArchitecture, "decoder/activation is 0; 3 is supported"),
        ({"encoder/num_heads": np.int16(0)}, CorruptFile, "encoder/num_heads is 0"),
        ({"encoder/num_heads": None}, CorruptFile, "lacks the variable encoder/num_heads"),
        ({"decoder/layer_0/ffn/linear_1/weight": None}, CorruptFile, "lacks the variable decoder/layer_0/ffn/linear_1"),
        ({"decoder/layer_1/attention/linear_1/weight": np.zeros((31, 16), np.float32)}, CorruptFile, "no 2 matrices"),
        ({"encoder/conv1/weight": np.zeros((0, 8, 3), np.float32)}, CorruptFile, "encoder/conv1/weight has the shape"),
        ({"decoder/layer_0/ffn/linear_0/weight": np.zeros((24, 16), np.int8)}, CorruptFile, "linear_0/weight_scale"),
        (
            {
                "encoder/conv1/weight": np.ones((16, 8, 3), np.int8),
                "encoder/conv1/weight_scale": np.ones(8, np.float32),
            },
            CorruptFile,
            r"weight_scale has the shape \(8,\), \(16,\) is expected",
        ),
        (
            {f"{FC2}/weight": np.zeros((0, 24), np.int8), f"{FC2}/weight_scale": np.zeros(0, np.float32)},
            CorruptFile,
            r"fc2\.weight has the shape \(0, 24\), \(16, 24\) is expected",
        ),
        ({"decoder/projection/weight": np.zeros((1521, 16), np.float32)}, UnsupportedArchitecture, "projection/weight"),
    ],
)
def test_what_is_wrong_with_a_model_of_ctranslate2_is_named(
    change: dict[str, Any], error: type[ImportFailed], words: str, tmp_path: Path, convert: Callable[[Path], Path]
) -> None:
    source = write_ctranslate2(tmp_path / "source", WEIGHTS)
    variables = {name: value for name, value in (ct2_variables(WEIGHTS) | change).items() if value is not None}
    (source / "model.bin").write_bytes(serialize_ct2(variables, {}))
    with pytest.raises(ImportFailed, match=words) as caught:
        convert(source)
    assert type(caught.value) is error


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-3])
def test_a_scale_that_no_weights_can_have(scale: float, tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    source = write_ctranslate2(tmp_path / "source", WEIGHTS)
    name = "decoder/layer_0/ffn/linear_0/weight"
    quantized = {name: np.ones((24, 16), np.int8), f"{name}_scale": np.full(24, scale, np.float32)}
    (source / "model.bin").write_bytes(serialize_ct2(ct2_variables(WEIGHTS) | quantized, {}))
    with pytest.raises(CorruptFile, match=r"weight_scale has a scale that is no number above 0\.002"):
        convert(source)


@given(
    changes=st.lists(st.tuples(st.integers(0, 150), st.integers(-40, -1), st.integers(0, 255)), min_size=1, max_size=4)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_model_of_ctranslate2_is_imported_or_refused(
    changes: list[tuple[int, int, int]], broken: Path, tmp_path: Path
) -> None:
    """Bytes are changed before variables, where names, shapes and types are; small numbers are hit too."""
    whole = (broken / "whole.bin").read_bytes()
    (broken / "model.bin").write_bytes(whole)
    with CTranslate2File(broken / "model.bin") as file:
        starts = [variable.offset for variable in file.variables.values()]
    damaged = bytearray(whole)
    for which, before, byte in changes:
        damaged[starts[which % len(starts)] + before] = byte
    (broken / "model.bin").write_bytes(damaged)
    with tempfile.TemporaryDirectory(dir=tmp_path) as target, suppress(ImportFailed):
        import_whisper(broken, Path(target))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = write_ctranslate2(tmp_path / "source", WEIGHTS, quantization="int8")
    (folder / "model.bin").rename(folder / "whole.bin")
    return folder


def test_other_models_of_ctranslate2_are_refused(tmp_path: Path) -> None:
    source = write_ctranslate2(tmp_path / "source", WEIGHTS)
    (source / "model.bin").write_bytes(serialize_ct2(ct2_variables(WEIGHTS), {}, spec="TransformerSpec"))
    assert detect_format(source) == "ctranslate2"
    with pytest.raises(UnsupportedArchitecture, match=r"is a TransformerSpec of CTranslate2"):
        import_whisper(source, tmp_path)


def test_graphs_of_another_export_are_refused(tmp_path: Path, convert: Callable[[Path], Path]) -> None:
    folder = convert(write_transformers(tmp_path / "source", WEIGHTS))
    edit(folder / "generation_config.json", lambda content: content["alignment_heads"].pop())
    with pytest.raises(CorruptFile, match=r"cross_attention is .*, generation_config\.json has 2 alignment_heads"):
        describe_folder(folder)
    edit(folder / "config.json", lambda content: content.update(decoder_layers=3))
    with pytest.raises(UnsupportedArchitecture, match=r"encoder\.onnx: has no input or output cross_key\.2: it is"):
        describe_folder(folder)


def test_another_layout_names_what_to_pull_in_its_place(tmp_path: Path) -> None:
    config = {"model_type": "whisper", "_name_or_path": "openai/whisper-base"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "encoder_model.onnx").write_bytes(b"graph")
    with pytest.raises(UnsupportedArchitecture, match="in a layout that is not read") as caught:
        detect_format(tmp_path)
    assert caught.value.hint == "pull its safetensors, hf:openai/whisper-base"
