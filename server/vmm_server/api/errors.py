"""Exception → status, headers and body, in one table for all dialects.

A class without a row of its own takes the one of its nearest base. `VMMError` and `AdapterError` have rows, so
every error has an answer; `tests/test_errors.py` holds the table against the trees.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE

from vmm_adapters.errors import AdapterError
from vmm_server import errors
from vmm_server.api.body import max_body_bytes
from vmm_server.logs import request_id, without_words
from vmm_server.request_note import note

logger = logging.getLogger(__name__)

Body = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """How an error is answered: in each dialect its status decides the rest of the body."""

    status: int
    retry: bool = False
    """The same request may succeed later. Clients try every status from 500 on again unless they are told not to."""
    retry_after_s: int | None = None
    """When the error itself does not say."""


ANSWERS: Mapping[type[Exception], Answer] = {
    errors.InvalidRequest: Answer(400),
    errors.Unauthenticated: Answer(401),
    errors.PermissionDenied: Answer(403),
    errors.RateLimited: Answer(429, retry=True),
    errors.HostNotAllowed: Answer(403),
    errors.OriginNotAllowed: Answer(403),
    errors.ModelNotFound: Answer(404),
    errors.ModelArriving: Answer(503, retry=True, retry_after_s=5),
    errors.BlobNotFound: Answer(404),
    errors.ResponseNotFound: Answer(404),
    errors.FileNotFound: Answer(404),
    errors.BatchNotFound: Answer(404),
    errors.RequestCancelled: Answer(499),
    errors.Overloaded: Answer(503, retry=True),
    errors.DeadlineExceeded: Answer(504),
    errors.ShuttingDown: Answer(503, retry=True, retry_after_s=5),
    errors.SourceError: Answer(502, retry=True),
    errors.DigestMismatch: Answer(502),  # the next gigabytes would not match either
    errors.SourceNotFound: Answer(404),
    errors.StoreError: Answer(507),
    errors.ImportFailed: Answer(500),
    errors.ModelLoadFailed: Answer(500),
    errors.LoadTimeout: Answer(503, retry=True, retry_after_s=5),
    errors.ModelReplaced: Answer(503, retry=True, retry_after_s=1),
    errors.GenerationFailed: Answer(500, retry=True),
    errors.SettingsError: Answer(500),
    errors.VMMError: Answer(500),
    AdapterError: Answer(500),
}
"""The answer to each error, and to its subclasses that have none of their own."""

OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = OPENAI_TYPES | {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
"""`error.type` of a status; others are `invalid_request_error` below 500 and `api_error` from there on."""

MAX_TEXT = 4000
"""Characters of a message or a hint."""

RETRIED_BY_CLIENTS = (408, 409, 429)
"""What they try again unasked, beside everything from 500 on."""


def answer_to(error: Exception) -> Answer:
    """The row of an error; 500 for one that is not ours."""
    if isinstance(error, HTTPException):
        return Answer(error.status_code, retry=error.status_code in RETRIED_BY_CLIENTS)
    return next((ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS), Answer(500))


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for one that is not ours."""
    return answer_to(error).status


def message_of(error: BaseException) -> str:
    """What the client may read. An error that is not ours says nothing of our insides."""
    if isinstance(error, errors.VMMError | AdapterError):
        return bounded(error.message)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return bounded(error.detail)
    return "internal server error"


