"""WebSocket `/api/vmm/events`: live figures out, and what becomes of models; nothing in."""

import asyncio
import math
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
from litestar import WebSocket, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect

from vmm_server.api.errors import openai_body, report, status_of
from vmm_server.api.refusals import refuse
from vmm_server.callers import caller
from vmm_server.errors import InvalidRequest, Unauthenticated, VMMError
from vmm_server.keys import KeyRing
from vmm_server.metrics.live import Listener, LiveFigures

DEFAULT_INTERVAL_S = 1.0
MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 60.0
PRIVATE_CODES = 4000
"""RFC 6455, 7.4.2: from here on codes are an application's own. Ours have the HTTP status behind them."""

Socket = WebSocket[Any, Any, Any]


@websocket("/api/vmm/events")
async def events_socket(
    socket: Socket, live_figures: NamedDependency[LiveFigures], keys: NamedDependency[KeyRing]
) -> None:
    """See docs/metrics.md."""
    with ExitStack() as entered:
        try:
            interval_s = interval_of(socket.query_params.getall("interval", []))
            listener = entered.enter_context(live_figures.listening(interval_s))
        except VMMError as error:
            await refuse(socket.scope, error, socket.send)
            return
        await socket.accept()
        try:
            await _until_it_leaves(socket, listener, keys)
        except (WebSocketDisconnect, OSError):
            return
        except Exception as error:  # noqa: BLE001 - told to the client, and to the log where it is ours
            report(error)
            with suppress(WebSocketDisconnect, OSError):  # it has left
                await socket.send_text(msgspec.json.encode({"type": "error", **openai_body(error)}).decode())
                await socket.close(PRIVATE_CODES + status_of(error))


def interval_of(given: list[str]) -> float:
    """Seconds between two messages with figures. Raises `InvalidRequest`."""
    if not given:
        return DEFAULT_INTERVAL_S
    with suppress(ValueError):
        seconds = float(given[-1])
        if math.isfinite(seconds) and MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
            return seconds
    raise InvalidRequest(
        f"interval: must be {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds, not {given[-1][:40]!r}", param="interval"
    )


async def _until_it_leaves(socket: Socket, listener: Listener, keys: KeyRing) -> None:
    tasks = {asyncio.create_task(_read(socket)), asyncio.create_task(_tell(socket, listener, keys))}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(socket: Socket) -> None:
    """Hear when the client leaves; what else it says is nobody's business."""
    while True:
        message: Any = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return


async def _tell(socket: Socket, listener: Listener, keys: KeyRing) -> None:
    tenant = caller.get().tenant
    while True:
        message = await listener.next()
        if tenant and keys.get(tenant) is None:
            raise Unauthenticated("the key of this connection was revoked, or has expired")
        await socket.send_text(message.decode())
