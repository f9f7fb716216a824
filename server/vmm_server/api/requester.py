"""Requests that this server sends to itself: lines of batches, messages of WebSockets.

What a line of a batch or a message says is the body of a request over HTTP, and what comes back is the body of its
response: the same checks, the same answers, the same errors, now and after the next change of a route. So they are sent
to the routes, as ASGI connections with no socket behind them. They pass no gate: whoever sends them says for whom.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, MutableMapping
from contextlib import aclosing, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from litestar.types import ASGIApp

from vmm_server.callers import Caller, caller
from vmm_server.errors import GenerationFailed


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Streamed:
    """A response whose body is on its way."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncGenerator[bytes]
    """Raises `GenerationFailed` when the body breaks off."""

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self.chunks])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of server-sent events, one by one; comments are left out."""
        pending = b""
        async for chunk in self.chunks:
            *whole, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    yield b"\n".join(lines)

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is one of events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


class Requester:
    """Sends requests to the routes of one app."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is what is behind the gate."""
        self._app = app

    async def post(self, path: str, body: bytes, caller: Caller) -> Reply:
        """What a route answers to a JSON body. Cancelling this cancels its work. Raises `GenerationFailed`."""
        async with self.open(path, body, caller) as streamed:
            return Reply(streamed.status, streamed.headers, await streamed.body())

    @asynccontextmanager
    async def open(
        self, path: str, body: bytes, caller: Caller, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> AsyncIterator[Streamed]:
        """A route's answer to a JSON body as it comes; on exit its work is over, or cancelled.

        No more than one chunk waits: a route whose answer is not read waits, too. Raises `GenerationFailed` when it
        does not answer.
        """
        messages = _Messages()
        working = _start(self._app, _scope(path, body, headers), _Receiver(body), messages, caller)
        try:
            start = await messages.get()
            if start is None:
                await working
                raise GenerationFailed(f"{path} gave no answer")
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
            async with aclosing(_chunks(messages, working)) as chunks:
                yield Streamed(start["status"], named, chunks)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _start(
    app: ASGIApp,
    scope: Mapping[str, Any],
    receive: "_Receiver",
    messages: "_Messages",
    asking: Caller,
) -> asyncio.Task[None]:
    """The connection, in a task that has its own caller."""
    application: Any = app
    context = copy_context()
    context.run(caller.set, asking)
    working = asyncio.create_task(application(scope, receive, messages.put), context=context)
    working.add_done_callback(messages.close)
    return working


async def _chunks(messages: "_Messages", working: asyncio.Task[None]) -> AsyncGenerator[bytes]:
    is_more = True
    while is_more:
        message = await messages.get()
        if message is None:
            await working
            raise GenerationFailed("the answer broke off")
        is_more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


class _Messages:
    """What an app sends, handed over one by one: who sends waits until it is taken."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()

    async def put(self, message: MutableMapping[str, Any]) -> None:
        """As ASGI's `send`."""
        self._queue.put_nowait(message)
        await self._queue.join()

    async def get(self) -> MutableMapping[str, Any] | None:
        """The next; `None` when no more comes."""
        message = await self._queue.get()
        self._queue.task_done()
        return message

    def close(self, _: object) -> None:
        """Nothing more comes."""
        self._queue.put_nowait(None)


class _Receiver:
    """The body, and then nothing: a client that waits for its answer."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _scope(path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ],
        "client": None,
        "server": None,
        "extensions": {},
    }
