"""Traces by OpenTelemetry's SDK, sent to a collector over HTTP (OTLP); needs the extra `otlp`.

A request is one span of the server's kind, its parent what `traceparent` says, whose decision to sample is obeyed. Its
phases are spans below it: load, queue, prefill, decode, or compute. All of them are made when a model is done, with
the times that are known then. A thread of the SDK's own sends them, from a queue that is bounded: no request waits for
a collector, and one that cannot be reached is told of once.

Names are those of OpenTelemetry's semantic conventions: `gen_ai.*`, `http.*`, `error.type`; `vmm.*` is what they lack.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace import Tracer as SDKTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from vmm_server import __version__
from vmm_server.observed import Observed
from vmm_server.tracing import Answered, Headers, Trace

logger = logging.getLogger(__name__)

_PATH = "/v1/traces"
_CARRIED = (b"traceparent", b"tracestate")
Phase = tuple[str, float, float]
"""Its name, and when it began and ended, on the clock of `Observed`."""


class OTLPTracer:
    """See `tracing.Tracer`."""

    def __init__(
        self,
        endpoint: str,
        *,
        exporter: SpanExporter | None = None,
        clock: Callable[[], float] = time.perf_counter,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`endpoint` is a collector's address, `/v1/traces` being added to it; `clock` the one of `Observed`.

        What else the SDK reads of its variables holds too: `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, ...
        """
        name = os.environ.get("OTEL_SERVICE_NAME", "vmm")
        resource = Resource.create({"service.name": name, "service.version": __version__})
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would tell of each try
        self._exporter = _TellingOnce(exporter or OTLPSpanExporter(endpoint=url_of(endpoint)), endpoint)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("vmm", __version__)
        self._clock = clock
        self._now_ns = now_ns

    def begin(self, method: str, headers: Headers, within: Trace | None = None) -> "OTLPTrace":
        """See `tracing.Tracer`."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CARRIED}
        around = within.context if isinstance(within, OTLPTrace) else Context()
        parent = TraceContextTextMapPropagator().extract(carrier, context=around)
        wall_time = _WallTime(self._clock, self._clock(), self._now_ns())
        span = self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER, start_time=wall_time.now_ns)
        return OTLPTrace(self._tracer, span, wall_time)

    async def aclose(self, timeout_s: float) -> None:
        """See `tracing.Tracer`. The SDK's own end may take longer: it is left to a thread that nobody waits for."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # nobody waits any more
                return

        threading.Thread(target=end, name="vmm-traces-end", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), timeout_s)
        except TimeoutError:
            self._exporter.shutdown()
            logger.warning("traces that were left could not be sent in %g s", timeout_s)


@dataclass(frozen=True, slots=True)
class _WallTime:
    """Times on the clock of `Observed`, in nanoseconds since the epoch. Both clocks are read once a request, so that
    its spans stay in order, and as long as they were, when the system's time is set or the thread is held up."""

    clock: Callable[[], float]
    read_at: float
    """On `clock`."""
    now_ns: int
    """What it was then."""

    def at(self, at: float) -> int:
        """`at` on `clock`."""
        return self.now_ns + round(1e9 * (at - self.read_at))

    def now(self) -> int:
        """What it is."""
        return self.at(self.clock())


