"""What is noted of every request: its line in the log, its figures, and nothing of what it says."""

import asyncio
import base64
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from typing import Any

import pytest
from PIL import Image
from tests.api.conftest import LiveServer, StartServer
from tests.api.fake_audio import sound
from tests.api.fake_vision import png_of
from tests.api.test_metrics import figures

from vmm_adapters.echo import Gate
from vmm_adapters.types import Batch
from vmm_server.logs import HumanFormatter, JSONFormatter, RequestIdFilter

SECRET = "xylophone-quasar"
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Lines(logging.Handler):
    """Every line as both formats have it, with the record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.addFilter(RequestIdFilter())
        self.records: list[logging.LogRecord] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.text += [HumanFormatter().format(record), JSONFormatter().format(record)]

    def of_requests(self) -> list[dict[str, Any]]:
        mine = [record for record in self.records if record.name == "vmm_server.api.request_log"]
        return [json.loads(JSONFormatter().format(record)) for record in mine]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What our loggers say at the level debug."""
    kept, loggers = Lines(), [logging.getLogger(name) for name in ("vmm_server", "vmm_adapters")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(kept)
        each.setLevel(logging.DEBUG)
    yield kept
    for each, level in zip(loggers, levels, strict=True):
        each.removeHandler(kept)
        each.setLevel(level)


def settled(server: LiveServer) -> None:
    """Wait until every request is over: its line is written right after its answer."""

    async def over() -> None:
        while any(server.parts.metrics.figures().values["http_server_active_requests"].values()):  # noqa: ASYNC110
            await asyncio.sleep(0)

    server.run(over())


def test_the_line_of_a_request(live_server: LiveServer, lines: Lines) -> None:
    headers = {"x-request-id": "mine", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    live_server.client.post("/chat/completions", json=CHAT, headers=headers).raise_for_status()
    settled(live_server)
    (line,) = lines.of_requests()
    assert line.pop("duration_ms") > 0
    assert line.pop("time")
    words = line.pop("message").split(" ")
    assert (words[:3], words[4:]) == (["POST", "/chat/completions", "200"], ["ms", "echo:latest", "8+6", "tokens"])
    assert line == {
        "level": "info",
        "logger": "vmm_server.api.request_log",
        "request_id": "mine",
        "trace_id": TRACE,
        "method": "POST",
        "path": "/chat/completions",
        "route": "/v1/chat/completions",
        "status": 200,
        "model": "echo:latest",
        "input_tokens": 8,
        "output_tokens": 6,
    }


def test_the_line_of_an_error_names_its_class(live_server: LiveServer, lines: Lines) -> None:
    live_server.client.get("/v1/models/nobody")
    settled(live_server)
    (line,) = lines.of_requests()
    assert (line["status"], line["error"], line["route"]) == (404, "ModelNotFound", "/v1/models/{model_id}")


def test_probes_are_no_news(live_server: LiveServer, lines: Lines) -> None:
    live_server.client.get("/health/ready")
    settled(live_server)
    (line,) = lines.of_requests()
    assert line["level"] == "debug"


def test_a_line_of_the_engine_has_the_requests_id(start_server: StartServer, lines: Lines) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("no")

    server = start_server(gate=fail)
    server.client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    (line,) = [each for each in lines.records if each.name == "vmm_server.engine.worker"]
    assert line.request_id == "mine"  # type: ignore[attr-defined]


def test_whose_request_it_is(start_server: StartServer, lines: Lines) -> None:
    """By the key's id: of those that are refused too, and by the tenant's figures."""
    server = start_server()
    mine, secret = server.parts.keys.create("mine", scopes=("inference", "metrics"), requests_per_minute=1)
    server.client.headers["authorization"] = f"Bearer {secret}"
    statuses = [server.client.post("/v1/chat/completions", json=CHAT).status_code for _ in range(2)]
    settled(server)
    assert statuses == [200, 429]
    assert [line["tenant"] for line in lines.of_requests() if line["path"].startswith("/v1")] == [mine.id, mine.id]
    assert secret not in "\n".join(lines.text)
    found, tenant = figures(server), ("tenant", mine.id)
    assert found["vmm_tenant_requests_total"] == {(tenant,): 1}
    assert found["vmm_tenant_tokens_total"] == {(tenant,): 8 + 6}
    assert found["vmm_tenant_rejections_total"] == {(("reason", "requests_per_minute"), tenant): 1}


# What is counted


def since(server: LiveServer, ask: Callable[[], object]) -> dict[str, float]:
    """Series of errors and of HTTP requests that grew, by their labels."""
    before = figures(server)
    ask()
    settled(server)
    grown = {}
    for name in ("vmm_errors_total", "http_server_request_duration_seconds_count"):
        for labels, value in figures(server)[name].items():
            if dict(labels).get("http_route") != "/metrics" and value > before.get(name, {}).get(labels, 0):
                grown[" ".join(each for _, each in labels)] = value - before.get(name, {}).get(labels, 0)
    return grown


@pytest.mark.parametrize(
    ("method", "path", "body", "grown"),
    [
        ("POST", "/v1/chat/completions", CHAT, {"POST 200 /v1/chat/completions": 1}),
        ("POST", "/api/chat", CHAT | {"model": "x"}, {"POST 404 /api/chat": 1, "ModelNotFound ollama": 1}),
        ("POST", "/v1/messages", CHAT, {"POST 400 /v1/messages": 1, "InvalidRequest anthropic": 1}),
        ("POST", "/embeddings", {}, {"POST 400 /v1/embeddings": 1, "InvalidRequest openai": 1}),
        ("GET", f"/no/{SECRET}", None, {"GET 404 ": 1, "NotFoundException ": 1}),
        ("DELETE", "/v1/chat/completions", None, {"DELETE 405 ": 1, "MethodNotAllowedException openai": 1}),
    ],
)
def test_requests_and_errors_are_counted(
    live_server: LiveServer, method: str, path: str, body: Any, grown: dict[str, float]
) -> None:
    assert since(live_server, lambda: live_server.client.request(method, path, json=body)) == grown


def test_who_is_refused_at_the_door_is_counted(live_server: LiveServer) -> None:
    def ask() -> None:
        assert live_server.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403

    assert since(live_server, ask) == {"GET 403 ": 1, "HostNotAllowed openai": 1}


def test_an_error_in_the_middle_of_a_stream_is_counted(start_server: StartServer) -> None:
    steps = iter(range(100))

    def fail(batch: Batch) -> None:
        if next(steps) == 3:
            raise RuntimeError("no")

    server = start_server(gate=fail)

    def ask() -> None:
        answer = server.client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert answer.status_code == 200
        assert "error" in answer.text

    grown = {"POST 200 /v1/chat/completions": 1, "GenerationFailed openai": 1}
    assert since(server, ask) == grown
    labels = [dict(each) for each in figures(server)["gen_ai_server_request_duration_seconds_count"]]
    assert [each["error_type"] for each in labels] == ["GenerationFailed"]


def durations(server: LiveServer) -> Mapping[tuple[str, str], float]:
    """Requests to models by what they asked for, and what became of them."""
    told: Counter[tuple[str, str]] = Counter()  # of all models together
    for labels, number in figures(server).get("gen_ai_server_request_duration_seconds_count", {}).items():
        named = dict(labels)
        told[named["gen_ai_operation_name"], named["error_type"]] += number
    return told


def test_a_client_that_leaves_is_no_failure(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    connection = HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT))
    gate.wait_entered()
    connection.close()
    while not (found := durations(server)):
        pass
    gate.open()
    assert found == {("chat", "RequestCancelled"): 1}
    assert "vmm_errors_total" not in figures(server)


def test_what_is_refused_once_the_model_is_known(live_server: LiveServer) -> None:
    before = durations(live_server).get(("text_completion", "ContextLengthExceeded"), 0)
    body = {"model": "echo", "prompt": "a" * 600}
    assert live_server.client.post("/v1/completions", json=body).status_code == 400
    assert durations(live_server)["text_completion", "ContextLengthExceeded"] == before + 1


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/embeddings", {"model": "words", "input": "a"}, "embeddings"),
        ("/rerank", {"model": "pairs", "query": "a", "documents": ["b"]}, "rerank"),
        ("/v1/completions", {"model": "echo", "prompt": "a", "max_tokens": 1}, "text_completion"),
    ],
)
def test_every_kind_of_model_is_observed(encoder_server: LiveServer, path: str, body: Any, operation: str) -> None:
    before = durations(encoder_server).get((operation, ""), 0)
    encoder_server.client.post(path, json=body).raise_for_status()
    settled(encoder_server)
    assert durations(encoder_server)[operation, ""] == before + 1


