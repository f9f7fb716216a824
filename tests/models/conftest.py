import base64
import hashlib
import importlib.util
import json
import os
import re
import runpy
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from vmm_adapters.card import SamplingDefaults
from vmm_server.models.building import Importer
from vmm_server.models.sources import Transfer, make_client
from vmm_server.models.store import InstalledModel, Store

Install = Callable[..., InstalledModel]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def install(store: Store) -> Install:
    """Installs a small model: `install("name", files={...}, owned=True, blobs=("<hex>",), age_s=0, **fields)`."""

    def make(
        name: str,
        *,
        files: dict[str, bytes] | None = None,
        key: str = "key",
        folder: Path | None = None,
        blobs: tuple[str, ...] = (),
        revision: str | None = None,
        age_s: float = 0,
        **fields: Any,
    ) -> InstalledModel:
        store.prepare()
        folder = folder or store.models_dir / key
        folder.mkdir(exist_ok=True, parents=True)
        for path, content in (files or {"model.onnx": b"weights"}).items():
            (folder / path).write_bytes(content)
        for blob in blobs:
            store.blob(blob).write_bytes(b"blob")
        described: dict[str, Any] = {
            "name": name,
            "aliases": (),
            "digest": "ab" * 32,
            "size_bytes": 7,
            "modified_at": datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age_s),
            "adapter": "echo",
            "folder": folder,
            "format": "onnx",
            "family": "llama",
            "parameter_size": "1M",
            "quantization": "F32",
            "context_length": 64,
            "embedding_length": None,
            "capabilities": ("completion",),
            "license": None,
            "title": name,
            "system": None,
            "sampling": SamplingDefaults(),
            "source": "file:/somewhere",
        }
        return store.install(InstalledModel(**described | fields), blobs=blobs, revision=revision)

    return make


@pytest.fixture
def pull_script() -> Path:
    """A program that pulls once."""
    return Path(__file__).with_name("pull_once.py")


@pytest.fixture
def make_importer(pull_script: Path) -> Callable[..., Importer]:
    """An importer that copies: `make_importer(version="1")`."""
    made: Callable[..., Importer] = runpy.run_path(str(pull_script))["make_importer"]
    return made


@pytest.fixture
def transfer() -> Iterator[Transfer]:
    """Reports to nobody, never cancelled, room for everything."""
    with make_client(timeout_s=5.0) as client:
        yield Transfer(threading.Event(), lambda completed, total: None, lambda needed: None, client)


@dataclass
class Resource:
    """What the test server says at one path. Every quirk is off unless asked for."""

    content: bytes = b""
    etag: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    head: bool = True
    claimed_length: int | None = None
    chunked: bool = False
    """Told no length."""
    cut_after: list[int] = field(default_factory=list)
    """The next replies stop after so many bytes and close the connection."""
    hold_after: int | None = None
    """Replies stop after so many bytes until `Web.go_on` is set."""
    ignores_if_range: bool = False
    needs_token: str | None = None
    needs_login: str | None = None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    headers: dict[str, str]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what many of these tests are about."""


class Web:
    """A server on the loopback, its resources by path (with query), and the requests it got."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[Request] = []
        self.go_on = threading.Event()
        self.holding = threading.Event()
        self.bytes_sent = 0
        self.mutex = threading.Lock()
        web = self

        class Handler(_Handler):
            pass

        Handler.web = web
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def serve(self, path: str, content: bytes = b"", **quirks: Any) -> str:
        """Offer something; returns its URL."""
        self.resources[path] = Resource(content, **quirks)
        return f"{self.url}{path}"

    def ranges(self, method: str = "GET") -> list[str | None]:
        """The Range headers of the requests so far."""
        return [request.range for request in self.requests if request.method == method]

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        asked = self.headers.get("Range")
        path = unquote(self.path)
        self.web.requests.append(Request(self.command, path, asked, dict(self.headers)))
        resource = self.web.resources.get(path) or self.web.resources.get(urlsplit(path).path)
        if resource is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", body=body)
        if resource.needs_token and self.headers.get("Authorization") != f"Bearer {resource.needs_token}":
            return self._send(401, {"X-Error-Code": "GatedRepo"}, b"", body=body)
        login = base64.b64encode((resource.needs_login or "").encode()).decode()
        if resource.needs_login and self.headers.get("Authorization") != f"Basic {login}":
            return self._send(401, {"WWW-Authenticate": 'Basic realm="x"'}, b"", body=body)
        if resource.status != 200 or (not body and not resource.head):
            return self._send(resource.status if body else 405, resource.headers, resource.content, body=body)
        headers = dict(resource.headers)
        if resource.etag:
            headers["ETag"] = resource.etag
        content, status = resource.content, 200
        if_range = self.headers.get("If-Range")
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        same = resource.ignores_if_range or if_range in (None, resource.etag)
        if body and match and resource.ranges and same:
            start, total = int(match.group(1)), len(content)
            if start >= total:
                return self._send(416, {"Content-Range": f"bytes */{total}"}, b"", body=True)
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            content, status = content[start:], 206
        return self._send(status, headers, content, body=body, resource=resource)

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, *, body: bool, resource: Resource | None = None
    ) -> None:
        self.send_response(status)
        length = len(content) if resource is None or resource.claimed_length is None else resource.claimed_length
        if resource and resource.chunked:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if resource and body and resource.cut_after:
            content = content[: resource.cut_after.pop(0)]
            self.close_connection = True
        if resource and (resource.claimed_length is not None):
            self.close_connection = True
        hold = resource.hold_after if resource else None
        try:
            if hold is not None and hold < len(content):
                self.wfile.write(content[:hold])
                self.wfile.flush()
                self.web.holding.set()
                self.web.go_on.wait(30)
                content = content[hold:]
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client went away


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


