"""Models sent to another server."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_adapters.card import CardSource, ModelCard, SamplingDefaults
from vmm_server.errors import InvalidModelName, InvalidRequest, ModelLoadFailed, ModelNotFound, SourceError
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.names import ModelName
from vmm_server.models.pull import Puller, PullEvent
from vmm_server.models.push import Pusher
from vmm_server.models.registry import Registry
from vmm_server.models.store import InstalledModel, Store, Variant

from .conftest import Web

Install = Callable[..., InstalledModel]
BLOB = b"GGUF" + bytes(3_000_000)
DIGEST = hashlib.sha256(BLOB).hexdigest()


class FarServer:
    """Takes blobs and creations."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.answer = '{"status":"parsing GGUF"}\n{"status":"converting model","total":9,"completed":4}\n'
        self.end = '{"status":"success"}\n'
        self.refuses: dict[str, httpx.Response] = {}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url}")
        content = await request.aread()
        if refusal := self.refuses.get(request.method):
            return refusal
        if request.url.path == "/api/create":
            self.created.append(json.loads(content))
            return httpx.Response(200, text=self.answer + self.end)
        digest = request.url.path.rpartition(":")[2]
        if request.method == "HEAD":
            return httpx.Response(200 if digest in self.blobs else 404)
        assert hashlib.sha256(content).hexdigest() == digest
        assert request.headers["Content-Length"] == str(len(content))
        self.blobs[digest] = content
        return httpx.Response(201)


@pytest.fixture
def far() -> FarServer:
    return FarServer()


@pytest.fixture
def pusher(store: Store, far: FarServer) -> Pusher:
    return Pusher(store, Registry(store), transport=httpx.MockTransport(far))


@pytest.fixture
def install_gguf(store: Store, install: Install) -> Callable[..., InstalledModel]:
    def make(name: str, **fields: Any) -> InstalledModel:
        store.prepare()
        model = install(name, format="gguf", blobs=(DIGEST,), **fields)
        store.blob(DIGEST).write_bytes(BLOB)
        return model

    return make


def push(pusher: Pusher, name: str, **options: Any) -> list[PullEvent]:
    async def main() -> list[PullEvent]:
        return [event async for event in pusher.push(name, **options)]

    return asyncio.run(main())


def statuses(events: list[PullEvent]) -> list[str]:
    found = [event.status for event in events]
    return [status for status, before in zip(found, ["", *found], strict=False) if status != before]


def test_the_fetched_file_is_sent_and_a_model_is_created_of_it(
    far: FarServer, pusher: Pusher, install_gguf: Callable[..., InstalledModel]
) -> None:
    install_gguf(
        "far.example:1/me/m:1b",
        system="Be brief.",
        template="{{ messages }}",
        sampling=SamplingDefaults(temperature=0.2, top_k=4),
        parameters={"top_k": 5, "num_ctx": 9},
        messages=(("user", "1"), ("assistant", "one")),
        license="MIT",
    )
    events = push(pusher, "far.example:1/me/m:1b")
    pushing = f"pushing {DIGEST[:12]}"
    assert statuses(events) == [
        "retrieving manifest",
        pushing,
        "pushing manifest",
        "parsing GGUF",
        "converting model",
        "success",
    ]
    sent = [event for event in events if event.status == pushing]
    assert {(event.digest, event.total) for event in sent} == {(f"sha256:{DIGEST}", len(BLOB))}
    counts = [event.completed or 0 for event in sent]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, len(BLOB))
    assert far.blobs == {DIGEST: BLOB}
    assert far.created == [
        {
            "model": "me/m:1b",
            "files": {"m.gguf": f"sha256:{DIGEST}"},
            "stream": True,
            "system": "Be brief.",
            "template": "{{ messages }}",
            "parameters": {"temperature": 0.2, "top_k": 5, "num_ctx": 9},
            "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "one"}],
            "license": ["MIT"],
        }
    ]
    assert PullEvent("converting model", None, 9, 4) in events


def test_what_the_other_server_has_is_not_sent_again(
    far: FarServer, pusher: Pusher, install_gguf: Callable[..., InstalledModel]
) -> None:
    install_gguf("far/me/m:latest")
    far.blobs[DIGEST] = BLOB
    events = push(pusher, "far/me/m")
    assert [request.partition(" ")[0] for request in far.requests] == ["HEAD", "POST"]
    assert PullEvent(f"pushing {DIGEST[:12]}", f"sha256:{DIGEST}", len(BLOB), len(BLOB)) in events


