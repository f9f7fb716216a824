"""Models are created, copied, pushed, replaced and deleted over `/api`."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import Gate, write_echo_model
from vmm_server.app import App

SHOUT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def ndjson(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def names(server: Any, path: str = "tags") -> set[str]:
    return {model["name"] for model in server.client.get(f"/api/{path}").json()["models"]}


def create(server: Any, **body: object) -> httpx.Response:
    response: httpx.Response = server.client.post("/api/create", json={"model": "mario", "stream": False} | body)
    return response


def show(server: Any, name: str, **body: object) -> Any:
    return server.client.post("/api/show", json={"model": name} | body).json()


def test_a_model_made_of_another_has_what_was_put_on_top(start_server: Any) -> None:
    server = start_server()
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    body = {
        "from": "Echo",
        "system": "Be brief.",
        "template": SHOUT,
        "license": ["MIT", "and more"],
        "parameters": {"temperature": 0.5, "stop": ["zz"], "num_ctx": 256.0},
        "messages": messages,
    }
    answer = create(server, **body)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"}), answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    shown = show(server, "mario")
    assert (shown["system"], shown["template"], shown["messages"]) == ("Be brief.", SHOUT, messages)
    assert "MIT" in shown["license"]
    assert "and more" in shown["license"]
    assert shown["details"]["parent_model"] == "echo:latest"
    parameters = [line.split(maxsplit=1) for line in shown["parameters"].splitlines()]
    assert ["temperature", "0.5"] in parameters
    assert ["num_ctx", "256"] in parameters
    prompt = {"model": "mario", "prompt": "hi", "_debug_render_only": True}
    rendered = server.client.post("/api/generate", json=prompt).json()["_debug_info"]["rendered_template"]
    assert rendered == "Be brief.Who?Me.hi"


def test_creating_streams_its_steps(start_server: Any) -> None:
    lines = ndjson(create(start_server(), **{"from": "echo", "stream": True}))
    assert [line["status"] for line in lines][-2:] == ["writing manifest", "success"]
    assert lines[0]["status"].startswith("using existing layer sha256:")


def test_a_modelfile_as_older_clients_send_it(start_server: Any) -> None:
    server = start_server()
    text = "FROM echo\nSYSTEM Be brief.\nPARAMETER num_ctx 128\nMESSAGE user Who?\n"
    assert server.client.post("/api/create", json={"name": "mario", "modelfile": text, "stream": False}).json() == {
        "status": "success"
    }
    assert show(server, "mario")["system"] == "Be brief."
    assert show(server, "mario")["messages"] == [{"role": "user", "content": "Who?"}]
    assert create(server, modelfile=text, system="Be long.").status_code == 200
    assert show(server, "mario")["system"] == "Be long."


def test_a_blob_named_by_an_older_modelfile_is_read(start_server: Any) -> None:
    server, content = start_server(), b"GGUF" + b"\0" * 8
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert server.client.post(f"/api/blobs/{digest}", content=content).status_code == 201
    answer = create(server, modelfile=f"FROM @{digest}\n")
    assert "GGUF" in answer.json()["error"]
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")  # the file is the client's
    streamed = ndjson(create(server, files={"m.gguf": digest}, stream=True))
    assert streamed[0] == {"status": "parsing GGUF"}
    assert "GGUF" in streamed[-1]["error"]
    assert names(server) == {"echo:latest"}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "neither 'from' or 'files' was specified"),
        ({"model": "", "from": "echo"}, "invalid model name"),
        ({"model": "a b", "from": "echo"}, "invalid model name"),
        ({"from": "a b"}, "invalid model name"),
        ({"from": "echo", "adapters": {"a": "sha256:" + "0" * 64}}, "adapters"),
        ({"files": {"m.gguf": "sha256:12"}}, "invalid digest format"),
        ({"files": {"m.gguf": "sha256:" + "0" * 64}}, "was not uploaded"),
        ({"files": {"../m.gguf": "sha256:" + "0" * 64}}, "no relative path"),
        ({"from": "echo", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"from": "echo", "parameters": {"unheard_of": 1}}, "unheard_of"),
        ({"from": "echo", "template": "{% for"}, "template"),
        ({"from": "echo", "template": "{{ if .Prompt }}"}, "template"),
        ({"from": "echo", "messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"from": "echo", "quantize": "q99"}, "quantize"),
        ({"from": "echo", "license": 5}, "license"),
        ({"from": "echo", "path": "/etc/Modelfile"}, "path is not supported"),
        ({"from": "echo", "renderer": "qwen3"}, "renderer is not supported"),
        ({"from": "echo", "parser": "qwen3"}, "parser is not supported"),
        ({"from": "echo", "info": {"capabilities": ["vision"]}}, "info is not supported"),
        ({"from": "echo", "remote_host": "https://x"}, "remote_host is not supported"),
        ({"from": "file:/etc/passwd"}, "own machine"),
        ({"from": "FILE:/etc/passwd"}, "own machine"),
        ({"from": "/etc/passwd"}, "invalid model name"),
        ({"from": "./model.gguf"}, "invalid model name"),
        ({"from": "http://127.0.0.1:9/m.gguf"}, "own machine"),
        ({"modelfile": "FROM file:/etc/passwd"}, "own machine"),
        ({"modelfile": "FROM /etc/passwd"}, "invalid model name"),
        ({"modelfile": "FROM echo\nADAPTER ./lora.gguf"}, "adapters"),
        ({"modelfile": "FRUM echo"}, "line 1"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_created_is_refused_with_a_status_of_its_own(
    live_server: Any, body: dict[str, object], word: str, stream: bool
) -> None:
    answer = create(live_server, **body, stream=stream)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_parent_that_is_not_here_is_404(live_server: Any, stream: bool) -> None:
    answer = create(live_server, **{"from": "nobody", "stream": stream})
    assert (answer.status_code, answer.json()["error"]) == (404, "model 'nobody' not found")


def test_fields_of_no_effect_are_taken(start_server: Any) -> None:
    fields = {"requires": "0.14.0", "unheard_of": 1, "quantize": "", "renderer": "", "adapters": {}, "files": {}}
    assert create(start_server(), **fields, **{"from": "echo"}).status_code == 200


def test_a_copy_is_another_name(start_server: Any) -> None:
    server = start_server()
    answer = server.client.post("/api/copy", json={"source": "Echo", "destination": "me/Backup:v1"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert names(server) == {"echo:latest", "me/Backup:v1"}
    body = {"model": "ME/backup:V1", "prompt": "hi", "stream": False}
    assert server.client.post("/api/generate", json=body).json()["response"] == "hi"
    assert server.client.request("DELETE", "/api/delete", json={"model": "echo"}).status_code == 200
    assert server.client.post("/api/generate", json=body).json()["response"] == "hi"


@pytest.mark.parametrize(
    ("source", "destination", "status", "error"),
    [
        ("nobody", "x", 404, 'model "nobody" not found'),
        ("a b", "x", 400, 'source "a b" is invalid'),
        ("", "x", 400, 'source "" is invalid'),
        ("echo", "a b", 400, 'destination "a b" is invalid'),
        ("echo", "", 400, 'destination "" is invalid'),
    ],
)
def test_a_copy_that_cannot_be(live_server: Any, source: str, destination: str, status: int, error: str) -> None:
    answer = live_server.client.post("/api/copy", json={"source": source, "destination": destination})
    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_models_on_the_same_weights_share_an_engine_that_outlives_each_of_them(start_server: Any) -> None:
    server = start_server()
    assert create(server, **{"from": "echo"}).status_code == 200
    for name in ("echo", "mario"):
        server.client.post("/api/generate", json={"model": name}).raise_for_status()
    assert len(names(server, "ps")) == 1
    server.client.request("DELETE", "/api/delete", json={"model": "echo"}).raise_for_status()
    assert len(names(server, "ps")) == 1
    server.client.request("DELETE", "/api/delete", json={"model": "mario"}).raise_for_status()
    assert names(server, "ps") == set()


def test_the_engine_of_a_model_that_was_replaced_goes(start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    echo = server.parts.registry.resolve("echo")
    write_echo_model(tmp_path / "other")
    changes: dict[str, Any] = {"name": "other:latest", "digest": "d" * 64, "weights": "", "folder": tmp_path / "other"}
    server.parts.store.install(replace(echo, aliases=(), **changes))
    assert create(server, **{"from": "echo"}).status_code == 200
    server.client.post("/api/generate", json={"model": "mario", "keep_alive": -1}).raise_for_status()
    server.client.request("DELETE", "/api/delete", json={"model": "echo"}).raise_for_status()
    assert names(server, "ps") == {"mario:latest"}
    assert create(server, **{"from": "other"}).status_code == 200
    assert [loaded.is_replaced for loaded in server.parts.pool.loaded()] == [True]
    server.run(server.parts.pool.settle())
    assert names(server, "ps") == set()
    body = {"model": "mario", "prompt": "hi", "stream": False}
    assert server.client.post("/api/generate", json=body).json()["response"] == "hi"


def test_an_answer_goes_on_while_its_model_is_deleted(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    gate.release(2)
    with server.client.stream("POST", "/api/generate", json={"model": "echo", "prompt": "hello"}) as response:
        lines = response.iter_lines()
        first = json.loads(next(lines))
        server.client.request("DELETE", "/api/delete", json={"model": "echo"}).raise_for_status()
        gate.open()
        rest = [json.loads(line) for line in lines]
    assert first["response"] + "".join(line["response"] for line in rest) == "hello"
    assert rest[-1]["done_reason"] == "stop"
    assert server.client.post("/api/generate", json={"model": "echo", "prompt": "x"}).status_code == 404


def test_only_a_client_on_this_machine_pushes_to_it(make_app: Callable[..., App]) -> None:
    async def push(client: str, name: str) -> httpx.Response:
        transport = httpx.ASGITransport(make_app(), client=(client, 4))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/api/push", json={"model": name})

    for name in ("127.0.0.1:9/me/x", "http://localhost:9/me/x"):
        refused = asyncio.run(push("192.0.2.7", name))
        assert (refused.status_code, "own machine" in refused.json()["error"]) == (400, True)
        assert asyncio.run(push("127.0.0.1", name)).status_code == 404  # there is no such model
    assert asyncio.run(push("192.0.2.7", "192.0.2.8:9/me/x")).status_code == 404


def test_show_tells_copilot_the_name_it_asked_for(live_server: Any) -> None:
    def basename(agent: str) -> object:
        shown = live_server.client.post("/api/show", json={"model": "Echo:latest"}, headers={"user-agent": agent})
        return shown.json()["model_info"]["general.basename"]

    assert basename("GitHubCopilotChat/0.20") == "Echo:latest"
    assert basename("curl/8") == "echo"


def test_show_takes_the_older_fields(live_server: Any) -> None:
    shown = show(live_server, "echo", system="Be brief.", verbose=True, options={"temperature": 1}, template="x")
    assert shown["system"] == "Be brief."
    assert isinstance(shown["model_info"], dict)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("POST", f"/api/{name}") for name in ("push", "create", "copy", "embed", "embeddings", "pull", "show")],
        ("DELETE", "/api/delete"),
    ],
)
def test_no_body_is_said(live_server: Any, method: str, path: str) -> None:
    answer = live_server.client.request(method, path)
    assert (answer.status_code, answer.json()["error"]) == (400, "missing request body")


@pytest.mark.parametrize("path", ["push", "pull", "show"])
def test_a_blank_name_is_said(live_server: Any, path: str) -> None:
    for body in ({}, {"model": ""}, {"name": ""}):
        answer = live_server.client.post(f"/api/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "model is required")


@pytest.mark.parametrize("path", ["blobs/sha256:" + "0" * 64, "copy", "create", "push", "embed"])
def test_a_method_that_a_route_has_not_is_405(live_server: Any, path: str) -> None:
    answer = live_server.client.put(f"/api/{path}")
    assert answer.status_code == 405
    assert "error" in answer.json()