class Hub:
    """The routes of a model hub that a pull uses, on a `Web`."""

    def __init__(self, web: Web) -> None:
        self.web = web

    def repo(
        self,
        repo: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        commit: str = "c0ffee" * 6 + "c0ff",
        lfs: tuple[str, ...] = (".gguf", ".onnx", ".data", ".bin"),
        token: str | None = None,
        **more: Any,
    ) -> None:
        """Offer a repository; files with these endings are kept as large files, with a sha256; `more` is said of it."""
        siblings: list[dict[str, Any]] = []
        for path, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": oid}
            etag = oid
            if path.endswith(lfs):
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                etag = sha256
            siblings.append(sibling)
            headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
            self.web.serve(
                f"/{repo}/resolve/{commit}/{path}", content, etag=f'"{etag}"', headers=headers, needs_token=token
            )
        answer = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings} | more
        for ref in (revision, commit):
            self.web.serve(
                f"/api/models/{repo}/revision/{ref}",
                json.dumps(answer).encode(),
                headers={"Content-Type": "application/json"},
                needs_token=token,
            )


@pytest.fixture
def hub(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub that `hf:` sources go to; no token is known."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    return Hub(web)


class MakeWheel:
    """Writes a wheel of `vmm-test-weights` 1.0 with these members; returns its bytes."""

    metadata = b"Metadata-Version: 2.1\nName: vmm-test-weights\nVersion: 1.0\nRequires-Dist: no-such-thing\n"

    def __call__(self, path: Path, members: dict[str, bytes]) -> bytes:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr("vmm_test_weights-1.0.dist-info/METADATA", self.metadata)
            archive.writestr("vmm_test_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("vmm_test_weights-1.0.dist-info/RECORD", "")
        return path.read_bytes()


@pytest.fixture
def make_wheel() -> MakeWheel:
    return MakeWheel()


@pytest.fixture
def pip_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip without anybody's settings."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return monkeypatch


@pytest.fixture
def backdate() -> Callable[[Path, float], None]:
    """Makes a file look so many seconds old: `backdate(path, age_s)`."""

    def change(path: Path, age_s: float) -> None:
        then = time.time() - age_s
        os.utime(path, (then, then))

    return change


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """tests/data/gguf_reference/tiny_models.py, which make.py shares."""
    name = "tiny_models"
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).parents[1] / "data" / "gguf_reference" / "tiny_models.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write_folder(tmp_path: Path, tiny_models: ModuleType) -> Callable[..., Path]:
    """`write_folder("llama", **tiny_folders.write_folder's other arguments)`: the path of a folder of safetensors."""
    written = runpy.run_path(str(Path(__file__).parents[1] / "data" / "gguf_reference" / "tiny_folders.py"))

    def write(name: str, tensors: object = None, **changes: object) -> Path:
        model = tiny_models.MODELS[name]
        folder = tmp_path / f"{name}-folder"
        path: Path = written["write_folder"](folder, model, tensors or tiny_models.weights(model), **changes)
        return path

    return write


@pytest.fixture
def write_tiny(tmp_path: Path, tiny_models: ModuleType) -> Callable[..., Path]:
    """`write_tiny("llama", quantization="Q4_0", **write_gguf's other arguments)`: the path of a new file."""

    def write(name: str, quantization: str = "F32", **changes: object) -> Path:
        path = tmp_path / f"{name}.gguf"
        kind = GGMLQuantizationType[quantization]
        tiny_models.write_gguf(path, tiny_models.MODELS[name], quantization=kind, **changes)
        return path

    return write


@pytest.fixture(scope="session")
def split_gguf() -> Callable[[Path, int], list[Path]]:
    """`split_gguf(path, tensors_each)`: the parts, as the gguf package writes them, beside the file and without it."""

    def split(source: Path, tensors_each: int) -> list[Path]:
        reader = GGUFReader(source)
        architecture = reader.fields["general.architecture"].contents()
        writer = GGUFWriter(source, architecture, split_max_tensors=tensors_each)
        for key, found in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                kind, inner = found.types[0], found.types[-1] if len(found.types) > 1 else None
                writer.add_key_value(key, found.contents(), kind, sub_type=inner)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        source.unlink()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return sorted(source.parent.glob(f"{source.stem}-*-of-*.gguf"))

    return split
