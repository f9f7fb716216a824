"""HEAD is GET without the body, on every route (RFC 9110, 9.3.2)."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.types import Message


async def head_as_get(app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any) -> None:
    """Run one ASGI connection. The HTTP server, which knows what was asked, leaves the body out."""
    if scope["type"] != "http":
        await app(scope, receive, send)
        return

    async def send_allowing_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, b"HEAD, " + value if name == b"allow" and b"GET" in value else value)
                for name, value in message["headers"]
            ]
        await send(message)

    await app(scope | {"method": "GET"} if scope["method"] == "HEAD" else scope, receive, send_allowing_head)
