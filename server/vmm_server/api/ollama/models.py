"""Models under `/api`: version, tags, show, ps, pull, delete; and `/`, which says that somebody is there."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Controller, MediaType, Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

import vmm_server
from vmm_server.api.body import read_body
from vmm_server.api.errors import ollama_body
from vmm_server.api.framing import json_line
from vmm_server.api.ollama import examples
from vmm_server.api.ollama.describe import loaded_fields, show_fields, tag_fields
from vmm_server.api.ollama.replies import JSON
from vmm_server.api.ollama.wire import NamedModel, PullBody, ShowBody
from vmm_server.api.openapi import described
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.errors import InvalidRequest
from vmm_server.models.compiled import delete_compiled
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import Puller, PullEvent
from vmm_server.models.registry import Registry
from vmm_server.settings import Settings


class ModelsController(Controller):
    """Installed and loaded models."""

    path = "/"

    @get(
        "/",
        operation_id="root",
        summary="Is somebody there",
        media_type=MediaType.TEXT,
        sync_to_thread=False,
        opt=described(*examples.ROOT),
    )
    def root(self) -> str:
        """Clients look for these words."""
        return "Ollama is running"

    @get(
        "/api/version",
        operation_id="version",
        summary="Versions",
        sync_to_thread=False,
        opt=described(*examples.VERSION),
    )
    def version(self, settings: NamedDependency[Settings]) -> dict[str, str]:
        """The Ollama version clients switch features on by, and VMM's own."""
        return {"version": settings.ollama_version, "vmm_version": vmm_server.__version__}

    @get(
        "/api/tags",
        operation_id="list",
        summary="List installed models",
        sync_to_thread=True,
        opt=described(*examples.TAGS),
    )
    def tags_list(self, registry: NamedDependency[Registry]) -> dict[str, object]:
        """Installed models, newest first."""
        return {"models": [tag_fields(model) for model in registry.installed()]}

    @get(
        "/api/ps",
        operation_id="ps",
        summary="List models in memory",
        sync_to_thread=False,
        opt=described(*examples.PS),
    )
    def loaded(self, pool: NamedDependency[ModelPool]) -> dict[str, object]:
        """Models in memory, the one that stays longest first."""
        now = pool.now()
        return {"models": [loaded_fields(loaded, loaded.expires_at(now)) for loaded in pool.loaded()]}

    @post(
        "/api/show",
        status_code=200,
        operation_id="show",
        summary="What a model is",
        opt=described(*examples.SHOW, body=ShowBody),
    )
    async def show(self, request: Request[Any, Any, Any], registry: NamedDependency[Registry]) -> dict[str, object]:
        """What a model is."""
        body = await read_body(request, ShowBody)
        model = registry.resolve(_required(body))
        return show_fields(model, _read_template(model.folder))

    @post(
        "/api/pull",
        status_code=200,
        operation_id="pull",
        summary="Fetch and install a model",
        opt=described(*examples.PULL, body=PullBody),
    )
    async def pull(self, request: Request[Any, Any, Any], puller: NamedDependency[Puller]) -> ASGIApp:
        """Fetch and install a model: progress as NDJSON, or one object with `"stream": false`."""
        body = await read_body(request, PullBody)
        reference = _not_local(_required(body))
        if body.stream is False:
            return json_response(lambda: _pull_whole(puller, reference), media_type=JSON)
        return ndjson_response(lambda: _pull_stream(puller, reference), ollama_body)

    @delete(
        "/api/delete",
        status_code=200,
        operation_id="delete",
        summary="Uninstall a model",
        opt=described(*examples.DELETE, body=NamedModel),
    )
    async def remove(
        self,
        request: Request[Any, Any, Any],
        registry: NamedDependency[Registry],
        pool: NamedDependency[ModelPool],
        settings: NamedDependency[Settings],
    ) -> Response[bytes]:
        """Unload and uninstall a model."""
        name = _required(await read_body(request, NamedModel))
        await pool.unload(registry.resolve(name))
        await asyncio.to_thread(registry.remove, name)
        await asyncio.to_thread(delete_compiled, settings.cache_dir, keep=registry.installed())
        return Response(b"", media_type=MediaType.TEXT)


def _required(body: NamedModel) -> str:
    if not body.reference:
        raise InvalidRequest("model is required", param="model")
    return body.reference


def _not_local(reference: str) -> str:
    """A client on another machine must not name this machine's files or what listens on its loopback."""
    if reference.lower().startswith(("file:", "http:")):
        scheme = reference.partition(":")[0]
        raise InvalidRequest(
            f"{scheme}: sources are pulled on the server's own machine only",
            param="model",
            hint=f"run there: vmm pull {reference}",
        )
    return reference


def _read_template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


async def _pull_whole(puller: Puller, reference: str) -> WholeAnswer:
    status = ""
    async for event in puller.pull(reference):
        status = event.status
    return WholeAnswer({"status": status})


@asynccontextmanager
async def _pull_stream(puller: Puller, reference: str) -> AsyncIterator[ChunkStream]:
    async with aclosing(_pull_lines(puller, reference)) as lines:
        yield ChunkStream(lines)


async def _pull_lines(puller: Puller, reference: str) -> AsyncGenerator[bytes]:
    async for event in puller.pull(reference):
        yield json_line(_event_fields(event))


def _event_fields(event: PullEvent) -> dict[str, object]:
    counts = {"digest": event.digest, "total": event.total, "completed": event.completed}
    return {"status": event.status} | {name: value for name, value in counts.items() if value is not None}
