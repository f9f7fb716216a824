"""Around every request: its id on the response and on every line written while answering, its trace, its figures, and
one line in the log when it is over."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote

from litestar.types import Message

from vmm_server.api.aliases import meant_by
from vmm_server.api.errors import family_of
from vmm_server.callers import caller
from vmm_server.logs import request_id
from vmm_server.metrics.requests import RequestFigures
from vmm_server.request_note import RequestNote, note
from vmm_server.tracing import Answered, NoTracer, Tracer

logger = logging.getLogger(__name__)

HEADER = b"x-request-id"
ANTHROPIC_HEADER = b"request-id"
"""What Anthropic's clients look for, on their routes."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROBES = ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics")
_CLIENT_LEFT = 499
_SWITCHED = 101
_STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
"""Messages with the headers of the answer."""
_MAX_PATH = 200


class RequestLog:
    """What is noted of every connection of one server."""

    def __init__(
        self, figures: RequestFigures, tracer: Tracer | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._figures = figures
        self._tracer = tracer or NoTracer()
        self._probes_tracer = NoTracer()
        self._clock = clock

    async def __call__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any
    ) -> None:
        """Run one ASGI connection. The client's own `x-request-id` is kept when it is short and plain."""
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        chosen, path = _request_id(scope["headers"]), scope["path"]
        method = scope.get("method", "GET")
        names = (HEADER, ANTHROPIC_HEADER) if path.startswith("/v1/messages") else (HEADER,)
        status, started = _CLIENT_LEFT, self._clock()
        tracer = self._probes_tracer if path in _PROBES else self._tracer
        around = note.get()
        trace = tracer.begin(method, scope["headers"], around.trace if around else None)
        noted = RequestNote(trace, lambda error_type: self._figures.error(error_type, family_of(meant_by(path))))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                start: Any = message
                status = start.get("status", _SWITCHED)
                start["headers"] = [*start.get("headers", ()), *((name, chosen.encode()) for name in names)]
                noted.tenant = noted.tenant or caller.get().tenant
            await send(message)

        tokens = request_id.set(chosen), note.set(noted)
        self._figures.http_began(method)
        try:
            await app(scope, receive, send_with_id)
        finally:
            took_s = self._clock() - started
            self._figures.http_ended(method, noted.route, status, took_s)
            noted.trace.end(Answered(method, noted.route, status, chosen, noted.tenant, noted.error_type))
            _write_line(noted, method, path, status, took_s)
            request_id.reset(tokens[0])
            note.reset(tokens[1])


async def noting_route(app: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any) -> None:
    """Run one ASGI connection on the router itself, and note which route it took."""
    noted = note.get()
    try:
        await app(scope, receive, send)
    finally:
        if noted is not None:
            noted.route = scope.get("path_template", "")


def _write_line(noted: RequestNote, method: str, path: str, status: int, took_s: float) -> None:
    level = logging.DEBUG if path in _PROBES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    path = quote(path[:_MAX_PATH], safe="/:@")  # no line break of a client's gets into the log
    fields: dict[str, object] = {
        "method": method,
        "path": path,
        "route": noted.route,
        "status": status,
        "duration_ms": round(1e3 * took_s, 1),
        "tenant": noted.tenant,
        "error": noted.error_type,
    }
    words = ""
    if noted.model:
        fields["model"] = noted.model
        fields["input_tokens"], fields["output_tokens"] = noted.num_input_tokens, noted.num_output_tokens
        words = f" {noted.model} {noted.num_input_tokens}+{noted.num_output_tokens} tokens"
    shown = {name: value for name, value in fields.items() if value not in ("", None)}
    logger.log(level, "%s %s %d %.1f ms%s", method, path, status, 1e3 * took_s, words, extra={"fields": shown})


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == HEADER and _SANE_ID.fullmatch(value):
            return value.decode()
    return f"req-{secrets.token_hex(8)}"
