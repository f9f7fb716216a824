"""WebSocket `/v1/stream`: requests in, the events of their streams out, many at a time on one connection.

A message is a request to a route (`Requester`), and what the route would send as server-sent events goes back, one
message an event. Each request is one task. They share the socket, and a socket whose client does not read holds them
all: an event is taken from its route only when the one before it is on its way, so nothing piles up here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from litestar import websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect

from vmm_server.admission import Admission
from vmm_server.api.errors import headers_of, openai_body, report, status_of
from vmm_server.api.requester import Requester, Streamed
from vmm_server.api.sockets import Socket
from vmm_server.callers import Caller, caller
from vmm_server.errors import InvalidRequest, Overloaded, Unauthenticated, VMMError
from vmm_server.keys import KeyRing

CHAT = "/v1/chat/completions"
ENDPOINTS: Mapping[str, bool] = {
    CHAT: True,
    "/v1/completions": True,
    "/v1/responses": True,
    "/v1/messages": True,
    "/v1/embeddings": False,
    "/v1/rerank": False,
}
"""Routes, and whether they stream."""
MAX_CONCURRENT = 64
"""Requests under way on one socket."""
MAX_ID = 128
"""Characters."""
MAX_TIMEOUT_MS = 24 * 3600 * 1000
CANCELLED = 499
_LARGE = 64 * 1024
"""Messages from here on are read in a thread."""
_OWN = ("id", "endpoint", "body", "timeout_ms", "cancel")

Admit = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    id: str | None
    endpoint: str
    body: bytes
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The end of a request that is under way."""

    id: str | None


@websocket("/v1/stream")
async def stream_socket(
    socket: Socket,
    requester: NamedDependency[Requester],
    keys: NamedDependency[KeyRing],
    admission: NamedDependency[Admission],
) -> None:
    """See docs/websocket.md."""
    tenant = caller.get().tenant

    def admit() -> AbstractContextManager[None]:
        key = keys.get(tenant) if tenant else None
        if tenant and key is None:
            raise Unauthenticated("the key of this connection was revoked, or has expired")
        return admission.enter(key)

    await socket.accept()
    session = _Session(socket, requester, admit)
    with suppress(WebSocketDisconnect, OSError):  # the client has left
        await session.serve()


