"""`POST /api/vmm/calibrate` and `GET /api/vmm/profiles`, over the echo model on two runtimes."""

import json
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import Gate
from vmm_server.models.router import Placement

BOTH = {"placements": (Placement("openvino", "CPU"), Placement("onnxruntime-genai", "CPU"))}
NAMES = {"placement": "openvino/CPU", "backend": "openvino", "device": "CPU", "variant": ""}
GENAI = NAMES | {"placement": "onnxruntime-genai/CPU", "backend": "onnxruntime-genai"}
FIGURES = ("decode_1", "decode_8", "prefill", "load_s", "memory_bytes")


def lines(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def without_figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose profile was checked."""
    profile = row["profile"]
    assert tuple(profile) == FIGURES
    assert min(profile[name] for name in ("decode_1", "decode_8", "prefill", "memory_bytes")) > 0
    assert profile["load_s"] >= 0
    return {name: value for name, value in row.items() if name != "profile"}


def test_each_placement_is_told_when_it_begins_and_when_it_ends(start_server: Any) -> None:
    server = start_server(**BOTH)
    begun, done, second_begun, second_done, last = lines(
        server.client.post("/api/vmm/calibrate", json={"model": "echo"})
    )
    assert begun == {"status": "measuring openvino/CPU (1 of 2)", **NAMES, "number": 1, "total": 2}
    assert without_figures(done) == {"status": "measured openvino/CPU", **NAMES, "reason": None}
    assert second_begun == {"status": "measuring onnxruntime-genai/CPU (2 of 2)", **GENAI, "number": 2, "total": 2}
    assert without_figures(second_done) == {"status": "measured onnxruntime-genai/CPU", **GENAI, "reason": None}
    assert (last.pop("status"), last["model"], last["is_measured"]) == ("success", "echo:latest", True)
    assert [without_figures(row) for row in last["placements"]] == [NAMES | {"reason": None}, GENAI | {"reason": None}]
    assert [(choice["work"], choice["num_streams"]) for choice in last["choices"]] == [
        ("1 stream", 1),
        ("16 streams", 16),
        ("long prompt", 1),
    ]
    assert {choice["placement"] for choice in last["choices"]} <= {"openvino/CPU", "onnxruntime-genai/CPU"}
    assert server.parts.pool.loaded() == []
    assert server.client.get("/api/vmm/profiles?model=echo").json() == {"models": [last]}
    assert server.client.get("/api/vmm/profiles").json() == {"models": [last]}


def test_without_a_stream_the_last_line_comes_alone(start_server: Any) -> None:
    server = start_server(**BOTH)
    body = {"model": "echo", "backend": "onnxruntime-genai", "stream": False}
    answer = server.client.post("/api/vmm/calibrate", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["status"] == "success"
    assert [row["placement"] for row in answer.json()["placements"]] == ["onnxruntime-genai/CPU"]


def test_what_was_never_measured_has_neither_profile_nor_reason(start_server: Any) -> None:
    (model,) = start_server(**BOTH).client.get("/api/vmm/profiles").json()["models"]
    rows = [(row["profile"], row["reason"]) for row in model["placements"]]
    assert (model["is_measured"], rows) == (False, [(None, None)] * 2)


def test_measurements_outlast_the_server(start_server: Any) -> None:
    lines(start_server(**BOTH).client.post("/api/vmm/calibrate", json={"model": "echo"}))
    (model,) = start_server(**BOTH).client.get("/api/vmm/profiles?model=parrot").json()["models"]
    assert model["is_measured"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nonsense"}, 404, "model 'nonsense' not found"),
        ({}, 400, "model: field required"),
        ({"model": "echo", "backend": "tensorflow"}, 400, "backend: 'tensorflow' is none of"),
        ({"model": "echo", "device": "NPU"}, 400, "cannot run on device NPU here"),
        ({"model": "words"}, 400, '"words:latest" does not support calibration: encoders of texts are not measured'),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_begins(
    encoder_server: Any, body: dict[str, str], status: int, words: str
) -> None:
    answer = encoder_server.client.post("/api/vmm/calibrate", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert words in answer.json()["error"]


def test_profiles_of_a_model_that_is_not_here_are_a_404(live_server: Any) -> None:
    answer = live_server.client.get("/api/vmm/profiles?model=nonsense")
    assert (answer.status_code, answer.json()["error"]) == (404, "model 'nonsense' not found")


def test_a_client_that_leaves_ends_the_measurement(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate, placements=BOTH["placements"][:1])
    with server.client.stream("POST", "/api/vmm/calibrate", json={"model": "echo"}) as response:
        events = response.iter_lines()
        next(events)
        gate.wait_entered()
    gate.open()
    answer = server.client.post("/api/generate", json={"model": "echo", "prompt": "Hello", "stream": False})
    assert answer.json()["response"] == "Hello"
    (model,) = server.client.get("/api/vmm/profiles").json()["models"]
    assert [(row["profile"], row["reason"]) for row in model["placements"]] == [(None, None)]


def test_requests_are_answered_while_a_model_is_measured(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate, placements=BOTH["placements"][:1])
    with server.client.stream("POST", "/api/vmm/calibrate", json={"model": "echo"}) as response:
        events = response.iter_lines()
        next(events)
        gate.wait_entered()
        gate.open()
        with httpx.Client(base_url=server.url, trust_env=False) as other:
            answer = other.post("/api/generate", json={"model": "echo", "prompt": "Hello", "stream": False})
        assert answer.json()["response"] == "Hello"
        *_, last = events
    assert json.loads(last)["status"] == "success"
