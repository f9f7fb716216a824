"""Sends a model to another server that takes `/api/blobs` and `/api/create`: another VMM, or an Ollama.

What is sent is what was fetched, a GGUF file, or the files of the runnable folder where that is all there is; then
the other server is told to create a model of them, with all that a Modelfile put on top. A file that it has already
is not sent again, so a push that was interrupted goes on with the file it had come to.
"""

import asyncio
import hashlib
import ipaddress
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from vmm_server.errors import InvalidRequest, ModelNotFound, SourceError
from vmm_server.models.building import DESCRIPTION_FILE
from vmm_server.models.disk import store_errors
from vmm_server.models.jobs import Job, PullEvent, Report, Throttle
from vmm_server.models.manifests import InstalledModel, Manifest
from vmm_server.models.names import DEFAULT_HOST, ModelName
from vmm_server.models.parameters import from_sampling
from vmm_server.models.registry import Registry
from vmm_server.models.store import Store

_PIECE_BYTES = 1 << 20
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_IMPORT_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=None)
"""The other server may be silent while it imports."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file to send."""

    name: str
    path: Path
    digest: str
    size_bytes: int


class Pusher:
    """Pushes models of a store. Belongs to one event loop."""

    def __init__(self, store: Store, registry: Registry, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` stands in for the network."""
        self._store = store
        self._registry = registry
        self._transport = transport

    def push(self, name: str, *, insecure: bool = False) -> AsyncGenerator[PullEvent]:
        """Push the installed model of this name to the server that the name begins with; events until `success`.

        It is spoken to over HTTPS; over HTTP if that is asked for with `insecure`, and on this machine. Raises at once
        `InvalidModelName`, `InvalidRequest` for a name without a server, `ModelNotFound`; while reading, `SourceError`
        in the other server's words, `ModelLoadFailed` when files are gone.
        """
        target = ModelName.parse(name)
        url = _server_url(name, target, insecure=insecure)
        try:
            manifest = self._store.manifest(ModelName.parse(self._registry.resolve(name).name))
        except ModelNotFound as error:
            raise ModelNotFound(name, hint=f"give a model that name first: vmm cp MODEL {target}") from error
        if manifest is None:
            raise ModelNotFound(name)
        return self._follow(manifest, target, url)

    async def _follow(self, manifest: Manifest, target: ModelName, url: str) -> AsyncGenerator[PullEvent]:
        job = Job()

        async def work() -> None:
            try:
                async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, transport=self._transport) as client:
                    await _Push(self._store, manifest, target, client, Throttle(job.add)).run()
            except Exception as error:  # noqa: BLE001 - raised again in the reader
                job.finish(error)
            else:
                job.finish(None)

        task = asyncio.create_task(work(), name=f"push {target}")
        try:
            async for event in job.events():
                yield event
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class _Push:
    """One push. Use once."""

    def __init__(
        self, store: Store, manifest: Manifest, target: ModelName, client: httpx.AsyncClient, report: Report
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._target = target
        self._client = client
        self._report = report

    async def run(self) -> None:
        try:
            self._report("retrieving manifest")
            files = await self._files()
            for file in files:
                await self._send(file)
            self._report("pushing manifest")
            await self._create(files)
            self._report("success")
        except httpx.TimeoutException as error:
            raise SourceError(f"{self._target.host}: no answer in time", hint="try again") from error
        except httpx.TransportError as error:
            secure = self._client.base_url.scheme == "https"
            hint = "does it speak HTTPS? over plain HTTP, push with insecure" if secure else "is that server running?"
            raise SourceError(f"{self._target.host}: {error or type(error).__name__}", hint=hint) from error

    async def _files(self) -> list[_File]:
        """The GGUF file that was fetched, else what is in the folder."""
        model = self._manifest.model
        with store_errors(f"read {model.name}", self._store.root):
            if model.format == "gguf" and len(self._manifest.blobs) == 1:
                digest = self._manifest.blobs[0]
                path = self._store.blob(digest)
                if path.exists():
                    return [_File(f"{self._target.model}.gguf", path, digest, path.stat().st_size)]
            self._store.check_files(model)
            return [
                await self._hashed(state.path, model.folder / state.path, state.size_bytes)
                for state in self._manifest.files
                if state.path != DESCRIPTION_FILE and not state.variant
            ]

    async def _hashed(self, name: str, path: Path, size_bytes: int) -> _File:
        hasher, done = hashlib.sha256(), 0
        async for piece in _read(path):
            await asyncio.to_thread(hasher.update, piece)
            done += len(piece)
            self._report(f"hashing {name}", total=size_bytes, completed=done)
        return _File(name, path, hasher.hexdigest(), size_bytes)

    async def _send(self, file: _File) -> None:
        url, done = f"/api/blobs/sha256:{file.digest}", 0

        def progress() -> None:
            self._report(
                f"pushing {file.digest[:12]}", digest=f"sha256:{file.digest}", total=file.size_bytes, completed=done
            )

        async def content() -> AsyncIterator[bytes]:
            nonlocal done
            with store_errors(f"read {file.path}", self._store.root):
                async for piece in _read(file.path):
                    yield piece
                    done += len(piece)
                    progress()

        known = await self._client.head(url)
        if known.status_code == 404:
            progress()
            answer = await self._client.post(url, content=content(), headers={"Content-Length": str(file.size_bytes)})
            self._check(answer.status_code, answer.content)
        elif known.status_code != 200:
            self._check(known.status_code, b"")
        done = file.size_bytes
        progress()

    async def _create(self, files: list[_File]) -> None:
        body = {
            "model": str(ModelName(DEFAULT_HOST, self._target.namespace, self._target.model, self._target.tag)),
            "files": {file.name: f"sha256:{file.digest}" for file in files},
            "stream": True,
            **_on_top(self._manifest.model),
        }
        status = ""
        async with self._client.stream("POST", "/api/create", json=body, timeout=_IMPORT_TIMEOUT) as answer:
            if answer.status_code >= 400:
                self._check(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                event = _event(line)
                if error := event.get("error"):
                    raise SourceError(f"{self._target.host}: {error}")
                status = str(event.get("status", status))
                if status != "success":
                    self._report(status, total=_count(event, "total"), completed=_count(event, "completed"))
        if status != "success":
            raise SourceError(f"{self._target.host}: the answer ended before the model was created", hint="try again")

    def _check(self, status_code: int, content: bytes) -> None:
        """Raise `SourceError` with the other server's words for an answer that is an error."""
        if status_code < 300:
            return
        told = _event(content.decode(errors="replace")).get("error") or f"status {status_code}"
        raise SourceError(f"{self._target.host}: {told}")


def _server_url(text: str, name: ModelName, *, insecure: bool) -> str:
    """Where the server of this name listens. Raises `InvalidRequest` for a name without one, or for HTTP unasked."""
    if name.host == DEFAULT_HOST:
        raise InvalidRequest(
            f"{name}: the name says no server to push to",
            param="model",
            hint=f"vmm cp {name} HOST:PORT/{name.namespace}/{name.model}:{name.tag}, then push that name",
        )
    plain = insecure or _is_loopback(name.host)
    if text.lower().startswith("http://") and not plain:
        raise InvalidRequest("insecure protocol http", param="model", hint='push with "insecure": true, or over https')
    if text.lower().startswith("https://"):
        plain = False
    return f"{'http' if plain else 'https'}://{name.host}"


def _is_loopback(host: str) -> bool:
    bare = host.partition(":")[0].lower()
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _on_top(model: InstalledModel) -> dict[str, object]:
    """The fields of `/api/create` that say what a Modelfile, or a card, put on top of the weights."""
    licenses = [*model.license_texts] or ([model.license] if model.license else [])
    fields: dict[str, object] = {
        "template": model.template,
        "system": model.system,
        "parameters": {**from_sampling(model.sampling), **model.parameters},
        "messages": [{"role": role, "content": content} for role, content in model.messages],
        "license": licenses,
    }
    return {name: value for name, value in fields.items() if value}


def _event(line: str) -> dict[str, object]:
    """One line of an answer; nothing, for what is no JSON object."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _count(event: dict[str, object], key: str) -> int | None:
    value = event.get(key)
    return value if isinstance(value, int) else None


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
