"""What takes long and tells how far it is: pull, push and create answer in the same way."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from litestar.types import ASGIApp

from vmm_server.api.errors import ollama_body
from vmm_server.api.framing import json_line
from vmm_server.api.ollama.replies import JSON
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import PullEvent
from vmm_server.models.registry import Registry

Events = Callable[[], AsyncGenerator[PullEvent]]
"""Starts the work."""


def progress_reply(start: Events, *, stream: bool | None) -> ASGIApp:
    """NDJSON, one event a line, or the last event alone with `"stream": false`."""
    if stream is False:
        return json_response(lambda: _whole(start), media_type=JSON)
    return ndjson_response(lambda: _stream(start), ollama_body)


async def then_unload_unused(
    events: AsyncGenerator[PullEvent], pool: ModelPool, registry: Registry
) -> AsyncGenerator[PullEvent]:
    """The same events; the engine of a model that was replaced goes when they are over, or when it is idle."""
    async with aclosing(events):
        async for event in events:
            yield event
    await unload_unused(pool, registry)


async def unload_unused(pool: ModelPool, registry: Registry) -> None:
    """Unload, once they are idle, engines whose weights no installed model has any more."""
    installed = {model.weights for model in await asyncio.to_thread(registry.installed)}
    for loaded in pool.loaded():
        if loaded.model.weights not in installed:
            await pool.unload(loaded.model)


async def _whole(start: Events) -> WholeAnswer:
    status = ""
    async with aclosing(start()) as events:
        async for event in events:
            status = event.status
    return WholeAnswer({"status": status})


@asynccontextmanager
async def _stream(start: Events) -> AsyncIterator[ChunkStream]:
    async with aclosing(_lines(start)) as lines:
        yield ChunkStream(lines)


async def _lines(start: Events) -> AsyncGenerator[bytes]:
    async with aclosing(start()) as events:
        async for event in events:
            yield json_line(_fields(event))


def _fields(event: PullEvent) -> dict[str, object]:
    counts = {"digest": event.digest, "total": event.total, "completed": event.completed}
    return {"status": event.status} | {name: value for name, value in counts.items() if value is not None}