def test_what_hears_and_what_looks_is_observed(audio_server: LiveServer, vision_server: LiveServer) -> None:
    files = {"file": ("speech.wav", sound(1))}
    fields = {"model": "whisper:tiny.en"}
    audio_server.client.post("/v1/audio/transcriptions", data=fields, files=files).raise_for_status()
    settled(audio_server)
    assert durations(audio_server)["transcription", ""] >= 1
    body = {"model": "detector", "image": base64.b64encode(png_of(Image.new("RGB", (8, 8)))).decode()}
    vision_server.client.post("/v1/vision/detect", json=body).raise_for_status()
    settled(vision_server)
    assert durations(vision_server)["detection", ""] >= 1


def test_counts_outlive_the_model(start_server: StartServer) -> None:
    server = start_server()
    server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    before = figures(server)
    server.client.post("/api/generate", json={"model": "echo", "keep_alive": 0}).raise_for_status()
    after = figures(server)
    (place,) = before["vmm_tokens_generated_total"]
    assert "vmm_requests_running" not in after
    for name in ("vmm_tokens_generated_total", "vmm_queue_seconds_count", "vmm_inter_token_seconds_sum"):
        assert after[name] == before[name], name
    assert after["vmm_unloads_total"] == {tuple(sorted({**dict(place), "reason": "asked"}.items())): 1}
    server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    assert figures(server)["vmm_tokens_generated_total"] == {place: 12}
    assert figures(server)["vmm_load_seconds_count"] == {place: 2}


