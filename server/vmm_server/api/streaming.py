"""Replies that own their work: JSON, SSE and NDJSON, each an ASGI callable.

A route handler returns one of these and is done; nothing has been acquired yet. When the callable runs it opens the
answer, sends it, and closes it, whatever happened. (A `yield` dependency would be closed before the first chunk, and a
generator that was never started runs no `finally` at all.) A second task listens to the client: when it leaves - in the
queue, in prefill, between two chunks, while a JSON answer is in the making - all of that is cancelled, and the
generation with it.

A request that has a deadline ends there, whatever it is at: waiting for a load, in the queue, between two chunks.

A response starts with its first chunk, so that a failure before it still has its own status. Only a stream whose first
chunk takes longer than `FIRST_CHUNK_GRACE_S` starts without one, to keep proxies from giving up on it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send
from sse_starlette import EventSourceResponse, ServerSentEvent

from vmm_server.api.errors import Body, report
from vmm_server.api.framing import json_line, sse_event
from vmm_server.callers import caller
from vmm_server.errors import DeadlineExceeded, VMMError

FIRST_CHUNK_GRACE_S = 15.0
"""How long a response waits for its first chunk."""
PING_S = 15.0
"""Between two pings on a silent SSE stream. NDJSON has no such thing and gets none."""
COMMENT = ServerSentEvent(comment="ping", sep="\n")
"""The ping that no client takes for an event."""
JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class ChunkStream:
    """An answer in pieces. A chunk is one SSE event or one NDJSON line, framed, and sent by itself."""

    chunks: AsyncIterator[bytes]
    headers: Callable[[], Mapping[str, str]] = dict
    """Called when the response starts."""


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer in one piece."""

    body: Body | bytes
    """Bytes are JSON already, or whatever the `content-type` of the headers says."""
    headers: Mapping[str, str] = field(default_factory=dict)


OpenStream = Callable[[], AbstractAsyncContextManager[ChunkStream]]
"""Opens an answer; on exit it gives back what it acquired."""


def json_response(work: Callable[[], Awaitable[WholeAnswer]], *, media_type: str = JSON) -> ASGIApp:
    """200 with one JSON object, or with bytes, once `work` is done."""

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            async with _in_time():
                whole = await work()
            body = whole.body if isinstance(whole.body, bytes) else msgspec.json.encode(whole.body)
            headers = {"content-type": media_type, "content-length": str(len(body)), **whole.headers}
            await _start(send, headers)
            await _send(send, body, more=False)

        await _while_connected(receive, answer())

    return reply


def bytes_response(open_stream: OpenStream, media_type: str) -> ASGIApp:
    """200 with bytes as they come. There is no place in them for a late failure: the connection is closed before the
    body has ended, which is how a client knows that it is not whole."""

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            async with _opened(open_stream) as stream:
                first = await anext(stream.chunks, b"")
                await _start(send, {"content-type": media_type, **stream.headers()})
                await _send(send, first)
                try:
                    async for chunk in stream.chunks:
                        await _send(send, chunk)
                except VMMError as error:
                    report(error)
                    return
                await _send(send, b"", more=False)

        await _while_connected(receive, answer())

    return reply


def ndjson_response(
    open_stream: OpenStream, failure: Callable[[Exception], Body], *, grace_s: float = FIRST_CHUNK_GRACE_S
) -> ASGIApp:
    """200 with one JSON object a line; a late failure is the last line, in `failure`'s words."""

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            async with (
                _opened(open_stream) as stream,
                aclosing(_guarded(stream.chunks, lambda e: json_line(failure(e)), grace_s)) as lines,
            ):
                first = await anext(lines, b"")
                await _start(send, {"content-type": NDJSON, **stream.headers()})
                if first:
                    await _send(send, first)
                async for line in lines:
                    await _send(send, line)
                await _send(send, b"", more=False)

        await _while_connected(receive, answer())

    return reply


def sse_response(
    open_stream: OpenStream,
    failure: Callable[[Exception], Body],
    *,
    drain_s: float,
    frame: Callable[[Body], bytes] = sse_event,
    ping: ServerSentEvent = COMMENT,
    grace_s: float = FIRST_CHUNK_GRACE_S,
    ping_s: float = PING_S,
) -> ASGIApp:
    """200 with server-sent events and pings; a late failure is the last event, in `failure`'s words and `frame`d.

    `drain_s` is how long a running stream may go on once the server is told to stop.
    """

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            async with (
                _opened(open_stream) as stream,
                aclosing(_guarded(stream.chunks, lambda e: frame(failure(e)), grace_s)) as events,
            ):
                first = await anext(events, b"")
                response = EventSourceResponse(
                    _prepended(first, events),
                    headers=stream.headers(),
                    ping=ping_s,
                    ping_message_factory=lambda: ping,
                    shutdown_grace_period=drain_s,
                )
                await response(scope, receive, send)  # type: ignore[arg-type]

        await _while_connected(receive, answer())

    return reply


def _in_time() -> AbstractAsyncContextManager[None]:
    """Around what has to be over by the caller's deadline. Raises `DeadlineExceeded` in its place."""
    deadline_at = caller.get().deadline_at
    return nullcontext() if deadline_at is None else _until(deadline_at)


@asynccontextmanager
async def _until(deadline_at: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(deadline_at - time.monotonic()) as limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded from error
        raise


@asynccontextmanager
async def _opened(open_stream: OpenStream) -> AsyncGenerator[ChunkStream]:
    """The answer, which ends with `DeadlineExceeded` where it is not whole by the caller's deadline."""
    async with AsyncExitStack() as stack:
        async with _in_time():
            stream = await stack.enter_async_context(open_stream())
        yield stream if caller.get().deadline_at is None else replace(stream, chunks=_Timely(stream.chunks))


class _Timely:
    """Chunks, as long as there is time."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        async with _in_time():
            chunk = await anext(self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk


async def _start(send: Send, headers: Mapping[str, str]) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": encoded})


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _prepended(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _guarded(
    chunks: AsyncIterator[bytes], failure: Callable[[Exception], bytes], grace_s: float
) -> AsyncGenerator[bytes]:
    """`chunks`, with `b""` before them when the first takes long. An error before the first yield is the caller's;
    a later one becomes a last chunk."""
    first = asyncio.ensure_future(anext(chunks, None))
    started = False
    try:
        done, _ = await asyncio.wait({first}, timeout=grace_s)
        if not done:
            started = True
            yield b""
        chunk = await first
        while chunk is not None:
            started = True
            yield chunk
            chunk = await anext(chunks, None)
    except Exception as error:
        if not started:
            raise
        report(error)
        yield failure(error)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when the client leaves: then nobody is there to answer, so just return."""
    connected = asyncio.timeout(None)
    leaving = asyncio.create_task(_expire_when_gone(connected, receive))
    try:
        async with connected:
            await work
    except TimeoutError:
        if not connected.expired():
            raise
    finally:
        leaving.cancel()


async def _expire_when_gone(connected: asyncio.Timeout, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    connected.reschedule(0.0)
