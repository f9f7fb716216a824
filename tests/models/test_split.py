"""Split GGUF files become one model: from disk, from a hub, and uploaded."""

import asyncio
import hashlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from vmm_server.errors import CorruptFile, ImportFailed, InvalidRequest
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.facts import FactsReader
from vmm_server.models.names import ModelName
from vmm_server.models.pull import IMPORTER, Puller, PullEvent
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel, Store


@pytest.fixture
def parts(write_tiny: Callable[..., Path], split_gguf: Callable[[Path, int], list[Path]]) -> list[Path]:
    return split_gguf(write_tiny("llama", quantization="F16"), 12)


@pytest.fixture
def whole_weights(write_tiny: Callable[..., Path], tmp_path: Path) -> bytes:
    """model.onnx.data of the same model that was never split."""
    folder = tmp_path / "whole"
    folder.mkdir()
    source = write_tiny("llama", quantization="F16").rename(tmp_path / "whole.gguf")
    IMPORTER.converters["gguf"](source, folder, lambda *_: None)
    return (folder / "model.onnx.data").read_bytes()


@pytest.fixture
def puller(store: Store) -> Puller:
    return Puller(store, Registry(store, ()))


@pytest.fixture
def creator(store: Store, puller: Puller) -> Creator:
    return Creator(store, Registry(store, ()), puller)


def pull(puller: Puller, uri: str) -> list[str]:
    async def main() -> list[PullEvent]:
        return [event async for event in puller.pull(uri)]

    return [event.status for event in asyncio.run(main())]


def create(creator: Creator, **fields: Any) -> list[str]:
    async def main() -> list[PullEvent]:
        return [event async for event in creator.create(CreateRequest("m", **fields))]

    return [event.status for event in asyncio.run(main())]


def upload(store: Store, parts: list[Path], *, folder: str = "") -> dict[str, str]:
    """The parts' names to the digests under which the store has them now."""
    files = {}
    for part in parts:
        content = part.read_bytes()

        async def sent(content: bytes = content) -> AsyncIterator[bytes]:
            yield content

        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        asyncio.run(store.put_blob(digest, sent()))
        files[folder + part.name] = digest
    return files


def only(store: Store) -> InstalledModel:
    (model,) = store.installed()
    store.check_files(model)
    return model


def test_from_disk_they_are_read_where_they_lie(
    store: Store, puller: Puller, parts: list[Path], whole_weights: bytes
) -> None:
    assert pull(puller, f"file:{parts[0]}")[-1] == "success"
    model = only(store)
    assert (model.name, model.format, model.quantization) == ("llama:latest", "gguf", "F16")
    assert (model.folder / "model.onnx.data").read_bytes() == whole_weights
    assert list(store.blobs_dir.iterdir()) == [], "not copied"
    facts = FactsReader(store).read(model, verbose=True)
    assert len(facts.tensors) == sum(len(GGUFReader(part).tensors) for part in parts)
    assert not any(key.startswith("split.") for key in facts.metadata)
    assert pull(puller, f"file:{parts[0]}") == ["pulling manifest", "success"]


def test_any_changed_part_is_another_model(store: Store, puller: Puller, parts: list[Path]) -> None:
    pull(puller, f"file:{parts[0]}")
    before = only(store).digest
    content = bytearray(parts[-1].read_bytes())
    content[-100] ^= 1
    parts[-1].write_bytes(content)
    pull(puller, f"file:{parts[0]}")
    assert only(store).digest != before


def test_from_a_hub_they_are_joined(
    store: Store, puller: Puller, parts: list[Path], hub: Any, whole_weights: bytes
) -> None:
    hub.repo("org/repo", {f"Q4_K_M/{part.name}": part.read_bytes() for part in parts})
    statuses = pull(puller, "hf:org/repo")
    assert "joining the parts" in statuses
    model = only(store)
    assert model.name == "llama:latest"
    assert (model.folder / "model.onnx.data").read_bytes() == whole_weights
    manifest = store.manifest(ModelName.parse(model.name))
    assert manifest is not None
    assert manifest.blobs == (model.weights,)
    with store.lease("x", cancelled=threading.Event()):
        pass  # collects what nothing refers to
    assert [path.name for path in store.blobs_dir.iterdir()] == [f"sha256-{model.weights}"]
    assert hashlib.sha256(store.blob(model.weights).read_bytes()).hexdigest() == model.weights


def test_uploaded_they_become_one_file(store: Store, creator: Creator, parts: list[Path], whole_weights: bytes) -> None:
    files = upload(store, [*reversed(parts)], folder="some/")
    assert create(creator, files=files)[-1] == "success"
    model = only(store)
    assert (model.folder / "model.onnx.data").read_bytes() == whole_weights
    assert model.source == f"upload:some/{parts[0].name}"


def test_uploaded_and_quantised_only_the_result_is_kept(store: Store, creator: Creator, parts: list[Path]) -> None:
    statuses = create(creator, files=upload(store, parts), quantize="q4_K_M")
    assert "quantizing model to Q4_K_M" in statuses
    assert only(store).quantization == "Q4_K_M"
    with store.lease("x", cancelled=threading.Event()):
        pass  # collects what nothing refers to
    assert [path.name for path in store.blobs_dir.iterdir()] == [f"sha256-{only(store).weights}"]


def test_what_is_missing_or_too_much_is_said_at_once(store: Store, creator: Creator, parts: list[Path]) -> None:
    files = upload(store, parts)
    for name in (parts[0].name, parts[-1].name):
        some = {path: digest for path, digest in files.items() if path != name}
        with pytest.raises(InvalidRequest, match=f"^files: {name}: is missing, of {len(parts)} parts") as caught:
            creator.create(CreateRequest("m", files=some))
        assert caught.value.param == "files"
    with pytest.raises(InvalidRequest, match=r"other\.gguf is no part of the model"):
        creator.create(CreateRequest("m", files={**files, "other.gguf": files[parts[0].name]}))
    with pytest.raises(InvalidRequest, match="is there more than once"):
        creator.create(CreateRequest("m", files={**files, f"again/{parts[0].name}": files[parts[0].name]}))
    assert store.installed() == []


def test_a_part_of_another_model_is_named(store: Store, creator: Creator, parts: list[Path]) -> None:
    shutil.copyfile(parts[0], parts[1])
    with pytest.raises(CorruptFile, match=f"{parts[1].name}: is a part of another model") as caught:
        create(creator, files=upload(store, parts))
    assert str(store.root) not in caught.value.message
    assert store.installed() == []
    assert not list(store.models_dir.iterdir())
    assert not list(store.blobs_dir.glob("*.partial"))


@pytest.mark.parametrize("given", [0, 1])
def test_a_part_that_is_not_on_disk_is_named(puller: Puller, parts: list[Path], given: int) -> None:
    gone = parts.pop(2)
    gone.unlink()
    with pytest.raises(ImportFailed, match=f"{gone.name}: is missing"):
        pull(puller, f"file:{parts[given]}")
