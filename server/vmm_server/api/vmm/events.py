"""WebSocket `/api/vmm/events`: live figures out, and what becomes of models; nothing in."""

import math
from contextlib import ExitStack, suppress
from typing import Any

from litestar import websocket
from litestar.di import NamedDependency

from vmm_server.api.refusals import refuse
from vmm_server.api.sockets import Socket, told_of_errors, until_one_ends
from vmm_server.callers import caller
from vmm_server.errors import InvalidRequest, Unauthenticated, VMMError
from vmm_server.keys import KeyRing
from vmm_server.metrics.live import Listener, LiveFigures

DEFAULT_INTERVAL_S = 1.0
MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 60.0


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
        async with told_of_errors(socket, {"type": "error"}):
            await until_one_ends(_read(socket), _tell(socket, listener, keys))


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