class _Session:
    """One connection."""

    def __init__(self, socket: Socket, requester: Requester, admit: Admit) -> None:
        self._socket = socket
        self._requester = requester
        self._admit = admit
        self._sending = asyncio.Lock()
        self._tasks: dict[str | None, asyncio.Task[None]] = {}
        self._is_over = False

    async def serve(self) -> None:
        """Until the client leaves; then nothing of it goes on."""
        try:
            async for message in self._messages():
                try:
                    await self._take(message)
                except VMMError as error:
                    await self._fail(None, error)
        finally:
            self._is_over = True
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[str | None]:
        """Texts; `None` is a message of bytes."""
        while True:
            message: Any = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            yield message.get("text")

    async def _take(self, message: str | None) -> None:
        if message is None:
            raise InvalidRequest("a message must be text: the JSON of a request")
        asked = await (asyncio.to_thread(parse, message) if len(message) >= _LARGE else _now(parse, message))
        if isinstance(asked, Cancel):
            if task := self._tasks.get(asked.id):
                task.cancel()
            return
        if asked.id in self._tasks:
            what = "a request without an id" if asked.id is None else f"a request of the id {asked.id!r}"
            await self._fail(asked.id, InvalidRequest(f"id: {what} is under way", param="id"))
        elif len(self._tasks) >= MAX_CONCURRENT:
            await self._fail(asked.id, Overloaded())
        else:
            self._tasks[asked.id] = asyncio.create_task(self._answer(asked))
            await asyncio.sleep(0)  # a task that is cancelled before it begins would say nothing

    async def _answer(self, asked: Asked) -> None:
        """Every request has its events, and then a `done`, whatever happens on the way."""
        status, headers = CANCELLED, dict[str, str]()
        try:
            status, headers = await self._stream(asked)
        except asyncio.CancelledError:
            if self._is_over:
                raise
        except (WebSocketDisconnect, OSError):
            return
        finally:
            del self._tasks[asked.id]
        await self._send(_done(asked.id, status, headers))

    async def _stream(self, asked: Asked) -> tuple[int, dict[str, str]]:
        """Send the events; returns the status and the headers of the response that they are of."""
        try:
            with self._admit():
                async with self._requester.open(asked.endpoint, asked.body, _asking(asked)) as streamed:
                    async for event in _events(streamed):
                        await self._send(_event(asked.id, event))
                    return streamed.status, dict(streamed.headers)
        except (WebSocketDisconnect, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and to the log where it is ours
            report(error)
            await self._send(_event(asked.id, msgspec.json.encode(openai_body(error))))
            return status_of(error), headers_of(error)

    async def _fail(self, request_id: str | None, error: VMMError) -> None:
        await self._send(_event(request_id, msgspec.json.encode(openai_body(error))))
        await self._send(_done(request_id, status_of(error), headers_of(error)))

    async def _send(self, text: bytes) -> None:
        async with self._sending:  # one waits for a slow reader, and the others for that one
            await self._socket.send_text(text.decode())


def parse(message: str) -> Asked | Cancel:
    """What a message asks for. Raises `InvalidRequest` naming the field."""
    fields = _object(message, "the message")
    request_id = _field(fields, "id", str | None)
    if request_id is not None and not 1 <= len(request_id) <= MAX_ID:
        raise InvalidRequest(f"id: must have 1 to {MAX_ID} characters", param="id")
    if "cancel" in fields:
        return Cancel(_field(fields, "cancel", str | None))
    timeout_ms = _field(fields, "timeout_ms", int | None)
    if timeout_ms is not None and not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"timeout_ms: must be 1 to {MAX_TIMEOUT_MS}", param="timeout_ms")
    endpoint = _field(fields, "endpoint", str | None) or CHAT
    if endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint: {endpoint[:100]!r} is none of {', '.join(ENDPOINTS)}", param="endpoint")
    if "endpoint" in fields and "body" not in fields:
        raise InvalidRequest("body: field required", param="body")
    body = _object(fields["body"], "body") if "body" in fields else _without(fields, _OWN)
    if ENDPOINTS[endpoint] and "stream" not in body:
        body["stream"] = msgspec.Raw(b"true")
    return Asked(request_id, endpoint, msgspec.json.encode(body), timeout_ms)


async def _events(streamed: Streamed) -> AsyncIterator[bytes]:
    """JSON, one object each: those of a stream, or all of an answer that is none."""
    if not streamed.is_event_stream:
        yield await streamed.body()
        return
    async for event in streamed.events():
        if event != b"[DONE]":
            yield event


def _asking(asked: Asked) -> Caller:
    asking = caller.get()
    if asked.timeout_ms is None:
        return asking
    return replace(asking, deadline_at=time.monotonic() + asked.timeout_ms / 1000)


def _event(request_id: str | None, event: bytes) -> bytes:
    """An event as it is; in an envelope where the request has an id."""
    return event if request_id is None else b'{"id":%b,"event":%b}' % (msgspec.json.encode(request_id), event)


def _done(request_id: str | None, status: int, headers: Mapping[str, str]) -> bytes:
    about = {} if request_id is None else {"id": request_id}
    shown = {name: value for name, value in headers.items() if name not in _FRAMING}
    return msgspec.json.encode({**about, "type": "done", "status": status, "headers": shown})


_FRAMING = ("content-type", "content-length", "cache-control", "connection", "x-accel-buffering")
"""Headers that say nothing here."""


async def _now(work: Callable[[str], Asked | Cancel], message: str) -> Asked | Cancel:
    return work(message)


def _object(text: str | msgspec.Raw, what: str) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{what}: must be a JSON object", param=None if what != "body" else what) from error


def _field(fields: Mapping[str, msgspec.Raw], name: str, kind: Any) -> Any:
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from error


def _without(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> dict[str, msgspec.Raw]:
    return {name: value for name, value in fields.items() if name not in names}
