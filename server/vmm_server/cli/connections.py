"""HTTP connections whose clients must not keep us waiting for ever.

uvicorn closes a connection that is idle between two requests, and no other: one on which nothing was ever asked, or
half a request, stays. Here the head of a request has to be there some time after its connection or its first byte is,
and each piece of its body so long after the last one. How long an answer may be left unread is the kernel's to watch
(`limit_unread`).
"""

import asyncio
import socket
import sys
from typing import Any

from vmm_server.cli.heads import BoundedHeadProtocol


class PatientProtocol(BoundedHeadProtocol):
    """uvicorn's, with patience for `client_timeout_s`; 0 is for ever."""

    def __init__(self, *arguments: Any, client_timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._client_timeout_s = client_timeout_s
        self._impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request came: wait for the rest of its head."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """The head is there: wait for the body."""
        super().on_headers_complete()
        self._wait()

    def on_body(self, body: bytes) -> None:
        """A piece of the body: wait for the next one."""
        super().on_body(body)
        self._wait()

    def on_message_complete(self) -> None:
        """All of a request is there."""
        self._stop_waiting()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Others look after it from now on."""
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def _wait(self) -> None:
        self._stop_waiting()
        if self._client_timeout_s:
            self._impatience = self.loop.call_later(self._client_timeout_s, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _lose_patience(self) -> None:
        if self.flow.read_paused:  # it is us who take nothing
            self._wait()
        elif not self.transport.is_closing():
            self.transport.close()


def limit_unread(listener: socket.socket, client_timeout_s: float) -> None:
    """Have the kernel end connections whose clients take nothing of what is sent, for so long; 0 is for ever.

    Linux has it (`TCP_USER_TIMEOUT`, RFC 5482), also for a client whose window is closed, and for what is left to send
    when we have closed the connection. Elsewhere such a client is waited for until it leaves.
    """
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(client_timeout_s * 1000))
