"""One log line a request, and its id on the response and on every line written while answering."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote

from litestar.types import Message

from vmm_server.logs import request_id

logger = logging.getLogger(__name__)

HEADER = b"x-request-id"
ANTHROPIC_HEADER = b"request-id"
"""What Anthropic's clients look for, on their routes."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROBES = ("/health", "/health/live", "/health/ready", "/metrics")
_CLIENT_LEFT = 499
_SWITCHED = 101
_STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
"""Messages with the headers of the answer."""
_MAX_PATH = 200


async def logged(
    app: Callable[[Any, Any, Any], Awaitable[None]],
    scope: Any,
    receive: Any,
    send: Any,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run one ASGI connection. The client's own `x-request-id` is kept when it is short and plain."""
    if scope["type"] not in ("http", "websocket"):
        await app(scope, receive, send)
        return
    chosen = _request_id(scope["headers"])
    names = (HEADER, ANTHROPIC_HEADER) if scope["path"].startswith("/v1/messages") else (HEADER,)
    status, started = _CLIENT_LEFT, clock()

    async def send_with_id(message: Message) -> None:
        nonlocal status
        if message["type"] in _STARTS:
            start: Any = message
            status = start.get("status", _SWITCHED)
            start["headers"] = [*start.get("headers", ()), *((name, chosen.encode()) for name in names)]
        await send(message)

    token = request_id.set(chosen)
    try:
        await app(scope, receive, send_with_id)
    finally:
        level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
        took_ms = 1e3 * (clock() - started)
        path = quote(scope["path"][:_MAX_PATH], safe="/:@")  # no line break of a client's gets into the log
        logger.log(level, "%s %s %d %.1f ms", scope.get("method", "GET"), path, status, took_ms)
        request_id.reset(token)


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == HEADER and _SANE_ID.fullmatch(value):
            return value.decode()
    return f"req-{secrets.token_hex(8)}"