def test_a_model_that_came_as_a_folder_is_sent_file_by_file(
    far: FarServer, pusher: Pusher, store: Store, install: Install
) -> None:
    files = {"model.onnx": b"onnx", "tokenizer.json": b"{}", "vmm_import.json": b"ours"}
    model = install("far/library/m:latest", files=files)
    variant = Variant("int8", store.models_dir / "small", 5, "d" * 64, "onnx", "int8", "")
    variant.folder.mkdir()
    (variant.folder / "small.onnx").write_bytes(b"stays")
    store.set_variants(ModelName.parse(model.name), lambda now: (variant,))
    push(pusher, "far/library/m")
    sent = {name: far.blobs[digest.removeprefix("sha256:")] for name, digest in far.created[0]["files"].items()}
    assert sent == {"model.onnx": b"onnx", "tokenizer.json": b"{}"}
    assert far.created[0]["model"] == "m:latest"


def test_a_folder_stands_in_for_a_file_that_is_gone(
    far: FarServer, pusher: Pusher, store: Store, install_gguf: Callable[..., InstalledModel]
) -> None:
    install_gguf("far/me/m:latest")
    store.blob(DIGEST).unlink()
    push(pusher, "far/me/m")
    assert list(far.created[0]["files"]) == ["model.onnx"]


def test_files_that_are_gone_are_said(pusher: Pusher, install: Install) -> None:
    model = install("far/me/m:latest")
    (model.folder / "model.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match="not as they were installed"):
        push(pusher, "far/me/m")


@pytest.mark.parametrize(
    ("name", "insecure", "url"),
    [
        ("far.example:8/me/m", False, "https://far.example:8/"),
        ("far.example:8/me/m", True, "http://far.example:8/"),
        ("http://far.example:8/me/m", True, "http://far.example:8/"),
        ("https://far.example:8/me/m", True, "https://far.example:8/"),
        ("localhost:8/me/m", False, "http://localhost:8/"),
        ("127.0.0.1:8/me/m", False, "http://127.0.0.1:8/"),
        ("https://localhost:8/me/m", False, "https://localhost:8/"),
    ],
)
def test_which_server_and_how(
    far: FarServer, pusher: Pusher, install: Install, name: str, insecure: bool, url: str
) -> None:
    install(f"{name.partition('://')[2] or name}:latest")
    push(pusher, name, insecure=insecure)
    assert {request.partition(" ")[2].partition("api/")[0] for request in far.requests} == {url}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("m", InvalidRequest, "m:latest: the name says no server to push to"),
        ("me/m", InvalidRequest, "me/m:latest: the name says no server to push to"),
        ("registry.ollama.ai/me/m", InvalidRequest, "the name says no server to push to"),
        ("http://far/me/m", InvalidRequest, "insecure protocol http"),
        ("far/me/other", ModelNotFound, "model 'far/me/other' not found"),
        ("a b", InvalidModelName, "invalid model name"),
    ],
)
def test_what_cannot_be_pushed_is_said_at_once(
    far: FarServer, pusher: Pusher, install: Install, name: str, error: type[Exception], message: str
) -> None:
    install("m:latest")
    install("me/m:latest")
    install("far/me/m:latest")
    with pytest.raises(error, match=message):
        pusher.push(name)
    assert far.requests == []


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("POST", httpx.Response(507, json={"error": "the disk is full"}), "far: the disk is full"),
        ("POST", httpx.Response(404, text="<html>"), "far: status 404"),
        ("HEAD", httpx.Response(403), "far: status 403"),
    ],
)
def test_a_refusal_is_told_in_the_other_servers_words(
    far: FarServer, pusher: Pusher, install: Install, method: str, answer: httpx.Response, message: str
) -> None:
    install("far/me/m:latest")
    far.refuses[method] = answer
    with pytest.raises(SourceError, match=message):
        push(pusher, "far/me/m")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('{"error":"architecture x is not supported"}\n', "far: architecture x is not supported"),
        ("", "the answer ended before the model was created"),
        ("no json\n[]\n", "the answer ended before the model was created"),
    ],
)
def test_a_creation_that_fails_there_fails_here(
    far: FarServer, pusher: Pusher, install: Install, end: str, message: str
) -> None:
    install("far/me/m:latest")
    far.end = end
    with pytest.raises(SourceError, match=message):
        push(pusher, "far/me/m")


def test_a_server_that_is_not_there_is_said(store: Store, install: Install) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    install("far/me/m:latest")
    with pytest.raises(SourceError, match="far: connection refused") as caught:
        push(Pusher(store, Registry(store), transport=httpx.MockTransport(refuse)), "far/me/m")
    assert caught.value.hint is not None