class OTLPTrace:
    """See `tracing.Trace`."""

    def __init__(self, tracer: SDKTracer, span: Span, wall_time: _WallTime) -> None:
        self._tracer = tracer
        self._span = span
        self._wall_time = wall_time
        self._name = ""
        self._finish_reasons: list[str] = []
        self._num_input_tokens = self._num_output_tokens = 0

    @property
    def trace_id(self) -> str:
        """See `tracing.Trace`."""
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def context(self) -> Context:
        """What spans below it have as their context."""
        return set_span_in_context(self._span, Context())

    def observed(self, observed: Observed) -> None:
        """See `tracing.Trace`."""
        if not self._span.is_recording():
            return
        self._name = self._name or f"{observed.operation} {observed.model.name}"
        self._finish_reasons += [observed.finish_reason] if observed.finish_reason else []
        self._num_input_tokens += observed.num_input_tokens or 0
        self._num_output_tokens += observed.num_output_tokens or 0
        self._span.set_attributes(_attributes(observed))
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._num_input_tokens,
                "gen_ai.usage.output_tokens": self._num_output_tokens,
                "gen_ai.response.finish_reasons": self._finish_reasons,
            }
        )
        context = self.context
        for name, began_at, ended_at in phases(observed):
            child = self._tracer.start_span(name, context=context, start_time=self._wall_time.at(began_at))
            child.end(self._wall_time.at(ended_at))
        if observed.error is not None:
            self._span.add_event(
                "exception",
                {"exception.type": type(observed.error).__qualname__},  # its words may quote what the client sent
                self._wall_time.at(observed.ended_at),
            )
            self._span.set_attribute("error.type", type(observed.error).__name__)

    def end(self, answered: Answered) -> None:
        """See `tracing.Trace`."""
        route = f"{answered.method} {answered.route}".strip()
        self._span.update_name(self._name or route)
        attributes: dict[str, AttributeValue] = {
            "http.request.method": answered.method,
            "http.response.status_code": answered.status,
            "vmm.request.id": answered.request_id,
        }
        if answered.route:
            attributes["http.route"] = answered.route
        if answered.tenant:
            attributes["vmm.key.id"] = answered.tenant
        self._span.set_attributes(attributes)
        if answered.error_type is not None:
            self._span.set_attribute("error.type", answered.error_type)
        # HTTP conventions: what is the client's fault is no error of the server; one in the middle of a stream is
        if answered.status >= 500 or (answered.status < 400 and answered.error_type is not None):
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._wall_time.now())


class _TellingOnce(SpanExporter):
    """An exporter that says once that it does not get through, and once that it does again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._has_failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._has_failed:
            logger.warning("traces cannot be sent to %s; they are dropped until that works again", self._endpoint)
        elif self._has_failed and not failed:
            logger.info("traces are sent to %s again", self._endpoint)
        self._has_failed = failed
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See `SpanExporter`."""
        return self._exporter.force_flush(timeout_millis)


def url_of(endpoint: str) -> str:
    """Where traces go: the address with `/v1/traces`, unless that is said already (OTLP's exporter, "Endpoint URLs for
    OTLP/HTTP")."""
    base = endpoint.rstrip("/")
    return base if base.endswith(_PATH) else base + _PATH


def phases(observed: Observed) -> Iterator[Phase]:
    """What a request went through, as far as it got."""
    leased_at, submitted_at, usage = observed.leased_at, observed.submitted_at, observed.usage
    if leased_at is None:
        yield "load", observed.began_at, observed.ended_at
        return
    if observed.load_s:
        yield "load", leased_at - observed.load_s, leased_at
    if submitted_at is None or (submitted_at == leased_at and observed.queued_s is None and usage is None):
        return
    if submitted_at > leased_at:
        yield "prepare", leased_at, submitted_at
    if observed.queued_s is None:
        yield "queue", submitted_at, observed.ended_at
        return
    started_at = submitted_at + observed.queued_s
    yield "queue", submitted_at, started_at
    draws = observed.operation in ("chat", "text_completion")
    if (first_token_at := observed.first_token_at) is None:
        yield "prefill" if draws else "compute", started_at, observed.ended_at
        return
    yield "prefill", started_at, first_token_at
    yield "decode", first_token_at, observed.ended_at if usage is None else first_token_at + usage.decode_s


def _attributes(observed: Observed) -> dict[str, AttributeValue]:
    name = observed.model.name
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": observed.operation,
        "gen_ai.provider.name": "vmm",
        "gen_ai.request.model": name.partition("@")[0],
        "gen_ai.response.model": name,
    }
    if observed.placement is not None:
        attributes |= {"vmm.backend": observed.placement.adapter, "vmm.device": observed.placement.device}
        if observed.placement.variant:
            attributes["vmm.variant"] = observed.placement.variant
    if observed.usage is not None:
        attributes["gen_ai.usage.cache_read.input_tokens"] = observed.usage.num_cached_tokens
        if (first_at := observed.first_token_at) is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = first_at - observed.began_at
    return attributes
