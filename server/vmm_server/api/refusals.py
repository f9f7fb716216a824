"""Answers of what stands around the routes, to connections that get no further: an error in the words of the route."""

from collections.abc import Mapping
from typing import Any

from vmm_server.api.errors import headers_of, report, status_of, worded

STARTS: Mapping[str, str] = {
    "http": "http.response",
    "websocket": "websocket.http.response",  # an answer in place of the handshake's
}
"""Kinds of connections that can be refused → how the messages of the answer begin."""


async def refuse(scope: Any, error: Exception, send: Any, headers: Mapping[str, str] | None = None) -> None:
    """Answer a connection of one of the kinds in `STARTS`, with `headers` beside the error's own."""
    report(error)
    body, media_type = worded(scope["path"], error)
    shown = {"content-type": media_type, "content-length": str(len(body)), **headers_of(error), **(headers or {})}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in shown.items()]
    kind = STARTS[scope["type"]]
    await send({"type": f"{kind}.start", "status": status_of(error), "headers": encoded})
    await send({"type": f"{kind}.body", "body": body})