# What is not told

IMAGE = {"type": "image_url", "image_url": {"url": f"https://{SECRET}.example/a.png"}}
AUDIO = base64.b64encode(SECRET.encode()).decode()
TALK = [{"role": "user", "content": SECRET}]
REQUESTS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"model": "echo", "messages": TALK}),
    ("/v1/chat/completions", {"model": "echo", "messages": TALK, "stream": True}),
    ("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": [IMAGE]}]}),
    ("/v1/chat/completions", {"model": "echo", "messages": SECRET}),
    ("/v1/chat/completions", {"model": "echo", "messages": TALK, "temperature": SECRET}),
    ("/v1/chat/completions", {"model": SECRET, "messages": TALK}),
    ("/v1/chat/completions", {"model": "echo", "messages": TALK, "response_format": {"type": SECRET}}),
    (
        "/v1/chat/completions",
        {
            "model": "echo",
            "messages": TALK,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": SECRET}}},
        },
    ),
    ("/v1/chat/completions", {"model": "echo", "messages": TALK * 200}),
    ("/v1/completions", {"model": "echo", "prompt": SECRET, "max_tokens": 5}),
    ("/v1/completions", {"model": "echo", "prompt": SECRET, "stop": [SECRET] * 100}),
    ("/v1/embeddings", {"model": "words", "input": SECRET}),
    ("/v1/embeddings", {"model": "words", "input": [SECRET, {}]}),
    ("/v1/responses", {"model": "echo", "input": SECRET}),
    ("/v1/responses", {"model": "echo", "input": [{"type": SECRET}]}),
    ("/v1/messages", {"model": "echo", "max_tokens": 5, "messages": TALK}),
    ("/v1/messages", {"model": "echo", "max_tokens": SECRET, "messages": TALK}),
    ("/v1/messages", {"model": "echo", "max_tokens": 5, "messages": TALK, "stream": True}),
    ("/rerank", {"model": "pairs", "query": SECRET, "documents": [SECRET]}),
    ("/rerank", {"model": "pairs", "query": SECRET, "documents": SECRET}),
    ("/tokenize", {"model": "echo", "prompt": SECRET}),
    ("/api/chat", {"model": "echo", "messages": TALK}),
    ("/api/chat", {"model": "echo", "messages": TALK, "options": {"temperature": SECRET}}),
    ("/api/chat", {"model": "echo", "messages": [{"role": "user", "content": "", "images": [AUDIO]}]}),
    ("/api/generate", {"model": "echo", "prompt": SECRET, "system": SECRET, "template": "{{ .Prompt " + SECRET}),
    ("/api/generate", {"model": "echo", "prompt": SECRET, "format": {"type": SECRET}}),
    ("/api/embed", {"model": "words", "input": SECRET}),
    ("/api/generate", SECRET),
    ("/v1/chat/completions", SECRET),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_nothing_of_a_request_is_in_the_log(encoder_server: LiveServer, lines: Lines, path: str, body: Any) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"authorization": f"Bearer {SECRET}", "x-api-key": SECRET, "cookie": SECRET, "user-agent": SECRET}
    answer = encoder_server.client.post(f"{path}?key={SECRET}", content=content, headers=headers)
    settled(encoder_server)
    assert answer.status_code < 500
    assert lines.of_requests()
    told = "\n".join(lines.text)
    assert SECRET not in told
    assert AUDIO not in told


