"""What a path is, and what a folder that needs no conversion holds."""

import json
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest

from vmm_adapters.echo import write_echo_model
from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.imported import guess_capabilities, parameter_size


@pytest.fixture
def onnx_folder(tmp_path: Path, write_tiny: Callable[..., Path]) -> Path:
    """An onnxruntime-genai folder, as an import leaves it: llama, Q4_0, tied."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    import_gguf(write_tiny("llama3", quantization="Q4_0"), folder)
    return folder


@pytest.fixture
def ir_folder(tmp_path: Path, onnx_folder: Path) -> Path:
    """The same model as an OpenVINO IR folder."""
    folder = tmp_path / "ir"
    folder.mkdir()
    ov.save_model(ov.Core().read_model(onnx_folder / "model.onnx"), folder / "openvino_model.xml")
    (folder / "tokenizer.json").write_bytes((onnx_folder / "tokenizer.json").read_bytes())
    config = {"model_type": "llama", "max_position_embeddings": 64, "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ tools | tojson }}<think>"}))
    return folder


def test_formats_are_told_apart(tmp_path: Path, onnx_folder: Path, write_tiny: Callable[..., Path]) -> None:
    assert detect_format(write_tiny("llama")) == "gguf"
    assert detect_format(onnx_folder) == "onnx"
    for name in ("openvino_model.xml", "openvino_language_model.xml"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).touch()
        assert detect_format(folder) == "openvino"


def test_the_test_model_is_run_by_its_own_adapter(tmp_path: Path, onnx_folder: Path) -> None:
    write_echo_model(tmp_path / "echo", context_length=512)
    assert detect_format(tmp_path / "echo") == "onnx"
    model = describe_folder(tmp_path / "echo")
    assert (model.adapter, model.family, model.context_length) == ("echo", "echo", 512)
    assert describe_folder(onnx_folder).adapter == "openvino"


def test_what_is_nothing_known_is_refused(tmp_path: Path) -> None:
    other, empty = tmp_path / "a.zip", tmp_path / "b.gguf"
    other.write_bytes(b"PK\x03\x04")
    empty.touch()
    with pytest.raises(ImportFailed, match=r"a\.zip.*is no GGUF or ONNX file"):
        detect_format(other)
    with pytest.raises(CorruptFile, match=r"b\.gguf.*is empty"):
        detect_format(empty)
    with pytest.raises(ImportFailed, match=r"neither safetensors, genai_config\.json, openvino_model\.xml nor"):
        detect_format(tmp_path)
    with pytest.raises(ImportFailed, match="No such file"):
        detect_format(tmp_path / "none")


def test_an_onnx_folder_is_described(onnx_folder: Path) -> None:
    model = describe_folder(onnx_folder)
    assert (model.family, model.context_length, model.embedding_length) == ("llama", 64, 64)
    assert (model.parameter_count, model.parameter_size, model.quantization) == (98752, "99K", "int4")
    assert (model.capabilities, model.has_chat_template) == (("completion",), True)


def test_an_ir_folder_is_described(ir_folder: Path) -> None:
    model = describe_folder(ir_folder)
    assert (model.family, model.context_length, model.embedding_length) == ("llama", 64, 64)
    assert model.quantization == "int4"
    assert model.parameter_count == pytest.approx(98752, rel=0.1)  # rotary tables, and the tied matrix twice
    assert (model.capabilities, model.has_chat_template) == (("completion", "tools", "thinking"), True)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_missing_or_short_file_is_named(onnx_folder: Path, name: str) -> None:
    path = onnx_folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFile, match=rf"{name}: "):
        describe_folder(onnx_folder)
    path.unlink()
    with pytest.raises(CorruptFile, match=rf"{name}: is missing"):
        describe_folder(onnx_folder)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin"])
def test_a_short_ir_file_is_named(ir_folder: Path, name: str) -> None:
    path = ir_folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match=rf"{name}: "):
        describe_folder(ir_folder)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ("{", CorruptFile, "cannot be read"),
        ("[]", CorruptFile, "no JSON object"),
        ("{}", UnsupportedArchitecture, "has no 'model'"),
        ('{"model": {}}', UnsupportedArchitecture, "has no 'decoder'"),
        ('{"model": {"decoder": {}}}', UnsupportedArchitecture, "filename"),
        ('{"model": {"decoder": {"filename": "../x.onnx"}}}', UnsupportedArchitecture, "filename"),
        ('{"model": {"decoder": {"filename": "model.onnx"}}}', CorruptFile, "model.context_length is None"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(
    onnx_folder: Path, config: str, error: type[ImportFailed], words: str
) -> None:
    (onnx_folder / "genai_config.json").write_text(config)
    with pytest.raises(error, match=words):
        describe_folder(onnx_folder)


def test_a_folder_without_a_tokeniser_is_refused(onnx_folder: Path) -> None:
    (onnx_folder / "tokenizer.json").unlink()
    with pytest.raises(ImportFailed, match=r"no tokenizer\.json"):
        describe_folder(onnx_folder)


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        (None, ("completion",)),
        ("{{ messages }}", ("completion",)),
        ("{{ tools | tojson }}", ("completion", "tools")),
        ("{{ toolset }}<think>", ("completion", "thinking")),
    ],
)
def test_capabilities_are_guessed_from_the_template(template: str | None, capabilities: tuple[str, ...]) -> None:
    assert guess_capabilities(template) == capabilities


def test_a_folder_can_insert_by_its_added_tokens(onnx_folder: Path) -> None:
    path = onnx_folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    added = {str(index): {"content": name, "special": True} for index, name in enumerate(names)}
    path.write_text(json.dumps({**config, "added_tokens_decoder": added}))
    assert "insert" in describe_folder(onnx_folder).capabilities
    path.write_text(json.dumps({**config, "added_tokens_decoder": [names]}))
    assert "insert" not in describe_folder(onnx_folder).capabilities


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (1_234, "1K"), (134_515_008, "135M"), (999_900_000, "1B"), (1_069_639_680, "1.1B")],
)
def test_sizes_are_written_as_people_do(count: int | None, text: str) -> None:
    assert parameter_size(count) == text


def test_a_folder_with_a_part_for_images_sees(ir_folder: Path) -> None:
    assert "vision" not in describe_folder(ir_folder).capabilities
    for kind in ("xml", "bin"):
        model = ir_folder / f"openvino_model.{kind}"
        (ir_folder / f"openvino_vision_embeddings_model.{kind}").write_bytes(model.read_bytes())
        model.rename(ir_folder / f"openvino_language_model.{kind}")
    assert describe_folder(ir_folder).capabilities[-1] == "vision"
    with (ir_folder / "openvino_vision_embeddings_model.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CorruptFile, match=r"openvino_vision_embeddings_model\.bin: is cut off"):
        describe_folder(ir_folder)
