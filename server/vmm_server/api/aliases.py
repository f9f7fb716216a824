"""OpenAI's routes without `/v1`, for clients whose base URL lacks it."""

from collections.abc import Awaitable, Callable
from typing import Any

UNPREFIXED = (
    *("/chat/completions", "/completions", "/embeddings", "/audio", "/models", "/responses"),
    *("/files", "/batches"),
)
_BENEATH = tuple(f"{root}/" for root in UNPREFIXED)


async def with_aliases(app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any) -> None:
    """Run one ASGI connection, on the route that its path means."""
    path: str = scope.get("path", "")
    if (meant := meant_by(path)) != path:
        scope = scope | {"path": meant, "raw_path": b"/v1" + scope["raw_path"]}
    await app(scope, receive, send)


def meant_by(path: str) -> str:
    """The path of the route."""
    return f"/v1{path}" if path in UNPREFIXED or path.startswith(_BENEATH) else path
