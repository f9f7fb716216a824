"""Spans of requests, in an exporter that keeps them."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from vmm_server.engine.stream import Usage
from vmm_server.errors import GenerationFailed, InvalidRequest, ModelLoadFailed, RequestCancelled
from vmm_server.models.registry import Registry
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.observed import Observed
from vmm_server.otlp import OTLPTracer, phases, url_of
from vmm_server.tracing import Answered

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOW_NS = 1_000_000_000_000
OK = Answered("POST", "/v1/chat/completions", 200, "req-1", "key-7", None)
USAGE = Usage(
    num_prompt_tokens=7, num_cached_tokens=3, num_generated_tokens=5, queued_s=1.0, prefill_s=2.0, decode_s=4.0
)


@pytest.fixture
def echo(installed: Any, settings: Any) -> InstalledModel:
    installed()
    return Registry(Store(settings().store_dir), ()).resolve("echo")


@pytest.fixture
def done(echo: InstalledModel) -> Observed:
    """A chat that waited for a load and for others: 10 to 20 s on the clock."""
    return Observed(
        operation="chat",
        model=replace(echo, name="m:1b@v2"),
        began_at=10.0,
        ended_at=20.0,
        placement=Placement("cpu", "CPU", "int4"),
        load_s=0.5,
        leased_at=11.0,
        submitted_at=12.0,
        queued_s=1.0,
        first_token_at=15.0,
        usage=USAGE,
        num_input_tokens=7,
        num_output_tokens=5,
        finish_reason="stop",
    )


class Kept:
    """A tracer whose clock stands at 20 s, and what it has sent."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = OTLPTracer(
            "http://localhost:1", exporter=exporter or self.exporter, clock=lambda: 20.0, now_ns=lambda: NOW_NS
        )

    def spans(self) -> dict[str, ReadableSpan]:
        asyncio.run(self.tracer.aclose(10))
        return {span.name: span for span in self.exporter.get_finished_spans()}


def test_a_request_and_its_phases(done: Observed) -> None:
    kept = Kept()
    trace = kept.tracer.begin("POST", [])
    trace.observed(done)
    trace.end(OK)
    spans = kept.spans()
    request = spans.pop("chat m:1b@v2")
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert request.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vmm",
        "gen_ai.request.model": "m:1b",
        "gen_ai.response.model": "m:1b@v2",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 5.0,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "vmm.backend": "cpu",
        "vmm.device": "CPU",
        "vmm.variant": "int4",
        "vmm.key.id": "key-7",
        "vmm.request.id": "req-1",
    }
    times = {}
    for name, span in spans.items():
        assert span.parent is not None
        assert span.context is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.parent.span_id == request.get_span_context().span_id  # type: ignore[union-attr]
        times[name] = ((span.start_time - NOW_NS) / 1e9 + 20, (span.end_time - NOW_NS) / 1e9 + 20)
    assert times == {
        "load": (10.5, 11.0),
        "prepare": (11.0, 12.0),
        "queue": (12.0, 13.0),
        "prefill": (13.0, 15.0),
        "decode": (15.0, 19.0),
    }


def test_times_stay_in_order_when_the_systems_time_is_set(done: Observed) -> None:
    exporter = InMemorySpanExporter()
    seconds, nanoseconds = 10.0, NOW_NS
    tracer = OTLPTracer("http://localhost:1", exporter=exporter, clock=lambda: seconds, now_ns=lambda: nanoseconds)
    trace = tracer.begin("POST", [])
    seconds, nanoseconds = 20.5, NOW_NS - 3_600 * 10**9
    trace.observed(done)
    trace.end(OK)
    asyncio.run(tracer.aclose(10))
    times = {
        span.name: ((span.start_time or 0) - NOW_NS, (span.end_time or 0) - NOW_NS)
        for span in exporter.get_finished_spans()
    }
    assert times["chat m:1b@v2"] == (0, 10_500_000_000)
    assert times["load"] == (500_000_000, 1_000_000_000)
    assert times["decode"] == (5_000_000_000, 9_000_000_000)


def test_what_several_models_did_is_added_up(done: Observed) -> None:
    kept = Kept()
    trace = kept.tracer.begin("POST", [])
    trace.observed(done)
    trace.observed(replace(done, finish_reason="length", num_output_tokens=2))
    trace.end(OK)
    attributes = kept.spans()["chat m:1b@v2"].attributes
    assert attributes is not None
    assert attributes["gen_ai.usage.input_tokens"] == 14
    assert attributes["gen_ai.usage.output_tokens"] == 7
    assert attributes["gen_ai.response.finish_reasons"] == ("stop", "length")