def bounded(text: str) -> str:
    """A client that sent megabytes as a name does not get them back."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"


def headers_of(error: Exception) -> dict[str, str]:
    """`x-should-retry`, which OpenAI's and Anthropic's clients obey, and `Retry-After` where a pause is known."""
    answer = answer_to(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    pause_s = getattr(error, "retry_after_s", answer.retry_after_s)
    if pause_s is not None:
        headers["retry-after"] = str(pause_s)
    if answer.status == 401:
        headers["www-authenticate"] = "Bearer"  # RFC 9110, 15.5.2
    return headers | {"x-should-retry": "true" if answer.retry else "false"}


def openai_body(error: Exception) -> Body:
    """`{"error": {"message", "type", "param", "code"}}`; `hint` beside them where there is one."""
    inner: dict[str, object] = {
        "message": message_of(error),
        "type": _type_of(error, OPENAI_TYPES),
        "param": bounded(error.param) if isinstance(error, errors.VMMError) and error.param else None,
        "code": getattr(error, "code", None),
    }
    return {"error": inner | _hint(error)}


def ollama_body(error: Exception) -> Body:
    """`{"error": "<text>"}`; `hint` beside it where there is one."""
    return {"error": message_of(error)} | _hint(error)


def anthropic_body(error: Exception) -> Body:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`; `hint` beside the message where there is one."""
    message = message_of(error)
    if isinstance(error, errors.ContextLengthExceeded):  # Anthropic has no code: its clients look for these words
        message = f"prompt is too long: {error.asked} tokens > {error.limit} maximum"
    inner: dict[str, object] = {"type": _type_of(error, ANTHROPIC_TYPES), "message": message}
    if isinstance(error, errors.UnsupportedParameter) and error.param == "thread":
        # told so, their tool runner goes on without: it sends the whole conversation each time
        inner["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": inner | _hint(error), "request_id": request_id.get()}


def _type_of(error: Exception, types: Mapping[int, str]) -> str:
    status = status_of(error)
    return types.get(status, "invalid_request_error" if status < 500 else "api_error")


def _hint(error: Exception) -> dict[str, object]:
    hint = getattr(error, "hint", None)
    return {"hint": bounded(hint)} if hint else {}


FAMILIES: tuple[tuple[str, Callable[[Exception], Body]], ...] = (
    ("/v1/messages", anthropic_body),
    ("/v1", openai_body),
    ("/v2/rerank", openai_body),
    ("/rerank", openai_body),
    ("/tokenize", openai_body),
    ("/detokenize", openai_body),
    ("/apply-template", openai_body),
    ("/api", ollama_body),
)
_DIALECTS: Mapping[Callable[[Exception], Body], str] = {
    openai_body: "openai",
    ollama_body: "ollama",
    anthropic_body: "anthropic",
}


def body_for(path: str) -> Callable[[Exception], Body] | None:
    """How the routes under `path` word their errors; `None` where no dialect is spoken."""
    return next((body for root, body in FAMILIES if path == root or path.startswith(f"{root}/")), None)


def family_of(path: str) -> str:
    """The dialect of a route; empty where none is spoken."""
    if path.startswith("/api/vmm/"):
        return "vmm"
    word = body_for(path)
    return "" if word is None else _DIALECTS[word]


def report(error: Exception) -> None:
    """Count an error that is answered, and log what an operator must know: our own failures with their traceback, not
    the client's mistakes."""
    if (noted := note.get()) is not None:
        noted.answered(error)
    if status_of(error) < 500 or isinstance(error, errors.Overloaded | errors.DeadlineExceeded | errors.ShuttingDown):
        return
    if isinstance(error, errors.VMMError | AdapterError):
        logger.error("%s: %s", type(error).__name__, message_of(error), exc_info=error.__cause__)
    else:  # nobody knows what its words quote
        logger.error("unexpected: %s", without_words(error))


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an exception in the words of the dialect that the path belongs to."""
    report(error)
    shown = _route_error(request, error)
    text, media_type = worded(request.url.path, shown)
    return Response(text, status_code=status_of(shown), headers=headers_of(shown), media_type=media_type)


def worded(path: str, error: Exception) -> tuple[bytes, str]:
    """The body of an error on a route, and its media type."""
    if (word := body_for(path)) is None:
        return message_of(error).encode(), "text/plain"
    return msgspec.json.encode(word(error)), "application/json"


def _route_error(request: Request[Any, Any, Any], error: Exception) -> Exception:
    """Say which path, method or limit it is about; the framework's own words are only the status's name."""
    path = request.url.path
    if isinstance(error, MethodNotAllowedException):
        return MethodNotAllowedException(f"method {request.method} not allowed for {path}", headers=error.headers)
    if isinstance(error, NotFoundException):
        return NotFoundException("404 page not found" if body_for(path) is None else f"no route {path}")
    if status_of(error) == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
        limit = f"{max_body_bytes(request) / 2**20:g} MiB (setting max_body_size)"
        return HTTPException(status_code=413, detail=f"the request body is larger than the limit of {limit}")
    return error
