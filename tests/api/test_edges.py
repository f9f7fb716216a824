"""Whatever bytes come in: the family's words, an id, no failure of ours."""

import asyncio
import json
import logging
import re
import socket
from typing import Any

import pytest
from pydantic import ValidationError

from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.api.openapi import operations

FAMILIES = ("/v1/chat/completions", "/v1/messages", "/api/chat")


def exchange(server: Any, request: bytes) -> bytes:
    """Send these bytes, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def get_raw(server: Any, target: bytes) -> bytes:
    return exchange(server, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/echo", "/api/tags", "/api/ps", "/health", "/schema"])
def test_head_is_get_without_the_body(live_server: Any, path: str) -> None:
    get, head = live_server.client.get(path), live_server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]
    assert head.headers["x-request-id"]


def test_options_says_what_is_allowed(live_server: Any) -> None:
    for path, allowed in {"/v1/models": "GET HEAD OPTIONS", "/v1/chat/completions": "OPTIONS POST"}.items():
        response = live_server.client.options(path)
        assert response.status_code == 204
        assert sorted(response.headers["allow"].split(", ")) == allowed.split()
        assert response.headers["x-request-id"]


def test_a_method_that_is_not_allowed_is_told_which_are(live_server: Any) -> None:
    for path in ("/v1/models", "/api/tags", "/health"):
        response = live_server.client.put(path)
        assert response.status_code == 405
        assert sorted(response.headers["allow"].split(", ")) == ["GET", "HEAD", "OPTIONS"]


@pytest.mark.parametrize("path", FAMILIES)
def test_a_body_that_is_too_big_is_refused_with_the_limit_before_it_is_read(live_server: Any, path: str) -> None:
    length = live_server.parts.settings.max_body_size + 1
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    answer = exchange(live_server, head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than the limit of 64 MiB" in answer
    assert b"x-request-id: " in answer


def test_chunks_are_counted(live_server: Any) -> None:
    def chunks() -> Any:
        for _ in range(live_server.parts.settings.max_body_size // 2**20 + 1):
            yield b" " * 2**20

    response = live_server.client.post("/v1/chat/completions", content=chunks())
    assert response.status_code == 413
    message = "the request body is larger than the limit of 64 MiB (setting max_body_size)"
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("length", [b"-5", b"abc", b"1e3", b"9" * 40, b"5, 5", b""])
def test_a_content_length_that_is_none_is_400(live_server: Any, length: bytes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    assert exchange(live_server, head + length + b"\r\n\r\n{}").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/%ff", 404),
        (b"/v1/%ff%00", 404),
        (b"/v1/../api/tags", 404),
        (b"/api/%2e%2e/x", 404),
        (b"/v1/models/%ff", 400),
        (b"/v1/models/%00", 400),
        (b"/v1/models/%0d%0ax:%20y", 400),
        (b"/v1/models/" + b"a" * 60_000, 400),
        (b"/v1/models/nobody?a=%ff", 404),
        (b"/v1/responses/%00", 404),
        (b"/v1/responses/%ff/input_items?after=%00", 404),
        (b"/v1/responses/" + b"a" * 60_000, 404),
        (b"*", 404),
        (b"//", 200),
    ],
)
def test_odd_paths_have_an_answer_and_an_id(live_server: Any, target: bytes, status: int) -> None:
    head, _, body = get_raw(live_server, target).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert head.count(b"\r\nx-request-id: ") == 1
    assert len(body) < 9000
    if target.startswith(b"/v1/"):
        assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "query", ["?a=%ff&limit=%00", "?after=%ed%a0%80&order=%f0", "?limit=1&limit=2", "?" + "a" * 20_000, "?%"]
)
def test_odd_queries_are_no_failure(live_server: Any, query: str) -> None:
    for operation in operations(live_server.uvicorn.config.app.routes):
        if operation.method == "GET":
            head, _, _ = get_raw(live_server, (re.sub(r"{\w+}", "x", operation.path) + query).encode()).partition(
                b"\r\n\r\n"
            )
            assert int(head[9:12]) < 500, operation.path
            assert b"x-request-id" in head


def test_no_path_can_forge_a_line_of_the_log(live_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vmm_server.api.request_log"):
        get_raw(live_server, b"/v1/models/a%0aroot%20logged%20in")
        live_server.run(asyncio.sleep(0))  # the line is written right after the answer
    (line,) = [record.getMessage() for record in caplog.records if "root" in record.getMessage()]
    assert line.startswith("GET /v1/models/a%0Aroot%20logged%20in 400")


def test_a_name_of_megabytes_does_not_come_back(live_server: Any) -> None:
    for path in ("/v1/chat/completions", "/api/chat"):
        response = live_server.client.post(path, json={"model": "a" * 5_000_000, "messages": []})
        assert response.status_code == 400
        assert len(response.content) < 10_000
    long_key = {"model": "echo", "prompt": "a", "logit_bias": {"a" * 5_000_000: "b"}}
    assert len(live_server.client.post("/v1/completions", json=long_key).content) < 20_000


def test_openais_routes_are_there_without_v1(live_server: Any) -> None:
    client = live_server.client
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "hi"
    assert client.post("/completions", json={"model": "echo", "prompt": "a", "max_tokens": 1}).status_code == 200
    assert client.get("/models/echo").json() == client.get("/v1/models/echo").json()
    assert client.get("/models").json() == client.get("/v1/models").json()
    assert client.post("/embeddings", json={}).json()["error"]["param"] == "model"
    assert client.get("/responses/resp_0").json()["error"]["type"] == "not_found_error"
    assert client.get("/chat/completions").status_code == 405
    assert client.get("/modelsX").text == "404 page not found"


@pytest.mark.parametrize("path", FAMILIES)
@pytest.mark.parametrize("nest", [b"[%b]", b'{"a":%b}'])
def test_json_that_is_nested_too_deeply_is_400(live_server: Any, path: str, nest: bytes) -> None:
    opening, closing = nest.split(b"%b")
    for depth in (300, 100_000):
        body = b'{"model": "echo", "ignored": ' + opening * depth + b"1" + closing * depth + b"}"
        response = live_server.client.post(path, content=body)
        assert response.status_code == 400
        assert "recursion limit exceeded" in response.text
    fine = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stream": False}
    content = (
        json.dumps({"model": "echo"} | fine)[:-1].encode() + b', "ignored": ' + opening * 150 + b"1" + closing * 150
    )
    assert live_server.client.post(path, content=content + b"}").status_code == 200


LONG = "a" * 600
TOO_LONG = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
    "/v1/completions": {"prompt": LONG},
    "/v1/responses": {"input": LONG},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
    "/api/chat": {"messages": [{"role": "user", "content": LONG}]},
    "/api/generate": {"prompt": LONG},
}


@pytest.mark.parametrize("path", TOO_LONG)
def test_a_prompt_that_does_not_fit_is_refused_in_the_words_that_clients_look_for(live_server: Any, path: str) -> None:
    response = live_server.client.post(path, json={"model": "echo"} | TOO_LONG[path])
    assert response.status_code == 400
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    if path == "/v1/messages":
        assert re.fullmatch(r"prompt is too long: \d+ tokens > 512 maximum", error["message"])
    elif path.startswith("/v1"):
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in TOO_LONG[path]
    else:
        assert error.startswith("the input length exceeds the context length")


def test_anthropics_clients_find_the_id_under_their_own_name(live_server: Any) -> None:
    response = live_server.client.get("/v1/messages/nowhere")
    assert response.headers["request-id"] == response.headers["x-request-id"] == response.json()["request_id"]
    assert "request-id" not in live_server.client.get("/v1/models").headers


def test_a_compressed_body_is_refused_by_name(live_server: Any) -> None:
    response = live_server.client.post(
        "/v1/chat/completions", content=b"\x1f\x8b", headers={"content-encoding": "gzip"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "Content-Encoding gzip is not supported"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_part_of_the_wrong_kind_is_not_explained_in_pythons_words(live_server: Any, path: str) -> None:
    response = live_server.client.post(path, json={"model": "echo", "messages": [7]})
    assert response.status_code == 400
    assert "messages[0]: input should be an object" in response.text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"guided_json": 5}, "guided_json", "input should be an object or a valid string"),
        (
            {"structured_outputs": {"json": [1]}},
            "structured_outputs.json",
            "input should be an object or a valid string",
        ),
        ({"stop": 5}, "stop", "must be a string or an array of strings"),
        ({"stop": ["a", 5]}, "stop[1]", "input should be a valid string"),
        ({"keep_alive": []}, "keep_alive", "must be seconds or a duration such as 5m"),
        ({"temperature": "hot", "top_p": "cold"}, "temperature", "input should be a valid number"),
        ({"messages": [{"content": "a"}], "top_logprobs": "1"}, "messages[0].role", "field required"),
    ],
)
def test_param_is_the_field_as_it_was_sent(live_server: Any, fields: Any, param: str, message: str) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    error = live_server.client.post("/v1/chat/completions", json=body | fields).json()["error"]
    assert error["param"] == param
    assert error["message"] == f"{param}: {message}"


@pytest.mark.parametrize(
    "field",
    [
        b'"messages": [%b]' % b",".join([b"1"] * 10_000),
        b'"messages": [], "stop_token_ids": [%b]' % b",".join([b"{}"] * 10_000),
        b'"messages": [], "logit_bias": {%b}' % b",".join(b'"%d": "x"' % number for number in range(10_000)),
    ],
)
def test_a_million_mistakes_are_not_gathered(field: bytes) -> None:
    with pytest.raises(ValidationError) as refused:
        ChatCompletionRequest.model_validate_json(b'{"model": "echo", %b}' % field)
    assert refused.value.error_count() == 1
