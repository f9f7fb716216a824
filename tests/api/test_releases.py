"""Versions, aliases and canaries over HTTP: replies echo the name that was asked for, headers tell who answered."""

import json
from collections import Counter
from typing import Any

import pytest

from vmm_adapters.echo import Gate

SHORT = {"prompt": "hi", "stream": False}


@pytest.fixture
def server(start_server: Any) -> Any:
    """With `echo@v1` and `echo@v2`."""
    server = start_server()
    for version in ("v1", "v2"):
        server.client.post("/api/copy", json={"source": "echo", "destination": f"echo@{version}"}).raise_for_status()
    return server


def put(server: Any, name: str, **shares: int) -> Any:
    return server.client.put(f"/api/vmm/releases/{name}", json={"shares": shares})


def asked(server: Any, model: str) -> Any:
    answer = server.client.post("/api/generate", json={"model": model, **SHORT})
    answer.raise_for_status()
    assert answer.json()["model"] == model
    return answer.headers["x-vmm-model"]


def test_a_release_is_put_shown_and_ended(server: Any) -> None:
    shown = {"name": "echo:latest", "shares": {"echo:latest@v1": 90, "echo:latest@v2": 10}}
    assert server.client.get("/api/vmm/releases/echo").status_code == 404
    assert put(server, "echo", v1=90, v2=10).json() == shown
    assert server.client.get("/api/vmm/releases").json() == {"releases": [shown]}
    assert server.client.get("/api/vmm/releases/echo").json() == shown
    assert server.client.delete("/api/vmm/releases/echo").json() == {"status": "success"}
    assert server.client.get("/api/vmm/releases").json() == {"releases": []}
    assert server.client.delete("/api/vmm/releases/echo").status_code == 404


def test_a_hundred_requests_are_divided_exactly(server: Any) -> None:
    put(server, "echo", v1=90, v2=10).raise_for_status()
    assert Counter(asked(server, "echo") for _ in range(100)) == {"echo:latest@v1": 90, "echo:latest@v2": 10}
    assert asked(server, "echo@v2") == "echo:latest@v2"


def test_the_metrics_tell_versions_apart(server: Any) -> None:
    put(server, "echo", v1=50, v2=50).raise_for_status()
    for _ in range(4):
        asked(server, "echo")
    figures = server.client.get("/metrics").text
    for version in ("v1", "v2"):
        counted = [
            line
            for line in figures.splitlines()
            if line.startswith("gen_ai_server_request_duration_seconds_count") and f'"echo:latest@{version}"' in line
        ]
        assert [line.rsplit(" ", 1)[1] for line in counted] == ["2.0"]


def test_an_alias_of_its_own_moves_and_is_listed(server: Any) -> None:
    put(server, "chat", **{"echo@v1": 100}).raise_for_status()
    assert asked(server, "chat") == "echo:latest@v1"
    put(server, "chat", **{"echo@v2": 100}).raise_for_status()
    assert asked(server, "chat") == "echo:latest@v2"
    listed = {model["id"] for model in server.client.get("/v1/models").json()["data"]}
    tags = {model["name"] for model in server.client.get("/api/tags").json()["models"]}
    assert listed == tags == {"echo:latest", "echo:latest@v1", "echo:latest@v2", "chat:latest"}
    assert server.client.get("/v1/models/chat").json()["id"] == "chat"


def test_a_conversation_stays_with_its_version(server: Any) -> None:
    put(server, "echo", v1=50, v2=50).raise_for_status()

    def chat(*turns: str) -> str:
        messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
        body = {"model": "echo", "max_tokens": 1, "messages": messages}
        version: str = server.client.post("/v1/chat/completions", json=body).headers["x-vmm-model"]
        return version

    began = {text: chat(text) for text in "abcd"}
    assert {*began.values()} == {"echo:latest@v1", "echo:latest@v2"}
    assert {text: chat(text, "yes", "go on") for text in "abcd"} == began


@pytest.mark.parametrize(
    ("name", "body", "status", "field"),
    [
        ("echo", {"shares": {"v1": 90}}, 400, "shares"),
        ("echo", {"shares": {"v1": 50.5, "v2": 49.5}}, 400, "shares"),
        ("echo", {"shares": {}}, 400, "shares"),
        ("echo", {}, 400, "shares"),
        ("echo", {"shares": {"v3": 100}}, 404, "v3"),
        ("echo@v1", {"shares": {"v1": 100}}, 400, "echo@v1"),
        ("a b", {"shares": {"v1": 100}}, 400, "invalid model name"),
    ],
)
def test_what_cannot_be_released_is_refused(server: Any, name: str, body: object, status: int, field: str) -> None:
    refused = server.client.put(f"/api/vmm/releases/{name}", json=body)
    assert refused.status_code == status
    assert field in json.dumps(refused.json())


def test_what_a_release_names_cannot_be_deleted(server: Any) -> None:
    put(server, "chat", **{"echo@v2": 100}).raise_for_status()
    refused = server.client.request("DELETE", "/api/delete", json={"model": "echo@v2"})
    assert refused.status_code == 400
    assert "chat:latest" in refused.json()["error"]
    assert asked(server, "chat") == "echo:latest@v2"


def test_a_stream_ends_where_it_began_while_its_name_moves(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    for version in ("v1", "v2"):
        server.client.post("/api/copy", json={"source": "echo", "destination": f"echo@{version}"}).raise_for_status()
    put(server, "echo", v1=100).raise_for_status()
    gate.release(2)
    with server.client.stream("POST", "/api/generate", json={"model": "echo", "prompt": "hello"}) as response:
        assert response.headers["x-vmm-model"] == "echo:latest@v1"
        lines = response.iter_lines()
        next(lines)
        put(server, "echo", v2=100).raise_for_status()
        gate.open()
        assert json.loads(list(lines)[-1])["done_reason"] == "stop"
    assert asked(server, "echo") == "echo:latest@v2"
