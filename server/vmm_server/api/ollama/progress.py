"""What takes long and tells how far it is: pull, push and create answer in the same way."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from litestar.types import ASGIApp

from vmm_server.api.errors import ollama_body
from vmm_server.api.framing import json_line
from vmm_server.api.ollama.replies import JSON
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import PullEvent

Events = Callable[[], AsyncGenerator[PullEvent]]
"""Starts the work."""


def progress_reply(start: Events, *, stream: bool | None) -> ASGIApp:
    """NDJSON, one event a line, or the last event alone with `"stream": false`."""
    if stream is False:
        return json_response(lambda: _whole(start), media_type=JSON)
    return ndjson_response(lambda: _stream(start), ollama_body)


async def then_find_replaced(events: AsyncGenerator[PullEvent], pool: ModelPool) -> AsyncGenerator[PullEvent]:
    """The same events; a model in memory that was replaced leaves when they are over, or when nobody uses it."""
    async with aclosing(events):
        async for event in events:
            yield event
    pool.find_replaced()


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