def test_an_error_is_told_without_its_words(done: Observed) -> None:
    kept = Kept()
    trace = kept.tracer.begin("POST", [])
    failed = replace(done, error=GenerationFailed("a secret prompt"), usage=None, finish_reason=None)
    trace.observed(failed)
    trace.end(replace(OK, error_type="GenerationFailed"))  # in the middle of a stream
    span = kept.spans()["chat m:1b@v2"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "GenerationFailed"
    (event,) = span.events
    assert event.name == "exception"
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(("status", "code"), [(404, StatusCode.UNSET), (503, StatusCode.ERROR)])
def test_a_request_that_no_model_saw(status: int, code: StatusCode) -> None:
    kept = Kept()
    kept.tracer.begin("GET", []).end(Answered("GET", "/v1/models", status, "r", "", "ModelNotFound"))
    span = kept.spans()["GET /v1/models"]
    assert span.status.status_code is code
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ModelNotFound"


def test_what_is_the_clients_fault_is_no_error_of_ours(done: Observed) -> None:
    kept = Kept()
    trace = kept.tracer.begin("POST", [])
    trace.observed(replace(done, error=InvalidRequest("x"), usage=None, finish_reason=None))
    trace.end(replace(OK, status=400, error_type="InvalidRequest"))
    span = kept.spans()["chat m:1b@v2"]
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["error.type"] == "InvalidRequest"


def test_a_callers_trace_is_gone_on_with() -> None:
    kept = Kept()
    given = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", b"congo=t61rcWkgMzE")]
    trace = kept.tracer.begin("GET", given)
    assert trace.trace_id == TRACE
    trace.end(Answered("GET", "/x", 200, "r", "", None))
    span = kept.spans()["GET /x"]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.context is not None
    assert span.context.trace_state["congo"] == "t61rcWkgMzE"


def test_a_request_within_another_one_is_part_of_its_trace() -> None:
    kept = Kept()
    outer = kept.tracer.begin("GET", [])
    inner = kept.tracer.begin("POST", [], outer)
    other = kept.tracer.begin("POST", [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())], outer)
    assert inner.trace_id == outer.trace_id
    assert other.trace_id == TRACE
    inner.end(Answered("POST", "/inner", 200, "r", "", None))
    outer.end(Answered("GET", "/outer", 200, "r", "", None))
    spans = kept.spans()
    assert spans["POST /inner"].parent == spans["GET /outer"].context


def test_a_caller_that_does_not_sample_is_obeyed(done: Observed) -> None:
    kept = Kept()
    trace = kept.tracer.begin("GET", [(b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())])
    trace.observed(done)
    trace.end(OK)
    assert trace.trace_id == TRACE
    assert not kept.spans()


def test_phases_of_what_ended_early(done: Observed) -> None:
    cold = replace(done, leased_at=None, submitted_at=None, queued_s=None, usage=None, error=ModelLoadFailed("x"))
    assert [name for name, _, _ in phases(cold)] == ["load"]
    waiting = replace(done, queued_s=None, usage=None)
    assert list(phases(waiting))[-1] == ("queue", 12.0, 20.0)
    left_in_prefill = replace(done, usage=None, first_token_at=None, error=RequestCancelled())
    assert list(phases(left_in_prefill))[-1] == ("prefill", 13.0, 20.0)
    left_in_decode = replace(done, usage=None, error=RequestCancelled())
    assert list(phases(left_in_decode))[-2:] == [("prefill", 13.0, 15.0), ("decode", 15.0, 20.0)]
    text = replace(done, operation="embeddings", usage=None, first_token_at=None)
    whole = replace(text, submitted_at=11.0, load_s=0.0)
    assert list(phases(whole)) == [("queue", 11.0, 12.0), ("compute", 12.0, 20.0)]
    refused = replace(done, usage=None, submitted_at=11.0, queued_s=None, load_s=0.0)
    assert not list(phases(refused))


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp", "https://c/otlp/v1/traces"),
        ("http://c/v1/traces", "http://c/v1/traces"),
    ],
)
def test_where_traces_go(endpoint: str, url: str) -> None:
    assert url_of(endpoint) == url


class Unreachable(SpanExporter):
    """A collector that is gone until it is said to be there."""

    def __init__(self) -> None:
        self.is_there = False
        self.num_tries = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_tries += 1
        return SpanExportResult.SUCCESS if self.is_there else SpanExportResult.FAILURE


def test_a_collector_that_is_gone_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Unreachable()
    tracer = Kept(exporter).tracer
    with caplog.at_level(logging.INFO, logger="vmm_server"):
        for is_there in (False, False, True, False):
            exporter.is_there = is_there
            tracer.begin("GET", []).end(Answered("GET", "", 200, "r", "", None))
            tracer._provider.force_flush()
    asyncio.run(tracer.aclose(10))
    told = [record.levelname for record in caplog.records]
    assert exporter.num_tries == 4
    assert told == ["WARNING", "INFO", "WARNING"]


def test_a_collector_that_hangs_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            release.wait(30)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            release.set()

    tracer = Kept(Hanging()).tracer
    tracer.begin("GET", []).end(Answered("GET", "", 200, "r", "", None))
    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(tracer.aclose(0.05), 5))
    assert "could not be sent" in caplog.text
    assert release.is_set()
