"""Traces of requests, where they are exported; and the trace that a caller says its request belongs to.

Whoever exports them is chosen at the start: `NoTracer`, or `otlp.OTLPTracer` with the extra `otlp`. A `Trace` is of
one request of a client, and is told of what models did for it when that is over.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

from vmm_server.errors import SettingsError
from vmm_server.observed import Observed

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names are in lower case."""

_ADDRESS = re.compile(r"https?://[^\s/]+", re.IGNORECASE)
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a client's request."""

    method: str
    route: str
    """The template of its path; empty where there is none."""
    status: int
    request_id: str
    tenant: str
    error_type: str | None
    """The class of the error that was answered, if one was."""


class Trace(Protocol):
    """Of one request."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty where the request belongs to none."""
        ...

    def observed(self, observed: Observed) -> None:
        """A model is done with it."""
        ...

    def end(self, answered: Answered) -> None:
        """It is over."""
        ...


class Tracer(Protocol):
    """Begins traces, and sends them somewhere."""

    def begin(self, method: str, headers: Headers, within: Trace | None = None) -> Trace:
        """A request has come; if its headers say nothing, it is part of what is done `within` another one."""
        ...

    async def aclose(self, timeout_s: float) -> None:
        """Send what is left, in so much time at most."""
        ...


@dataclass(frozen=True, slots=True)
class CallersTrace:
    """Goes nowhere; what is known of it is what the caller said."""

    trace_id: str = ""

    def observed(self, observed: Observed) -> None:
        """See `Trace`."""

    def end(self, answered: Answered) -> None:
        """See `Trace`."""


class NoTracer:
    """Exports nothing."""

    def begin(self, method: str, headers: Headers, within: Trace | None = None) -> CallersTrace:
        """See `Tracer`."""
        return CallersTrace(callers_trace_id(headers) or (within.trace_id if within else ""))

    async def aclose(self, timeout_s: float) -> None:
        """See `Tracer`."""


def callers_trace_id(headers: Headers) -> str:
    """Of a `traceparent` header (W3C Trace Context, level 1, section 3.2); empty where there is none, or more than one,
    or it is none."""
    found = [value.strip() for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(found[0]) if len(found) == 1 else None
    if match is None or (found[0].startswith(b"00-") and len(found[0]) != 55):
        return ""
    return match[1].decode()


def make_tracer(endpoint: str, *, load: Callable[[str], ModuleType] = importlib.import_module) -> Tracer:
    """What exports traces to a collector's address; nothing, if that is empty. `load` imports the module that does.

    Raises `SettingsError`.
    """
    if not endpoint:
        return NoTracer()
    if not _ADDRESS.match(endpoint):
        raise SettingsError(
            f"setting otlp_endpoint: {endpoint!r} is no address",
            param="otlp_endpoint",
            hint="write it as http://localhost:4318",
        )
    try:
        otlp = load("vmm_server.otlp")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"setting otlp_endpoint: traces need the extra otlp; {error.name} is not here",
            param="otlp_endpoint",
            hint='pip install "vmm-server[otlp]"',
        ) from error
    return cast(Tracer, otlp.OTLPTracer(endpoint))