def test_nothing_of_a_sound_is_in_the_log(audio_server: LiveServer, lines: Lines) -> None:
    for fields, content in (
        ({"model": "whisper:tiny.en", "prompt": SECRET}, sound(1)),
        ({"model": "whisper:tiny.en", "language": SECRET}, sound(1)),
        ({"model": "whisper:tiny.en", "prompt": SECRET}, SECRET.encode()),
    ):
        files = {"file": (f"{SECRET}.wav", content)}
        answer = audio_server.client.post("/v1/audio/transcriptions", data=fields, files=files)
        assert answer.status_code < 500
    settled(audio_server)
    assert len(lines.of_requests()) == 3
    assert SECRET not in "\n".join(lines.text)


def test_nothing_of_a_picture_is_in_the_log(vision_server: LiveServer, lines: Lines) -> None:
    picture = base64.b64encode(png_of(Image.new("RGB", (8, 8)))).decode()
    for path, fields in (
        ("zero-shot", {"model": "clip", "image": picture, "labels": [SECRET, "b"]}),
        ("zero-shot", {"model": "clip", "image": picture, "labels": SECRET}),
        ("search", {"model": "clip", "query": SECRET, "images": [picture]}),
        ("detect", {"model": "detector", "image": f"http://127.0.0.1:1/{SECRET}"}),
        ("detect", {"model": "detector", "image": SECRET}),
        ("detect", {"model": "detector", "image": picture, "classes": [SECRET]}),
    ):
        assert vision_server.client.post(f"/v1/vision/{path}", json=fields).status_code < 500
    settled(vision_server)
    assert len(lines.of_requests()) == 6
    told = "\n".join(lines.text)
    assert SECRET not in told
    assert picture[:40] not in told


def test_an_unexpected_error_is_told_without_its_words(start_server: StartServer, lines: Lines) -> None:
    def refuse(batch: Batch) -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(SECRET) from error

    server = start_server(load_gate=refuse)
    assert server.client.post("/v1/chat/completions", json=CHAT).status_code == 500
    settled(server)
    (told,) = [record.getMessage() for record in lines.records if record.name == "vmm_server.api.errors"]
    assert SECRET not in told
    assert "unexpected: ValueError" in told
    assert "because of KeyError" in told
    assert "in refuse" in told


def test_prompts_and_answers_are_logged_where_that_is_asked_for(start_server: StartServer, lines: Lines) -> None:
    server = start_server({"log_prompts": True})
    body = {"model": "echo", "messages": TALK}
    server.client.post("/v1/chat/completions", json=body).raise_for_status()
    settled(server)
    told = [record.getMessage() for record in lines.records if SECRET in record.getMessage()]
    assert len(told) == 2
    assert told[0].startswith("prompt of echo:latest: ")
    assert told[1] == f"answer of echo:latest: {SECRET}"
