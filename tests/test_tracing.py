"""The trace that a caller says its request belongs to, and who exports traces."""

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import SettingsError
from vmm_server.tracing import NoTracer, callers_trace_id, make_tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def headers(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"traceparent", value.encode()) for value in values)]


@pytest.mark.parametrize(
    ("value", "trace_id"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", TRACE),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE}-{SPAN}", ""),
        ("", ""),
    ],
)
def test_a_callers_trace(value: str, trace_id: str) -> None:
    assert callers_trace_id(headers(value)) == trace_id


def test_two_of_them_are_none() -> None:
    assert callers_trace_id(headers(*[f"00-{TRACE}-{SPAN}-01"] * 2)) == ""


@given(st.binary(max_size=80))
def test_whatever_is_sent_is_a_trace_or_none(value: bytes) -> None:
    assert len(callers_trace_id([(b"traceparent", value)])) in (0, 32)


def test_nothing_is_exported_unless_asked_for() -> None:
    tracer = make_tracer("")
    assert isinstance(tracer, NoTracer)
    trace = tracer.begin("GET", headers(f"00-{TRACE}-{SPAN}-01"))
    assert trace.trace_id == TRACE
    assert tracer.begin("POST", headers(), trace).trace_id == TRACE


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "http://", "http:// x"])
def test_a_collector_has_an_address(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint") as caught:
        make_tracer(endpoint)
    assert caught.value.param == "otlp_endpoint"


def test_traces_need_their_extra() -> None:
    def load(name: str) -> ModuleType:
        raise ModuleNotFoundError(name="opentelemetry.sdk")

    with pytest.raises(SettingsError, match=r"the extra otlp; opentelemetry\.sdk is not here") as caught:
        make_tracer("http://localhost:4318", load=load)
    assert caught.value.hint == 'pip install "vmm-server[otlp]"'
