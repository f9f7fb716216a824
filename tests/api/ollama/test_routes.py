"""`/api` over a real server: shapes, lines, statuses."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

METRICS = {"total_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


def ndjson(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture
def post(live_server: Any) -> Callable[..., httpx.Response]:
    def send(path: str, **body: object) -> httpx.Response:
        response: httpx.Response = live_server.client.post(path, json={"model": "echo"} | body)
        return response

    return send


@pytest.fixture
def generate(post: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    return lambda **body: post("/api/generate", **({"prompt": "hello"} | body))


@pytest.fixture
def chat(post: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    return lambda **body: post("/api/chat", **({"messages": [{"role": "user", "content": "hello"}]} | body))


@pytest.mark.parametrize("stream", [True, False])
def test_a_format_holds(
    generate: Callable[..., httpx.Response], chat: Callable[..., httpx.Response], stream: bool
) -> None:
    options = {"temperature": 1.5, "seed": 3, "num_predict": 150}
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    for send in (generate, chat):
        lines = [json.loads(line) for line in send(format=schema, options=options, stream=stream).text.splitlines()]
        text = "".join(line["response"] if "response" in line else line["message"]["content"] for line in lines)
        assert lines[-1]["done_reason"] == "stop"
        assert json.loads(text) in ({"n": 1}, {"n": 2})
        (cut,) = [json.loads(send(format="json", options=options | {"num_predict": 2}, stream=False).text)]
        assert cut["done_reason"] == "length"


def test_generate_streams_by_default(generate: Callable[..., httpx.Response]) -> None:
    lines = ndjson(generate())
    assert "".join(line["response"] for line in lines) == "hello"
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {line["model"] for line in lines} == {"echo"}
    assert all(datetime.fromisoformat(line["created_at"]) for line in lines)
    last = lines[-1]
    assert last["done_reason"] == "stop"
    assert last.keys() >= METRICS | {"context"}
    parts = last.get("load_duration", 0) + last["prompt_eval_duration"] + last["eval_duration"]
    assert parts <= last["total_duration"]
    assert last["prompt_eval_count"] == 8


def test_generate_without_stream_is_one_object(generate: Callable[..., httpx.Response]) -> None:
    response = generate(stream=False)
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    body = response.json()
    assert (body["response"], body["done"], body["done_reason"]) == ("hello", True, "stop")
    assert body.keys() >= METRICS | {"model", "created_at", "context"}
    assert response.headers["x-vmm-backend"] == "echo"


def test_context_goes_on_from_the_last_answer(generate: Callable[..., httpx.Response]) -> None:
    first = generate(stream=False).json()
    second = generate(stream=False, prompt="again", context=first["context"]).json()
    assert second["response"] == "again"
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] == len(first["context"]) + 8


def test_context_must_hold_tokens_of_the_model(generate: Callable[..., httpx.Response]) -> None:
    response = generate(context=[99999])
    assert response.status_code == 400
    assert "context" in response.json()["error"]


def test_raw_has_no_template_and_no_context(generate: Callable[..., httpx.Response]) -> None:
    body = generate(raw=True, prompt="ab", stream=False, options={"num_predict": 3}).json()
    assert (body["response"], body["done_reason"]) == ("cde", "length")
    assert "context" not in body


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }}{% endfor %}", "{{ .Prompt }}"])
def test_a_template_replaces_the_models_own(generate: Callable[..., httpx.Response], template: str) -> None:
    body = generate(template=template, prompt="ab", stream=False, options={"num_predict": 2}).json()
    assert body["response"] == "cd"


def test_a_template_that_makes_no_sense_is_400_with_its_line(generate: Callable[..., httpx.Response]) -> None:
    response = generate(template="{{ if .System }}\n{{ shout .Prompt }}{{ end }}")
    assert response.status_code == 400
    assert "line 2: the function shout is not defined" in response.json()["error"]


def test_chat_streams_messages(chat: Callable[..., httpx.Response]) -> None:
    lines = ndjson(chat())
    assert "".join(line["message"]["content"] for line in lines) == "hello"
    assert {line["message"]["role"] for line in lines} == {"assistant"}
    assert lines[-1]["message"]["content"] == ""
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1].keys() >= METRICS
    assert not any("context" in line for line in lines)


def test_chat_without_stream_is_one_object(chat: Callable[..., httpx.Response]) -> None:
    body = chat(stream=False).json()
    assert body["message"] == {"role": "assistant", "content": "hello"}
    assert body["done"] is True


def test_logprobs_come_on_each_line(chat: Callable[..., httpx.Response]) -> None:
    lines = ndjson(chat(logprobs=True, top_logprobs=2, options={"num_predict": 2}))
    entries = [entry for line in lines for entry in line.get("logprobs", ())]
    assert [entry["token"] for entry in entries] == ["h", "e"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_an_empty_prompt_loads_and_unloads(live_server: Any, post: Callable[..., httpx.Response]) -> None:
    def loaded() -> Any:
        return live_server.client.get("/api/ps").json()

    for path, empty in (("/api/generate", {}), ("/api/chat", {"messages": []})):
        body = post(path, **empty)
        assert body.headers["content-type"].startswith("application/json")
        assert (body.json()["done"], body.json()["done_reason"]) == (True, "load")
        assert [model["name"] for model in loaded()["models"]] == ["echo:latest"]
        for _ in range(2):  # also when it is not loaded any more
            body = post(path, keep_alive=0, **empty)
            assert (body.status_code, body.json()["done_reason"]) == (200, "unload")
        assert loaded() == {"models": []}


def test_ps_describes_what_is_loaded(start_server: Any) -> None:
    live_server = start_server()
    live_server.client.post("/api/generate", json={"model": "echo", "keep_alive": -1})
    (model,) = live_server.client.get("/api/ps").json()["models"]
    assert (model["name"], model["model"], model["digest"]) == ("echo:latest", "echo:latest", "e" * 64)
    assert (model["size_vram"], model["context_length"], model["placement"]) == (0, 512, "echo/CPU")
    assert model["size"] > 0
    assert datetime.fromisoformat(model["expires_at"]).year > 2200


def test_tags_describe_what_is_installed(live_server: Any) -> None:
    (model,) = live_server.client.get("/api/tags").json()["models"]
    assert model["name"] == model["model"] == "echo:latest"
    assert datetime.fromisoformat(model["modified_at"])
    assert model["details"] == {
        "parent_model": "",
        "format": "onnx",
        "family": "echo",
        "families": ["echo"],
        "parameter_size": "1M",
        "quantization_level": "F32",
        "context_length": 512,
    }
    assert model["capabilities"] == ["completion"]


def test_tags_is_an_array_even_when_empty(start_server: Any) -> None:
    live_server = start_server()
    live_server.parts.registry.remove("echo")
    assert live_server.client.get("/api/tags").json() == {"models": []}


@pytest.mark.parametrize("key", ["model", "name"])
def test_show_tells_all(live_server: Any, key: str) -> None:
    shown = live_server.client.post("/api/show", json={key: "Echo"}).json()
    assert shown["model_info"] == {
        "general.architecture": "echo",
        "general.basename": "echo",
        "general.parameter_count": 1_000_000,
        "echo.context_length": 512,
    }
    assert shown["capabilities"] == ["completion"]
    assert "messages" in shown["template"]
    assert shown["parameters"].splitlines() == [f"{'temperature':<30} 0", f"{'repeat_penalty':<30} 1.1"]
    assert "FROM echo:latest" in shown["modelfile"].splitlines()
    assert shown["license"] == "Apache-2.0"


def test_delete_unloads_and_removes(start_server: Any) -> None:
    live_server = start_server()
    live_server.client.post("/api/generate", json={"model": "echo"})
    response = live_server.client.request("DELETE", "/api/delete", json={"model": "echo"})
    assert (response.status_code, response.content) == (200, b"")
    assert live_server.client.get("/api/ps").json() == {"models": []}
    assert live_server.client.request("DELETE", "/api/delete", json={"name": "echo"}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/show"), ("DELETE", "/api/delete"), ("POST", "/api/generate"), ("POST", "/api/chat")],
)
def test_an_unknown_model_is_404_in_ollamas_words(live_server: Any, method: str, path: str) -> None:
    body = {"model": "nobody", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    response = live_server.client.request(method, path, json=body)
    assert response.status_code == 404
    assert response.json()["error"] == "model 'nobody' not found"
    assert response.headers["content-type"].startswith("application/json")


def test_a_blank_model_is_404_for_generate_and_400_for_chat(post: Callable[..., httpx.Response]) -> None:
    generated, chatted = post("/api/generate", model=""), post("/api/chat", model="")
    assert (generated.status_code, generated.json()["error"]) == (404, "model '' not found")
    assert (chatted.status_code, chatted.json()["error"]) == (400, "model is required")
    assert post("/api/show", model="").status_code == 400
    assert post("/api/generate", model="a b").json()["error"] == "invalid model name"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"num_ctx": 4}}, "the input length exceeds the context length"),
        ({"think": True}, '"echo" does not support thinking'),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"format": "xml"}, 'format: "xml" is neither "json" nor a JSON schema'),
        ({"format": {"not": {}}}, 'format: Unimplemented keys: ["not"]'),
    ],
)
def test_wrong_fields_are_400_in_ollamas_shape(
    generate: Callable[..., httpx.Response], chat: Callable[..., httpx.Response], fields: Any, word: str, stream: bool
) -> None:
    for response in (generate(stream=stream, **fields), chat(stream=stream, **fields)):
        assert response.status_code == 400
        assert word in response.json()["error"]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/show", "/api/pull"])
@pytest.mark.parametrize(("body", "word"), [(b"", "missing request body"), (b"{", "Invalid JSON")])
def test_bodies_that_are_no_request_are_400(live_server: Any, path: str, body: bytes, word: str) -> None:
    response = live_server.client.post(path, content=body)
    assert response.status_code == 400
    assert word in response.json()["error"]


def test_curl_without_a_content_type_is_welcome(live_server: Any) -> None:
    body = json.dumps({"model": "echo", "prompt": "hi", "stream": False}).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert live_server.client.post("/api/generate", content=body, headers=headers).json()["response"] == "hi"


def test_the_root_says_what_clients_look_for(live_server: Any) -> None:
    response = live_server.client.get("/")
    assert (response.text, response.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")
    assert live_server.client.get("/api/version").json()["version"] == live_server.parts.settings.ollama_version


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/health/live"])
def test_head_has_the_status_and_no_body(live_server: Any, path: str) -> None:
    response = live_server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_pulling_what_does_not_exist_has_a_status_of_its_own(live_server: Any) -> None:
    for stream in (True, False):
        response = live_server.client.post("/api/pull", json={"model": "no-such-model", "stream": stream})
        assert response.status_code == 404
        assert "no-such-model" in response.json()["error"]


def test_a_pull_that_fails_late_ends_with_an_error_line(start_server: Any, tmp_path: Any) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 8)
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "broken.toml").write_text(
        f'id = "broken:latest"\ntitle = "b"\nlicense = "MIT"\norigin = "a test"\nfamily = "llama"\n'
        f'parameter_size = "0"\nquantization = "F32"\ncontext_length = 8\n[source]\nuri = "file:{broken}"\n'
    )
    server = start_server({"card_dirs": (cards,)})
    response = server.client.post("/api/pull", json={"model": "broken"})
    assert response.status_code == 200
    assert [set(line) for line in ndjson(response)][-1] >= {"error"}
    assert "GGUF" in ndjson(response)[-1]["error"]


@pytest.mark.parametrize("reference", ["file:/etc/passwd", "FILE:///etc/passwd", "http://127.0.0.1:9/model.gguf"])
def test_what_lies_on_the_servers_machine_is_not_pulled_over_the_network(live_server: Any, reference: str) -> None:
    response = live_server.client.post("/api/pull", json={"model": reference})
    assert response.status_code == 400
    assert "own machine" in response.json()["error"]
