"""Exception → status, headers and body, in one table for both dialects.

A class without a row of its own takes the one of its nearest base. `VMMError` and `AdapterError` have rows, so
every error has an answer; `tests/test_errors.py` holds the table against the trees.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from vmm_adapters.errors import AdapterError, OutOfMemory
from vmm_server import errors

logger = logging.getLogger(__name__)

Body = Mapping[str, object]

STATUS: Mapping[type[Exception], int] = {
    errors.InvalidRequest: 400,
    errors.ModelNotFound: 404,
    errors.SourceNotFound: 404,
    errors.RequestCancelled: 499,
    errors.SourceError: 502,
    errors.Overloaded: 503,
    errors.ShuttingDown: 503,
    errors.StoreError: 507,
    errors.ImportFailed: 500,
    errors.ModelLoadFailed: 500,
    errors.GenerationFailed: 500,
    errors.SettingsError: 500,
    errors.VMMError: 500,
    OutOfMemory: 500,
    AdapterError: 500,
}
"""HTTP status of each error."""

TRANSIENT = (errors.Overloaded, errors.ShuttingDown, errors.GenerationFailed, errors.SourceError)
"""Worth another try. OpenAI's clients retry every status from 500 on unless told not to."""

DRAIN_RETRY_AFTER_S = 5


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for one that is not ours."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def message_of(error: BaseException) -> str:
    """What the client may read. An error that is not ours says nothing of our insides."""
    if isinstance(error, errors.VMMError | AdapterError):
        return error.message
    return error.detail if isinstance(error, HTTPException) else "internal server error"


def headers_of(error: Exception) -> dict[str, str]:
    """`Retry-After` and `x-should-retry`, which OpenAI's clients obey."""
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, errors.Overloaded):
        return {"retry-after": str(error.retry_after_s), "x-should-retry": "true"}
    if isinstance(error, errors.ShuttingDown):
        return {"retry-after": str(DRAIN_RETRY_AFTER_S), "x-should-retry": "true"}
    return {} if isinstance(error, TRANSIENT) else {"x-should-retry": "false"}


def openai_body(error: Exception) -> Body:
    """`{"error": {"message", "type", "param", "code"}}`; `hint` beside them where there is one."""
    status = status_of(error)
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    inner: dict[str, object] = {
        "message": message_of(error),
        "type": kind,
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
    return {"error": inner | _hint(error)}


def ollama_body(error: Exception) -> Body:
    """`{"error": "<text>"}`; `hint` beside it where there is one."""
    return {"error": message_of(error)} | _hint(error)


def _hint(error: Exception) -> dict[str, object]:
    hint = getattr(error, "hint", None)
    return {"hint": hint} if hint else {}


def body_for(path: str) -> Callable[[Exception], Body] | None:
    """How the routes under `path` word their errors; `None` where neither dialect is spoken."""
    if path == "/v1" or path.startswith("/v1/"):
        return openai_body
    return ollama_body if path == "/api" or path.startswith("/api/") else None


def report(error: Exception) -> None:
    """Log what an operator must know: our own failures with their traceback, not the client's mistakes."""
    if status_of(error) < 500 or isinstance(error, errors.Overloaded | errors.ShuttingDown):
        return
    known = isinstance(error, errors.VMMError | AdapterError)
    cause = error.__cause__ if known else error
    logger.error("%s: %s", type(error).__name__, message_of(error) if known else error, exc_info=cause)


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an exception in the words of the dialect that the path belongs to."""
    report(error)
    shown = _route_error(request, error)
    word = body_for(request.url.path)
    if word is None:
        text, media_type = message_of(shown).encode(), "text/plain; charset=utf-8"
    else:
        text, media_type = msgspec.json.encode(word(shown)), "application/json"
    return Response(text, status_code=status_of(shown), headers=headers_of(shown), media_type=media_type)


def _route_error(request: Request[Any, Any, Any], error: Exception) -> Exception:
    """Say which path or method there is none of; the framework's own words are only the status's name."""
    path = request.url.path
    if isinstance(error, MethodNotAllowedException):
        return MethodNotAllowedException(f"method {request.method} not allowed for {path}", headers=error.headers)
    if isinstance(error, NotFoundException):
        return NotFoundException("404 page not found" if body_for(path) is None else f"no route {path}")
    return error
