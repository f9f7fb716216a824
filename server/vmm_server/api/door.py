"""The door of the server, around its routes: once it is closed, what came in is finished and nothing new comes in.

Whoever asks then is told to come again, and to open another connection for it, which finds another server behind a load
balancer, or this one's successor. What only looks (`GET`) goes on until the end: somebody wants to see it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vmm_server.api.refusals import refuse
from vmm_server.errors import ShuttingDown

GOING_AWAY = 1001
"""RFC 6455, 7.4.1: a server goes down."""
_LOOKS = ("GET", "HEAD", "OPTIONS")

ASGI = Callable[[Any, Any, Any], Awaitable[None]]


class Door:
    """Open until `close`. Belongs to one event loop."""

    def __init__(self) -> None:
        self.is_closed = False
        self._num_inside = 0
        self._sockets: set[_Socket] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def __call__(self, app: ASGI, scope: Any, receive: Any, send: Any) -> None:
        """Run one ASGI connection, or refuse it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["method"] in _LOOKS):
            await app(scope, receive, self._parting(send))
        elif self.is_closed:
            await refuse(scope, ShuttingDown(), self._parting(send))
        elif scope["type"] == "websocket":
            socket = _Socket(send)
            self._sockets.add(socket)
            try:
                await app(scope, receive, socket.send)
            finally:
                self._sockets.discard(socket)
        else:
            with self._inside():
                await app(scope, receive, self._parting(send))

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_closed = True

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until every request that came in is answered; False when that takes longer than `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._empty.is_set()

    async def dismiss(self) -> None:
        """Close the WebSockets that are still open: 1001."""
        await asyncio.gather(*(socket.dismiss() for socket in self._sockets), return_exceptions=True)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._num_inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._empty.set()

    def _parting(self, send: Any) -> Callable[[Any], Awaitable[None]]:
        """Ends the connection with the answer, once the door is closed."""

        async def send_last(message: Any) -> None:
            if self.is_closed and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return send_last


class _Socket:
    """A WebSocket that can be closed from outside. What its route says after that is heard by nobody."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._is_open = False
        self._is_dismissed = False

    async def send(self, message: Any) -> None:
        """As ASGI's `send`."""
        if self._is_dismissed:
            return
        if message["type"] == "websocket.accept":
            self._is_open = True
        elif message["type"] == "websocket.close":
            self._is_open = False
        await self._send(message)

    async def dismiss(self) -> None:
        """Close it, if it is open."""
        if self._is_open and not self._is_dismissed:
            self._is_dismissed = True
            await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": "the server is shutting down"})
