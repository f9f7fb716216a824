"""What holds on every route: ids, unknown routes, bodies that are too big, a full queue, draining."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import Gate
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch
from vmm_server.engine import EngineOptions

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
GENERATE = {"model": "echo", "prompt": "hello"}
BOTH = [("/v1/chat/completions", CHAT), ("/api/generate", GENERATE)]


class Background:
    """A request that is answered while the test does something else."""

    def __init__(self, server: Any, path: str, body: dict[str, Any]) -> None:
        self.response: httpx.Response | None = None

        def work() -> None:
            self.response = httpx.post(server.url + path, json=body, timeout=30, trust_env=False)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def result(self) -> httpx.Response:
        self._thread.join(30)
        assert self.response is not None
        return self.response


def test_every_response_has_a_request_id(live_server: Any) -> None:
    client = live_server.client
    ids = {client.get(path).headers["x-request-id"] for path in ("/", "/v1/models", "/nowhere", "/v1/nowhere")}
    ids.add(client.post("/v1/chat/completions", content=b"{").headers["x-request-id"])
    ids.add(client.post("/v1/chat/completions", json=CHAT | {"stream": True}).headers["x-request-id"])
    assert len(ids) == 6


def test_a_sane_request_id_of_the_client_comes_back(live_server: Any) -> None:
    asked = {"abc-123": True, "a" * 129: False, 'x" y': False}
    for request_id, kept in asked.items():
        answered = live_server.client.get("/", headers={"x-request-id": request_id}).headers.get_list("x-request-id")
        assert (answered == [request_id]) is kept
        assert len(answered) == 1


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("/v1/nowhere", lambda response: response.json()["error"]["type"] == "not_found_error"),
        ("/api/nowhere", lambda response: "/api/nowhere" in response.json()["error"]),
        ("/nowhere", lambda response: response.text == "404 page not found"),
        ("/v2", lambda response: response.text == "404 page not found"),
    ],
)
def test_an_unknown_route_is_404_in_its_familys_shape(
    live_server: Any, path: str, check: Callable[[httpx.Response], bool]
) -> None:
    for method in ("GET", "POST"):
        response = live_server.client.request(method, path)
        assert response.status_code == 404
        assert check(response)


def test_a_wrong_method_is_405_in_its_familys_shape(live_server: Any) -> None:
    openai = live_server.client.get("/v1/chat/completions")
    assert openai.status_code == 405
    assert openai.json()["error"]["message"] == "method GET not allowed for /v1/chat/completions"
    ollama = live_server.client.get("/api/generate")
    assert ollama.status_code == 405
    assert ollama.json()["error"] == "method GET not allowed for /api/generate"
    assert live_server.client.post("/health").status_code == 405


@pytest.mark.parametrize(("path", "body"), BOTH)
def test_a_body_that_is_too_big_is_413_in_its_familys_shape(live_server: Any, path: str, body: Any) -> None:
    response = live_server.client.post(path, content=b" " * (live_server.parts.settings.max_body_size + 1))
    assert response.status_code == 413
    assert response.json()["error"]


def test_a_body_of_many_megabytes_is_read(live_server: Any) -> None:
    body = json.dumps(GENERATE | {"stream": False, "ignored": "x" * 20_000_000})
    assert live_server.client.post("/api/generate", content=body).json()["response"] == "hello"


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("stream", [True, False])
def test_a_full_queue_is_503_with_retry_after(
    start_server: Any, gate: Gate, path: str, body: Any, stream: bool
) -> None:
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1, max_queue=0))
    running = Background(server, "/api/generate", GENERATE)
    gate.wait_entered()
    refused = server.client.post(path, json=body | {"stream": stream})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-should-retry"] == "true"
    assert "server busy, please try again.  maximum pending requests exceeded" in refused.text
    gate.open()
    assert running.result().status_code == 200


def test_a_list_of_prompts_that_does_not_fit_the_queue_starts_none(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1, max_queue=1))
    refused = server.client.post("/v1/completions", json={"model": "echo", "prompt": ["a", "b", "c"], "max_tokens": 1})
    assert refused.status_code == 503
    assert sum(loaded.num_leases for loaded in server.parts.pool.loaded()) == 0
    gate.open()


class FailAt:
    """Raises in one step of the runner."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __call__(self, batch: Batch) -> None:
        self._left -= 1
        if self._left == 0:
            raise RuntimeFailed("the device fell off the bus")


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_chunk_has_a_status(start_server: Any, path: str, body: Any, stream: bool) -> None:
    response = start_server(gate=FailAt(1)).client.post(path, json=body | {"stream": stream})
    assert response.status_code == 500
    assert "fell off the bus" in response.text
    assert response.headers["content-type"].startswith("application/json")


def test_a_late_failure_is_the_last_event(start_server: Any) -> None:
    response = start_server(gate=FailAt(3)).client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert response.status_code == 200
    events = [block for block in response.text.split("\n\n") if block]
    assert '"content":"he"' in events[0] or '"content":"h"' in events[0]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert "fell off the bus" in error["message"]
    assert error["type"] == "api_error"
    assert not any("[DONE]" in event or '"finish_reason":"' in event for event in events)


def test_a_late_failure_is_the_last_line(start_server: Any) -> None:
    response = start_server(gate=FailAt(3)).client.post("/api/generate", json=GENERATE)
    assert response.status_code == 200
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[0]["response"].startswith("h")
    assert lines[-1].keys() >= {"error"}
    assert not any(line.get("done") for line in lines)


def test_ready_waits_for_the_default_model(start_server: Any, gate: Gate) -> None:
    server = start_server({"default_model": "echo"}, load_gate=gate)
    gate.wait_entered()
    waiting = server.client.get("/health/ready")
    assert waiting.status_code == 503
    assert waiting.json() == {"status": "loading", "reason": "loading echo"}
    assert server.client.get("/health/live").status_code == 200
    gate.open()
    assert server.client.post("/api/generate", json=GENERATE | {"stream": False}).status_code == 200
    assert server.client.get("/health/ready").json() == {"status": "ok"}
    assert server.client.get("/health").json() == {"status": "ok"}


def test_ready_says_why_there_is_no_default_model(start_server: Any) -> None:
    waiting = start_server({"default_model": "nobody"}).client.get("/health/ready")
    assert waiting.status_code == 503
    assert waiting.json()["reason"] == "model 'nobody' not found"


def test_draining_finishes_what_runs_and_takes_nothing_new(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    running = Background(server, "/v1/chat/completions", CHAT | {"stream": True})
    gate.wait_entered()
    drained = asyncio.run_coroutine_threadsafe(server.parts.inference.drain(30), server.loop)
    server.run(asyncio.sleep(0))
    ready = server.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    for path, body in BOTH:
        refused = server.client.post(path, json=body)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    gate.open()
    assert running.result().text.endswith("data: [DONE]\n\n")
    assert drained.result(30) is True


def test_stopping_the_server_lets_a_stream_finish(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    running = Background(server, "/v1/chat/completions", CHAT | {"stream": True})
    gate.wait_entered()
    server.uvicorn.should_exit = True
    gate.open()
    assert running.result().text.endswith("data: [DONE]\n\n")
    server.join()
    assert server.parts.pool.loaded() == []


def test_the_openapi_document_names_every_route(live_server: Any) -> None:
    document = live_server.client.get("/schema/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/api/chat", "/api/generate"} <= document[
        "paths"
    ].keys()
    assert document["info"]["title"] == "VMM"
