"""Traces over the wire: a collector of our own, which speaks OTLP over HTTP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.api.conftest import LiveServer, StartServer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}


class Collector(ThreadingHTTPServer):
    """Keeps every span that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.spans: list[Any] = []
        self.resources: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        sent = ExportTraceServiceRequest.FromString(body)
        self.server.paths.append(self.path)
        for of_resource in sent.resource_spans:
            self.server.resources.append(of_resource.resource)
            self.server.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        value = getattr(item.value, item.value.WhichOneof("value"))
        found[item.key] = [each.string_value for each in value.values] if hasattr(value, "values") else value
    return found


def stopped(server: LiveServer, collector: Collector) -> dict[str, Any]:
    """What was sent by the time that the server has stopped."""
    server.uvicorn.should_exit = True
    server.join()
    return {span.name: span for span in collector.spans}


def test_a_request_is_exported(start_server: StartServer, collector: Collector) -> None:
    server = start_server({"otlp_endpoint": collector.url})
    given = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
    with server.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}, headers=given) as answer:
        answer.read()
    server.client.get("/metrics")
    spans = stopped(server, collector)
    assert set(collector.paths) == {"/v1/traces"}
    request = spans.pop("chat echo:latest")
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == SPAN
    assert request.kind == 2  # SPAN_KIND_SERVER
    told = attributes(request)
    assert told["http.route"] == "/v1/chat/completions"
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.usage.output_tokens"] == len("Hello") + 1
    assert told["vmm.request.id"] == "mine"
    assert set(spans) == {"load", "prepare", "queue", "prefill", "decode"}
    for span in spans.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    names = {item.key: item.value.string_value for item in collector.resources[0].attributes}
    assert names["service.name"] == "vmm"


def test_an_error_is_exported(start_server: StartServer, collector: Collector) -> None:
    server = start_server({"otlp_endpoint": collector.url})
    assert server.client.post("/v1/chat/completions", json=CHAT | {"model": "nobody"}).status_code == 404
    (span,) = stopped(server, collector).values()
    assert span.name == "POST /v1/chat/completions"
    assert attributes(span)["error.type"] == "ModelNotFound"


def test_a_collector_that_is_not_there_is_in_nobodys_way(start_server: StartServer) -> None:
    server = start_server({"otlp_endpoint": "http://127.0.0.1:9", "shutdown_timeout_s": 1})
    for _ in range(3):
        server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