def test_leaving_early_stops_the_push(store: Store, install: Install) -> None:
    async def main() -> bool:
        asked, stopped = asyncio.Event(), asyncio.Event()

        async def stall(request: httpx.Request) -> httpx.Response:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            raise AssertionError

        pusher = Pusher(store, Registry(store), transport=httpx.MockTransport(stall))
        async with aclosing(pusher.push("far/me/m")) as events:
            await anext(events)
            await asked.wait()
        return stopped.is_set()

    install("far/me/m:latest")
    assert asyncio.run(main())


class OtherStore:
    """The same routes over a store of its own."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        registry = Registry(self.store)
        self._creator = Creator(self.store, registry, Puller(self.store, registry))

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        digest = request.url.path.rpartition("/")[2]
        if request.method == "HEAD":
            return httpx.Response(200 if self.store.has_blob(digest) else 404)
        if digest != "create":
            assert isinstance(request.stream, httpx.AsyncByteStream)
            return httpx.Response(201 if await self.store.put_blob(digest, aiter(request.stream)) else 200)
        body = json.loads(await request.aread())
        asked = CreateRequest(
            body["model"],
            files=body["files"],
            template=body.get("template"),
            system=body.get("system"),
            parameters=body.get("parameters", {}),
            messages=tuple((message["role"], message["content"]) for message in body.get("messages", ())),
            licenses=tuple(body.get("license", ())),
        )
        lines = [json.dumps({"status": event.status}) async for event in self._creator.create(asked)]
        return httpx.Response(200, text="\n".join(lines))


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_a_pushed_model_is_the_same_model(
    store: Store, tmp_path: Path, write_tiny: Callable[..., Path], quantize: str | None
) -> None:
    registry = Registry(store)
    creator = Creator(store, registry, Puller(store, registry))
    content = write_tiny("qwen3", quantization="F16").read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    async def sent() -> AsyncIterator[bytes]:
        yield content

    async def main() -> Store:
        await store.put_blob(digest, sent())
        given: dict[str, Any] = {"system": "Hi", "parameters": {"seed": 1, "stop": ["x"]}, "licenses": ("L",)}
        request = CreateRequest("far/me/m", files={"w": digest}, messages=(("user", "x"),), quantize=quantize, **given)
        async for _ in creator.create(request):
            pass
        other = OtherStore(tmp_path / "other")
        async for _ in Pusher(store, registry, transport=httpx.MockTransport(other)).push("far/me/m"):
            pass
        return other.store

    other = asyncio.run(main())
    [here], [there] = store.installed(), other.installed()
    assert there.name == "me/m:latest"
    assert (there.digest, there.weights) == (here.digest, here.weights)
    assert (there.system, there.parameters, there.messages) == (here.system, here.parameters, here.messages)
    files = [path.relative_to(here.folder) for path in here.folder.rglob("*") if path.is_file()]
    assert all((there.folder / path).read_bytes() == (here.folder / path).read_bytes() for path in files)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"license": "Apache-2.0", "system": "Be brief.", "sampling": SamplingDefaults(temperature=0, stop=("x",))},
    ],
    ids=["no card", "a card's licence", "a card's words"],
)
@pytest.mark.parametrize("changes", [{}, {"parameters": {"seed": 7}}], ids=["as pulled", "created"])
def test_a_pushed_model_keeps_its_digest(
    store: Store,
    tmp_path: Path,
    web: Web,
    write_tiny: Callable[..., Path],
    told: dict[str, Any] | None,
    changes: dict[str, Any],
) -> None:
    uri = web.serve("/tiny.gguf", write_tiny("qwen3").read_bytes())
    fields = {"id": "tiny:1k", "title": "Tiny", "license": "MIT", "origin": "us", "family": "qwen3"}
    size = {"parameter_size": "1K", "quantization": "F32", "context_length": 64}
    card = ModelCard(**fields | size | {"source": CardSource(uri=uri)} | (told or {}))
    registry = Registry(store, [] if told is None else [card])
    puller = Puller(store, registry)
    creator = Creator(store, registry, puller)
    request = CreateRequest("far/me/m", from_=uri if told is None else "tiny:1k", **changes)

    async def main() -> Store:
        async for _ in creator.create(request):
            pass
        other = OtherStore(tmp_path / "other")
        async for _ in Pusher(store, registry, transport=httpx.MockTransport(other)).push("far/me/m"):
            pass
        return other.store

    [there] = asyncio.run(main()).installed()
    here = registry.resolve("far/me/m")
    assert (there.digest, there.weights) == (here.digest, here.weights)
    assert (here.digest == here.weights) == (told is None and not changes)
    assert here.sampling == there.sampling
