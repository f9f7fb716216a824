"""What one request may hold: each limit is a 400 or a 413 that names it, before anything is made of the body."""

import json
import tracemalloc
from typing import Any

import httpx
import pytest

from vmm_server.api.anthropic.wire import MessagesBody
from vmm_server.api.body import MAX_CONTAINERS, MAX_MEMBERS, Wire, parse_body
from vmm_server.api.limits import MAX_IMAGES, MAX_MESSAGES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOKEN_IDS
from vmm_server.api.ollama.wire import ChatBody
from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.errors import InvalidRequest
from vmm_server.prompt.words import MAX_CHARACTERS

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "echo", "messages": HELLO, "max_tokens": 1}


class Anything(Wire):
    """A body with a field of any kind."""

    x: object = None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"x": [' + b"[]," * MAX_CONTAINERS + b"1]}", f"{MAX_CONTAINERS} arrays and objects"),
        (b'{"x": [' + b"{}," * MAX_CONTAINERS + b"1]}", f"{MAX_CONTAINERS} arrays and objects"),
        (b'{"ignored": [' + b"[]," * MAX_CONTAINERS + b"1]}", f"{MAX_CONTAINERS} arrays and objects"),
        (b'{"x": [' + b"1," * (MAX_MEMBERS + 1) + b"1]}", f"{MAX_MEMBERS} elements"),
        (b'{"x": [' + b'"",' * (2 * MAX_MEMBERS + 1) + b"1]}", f"{MAX_MEMBERS} strings"),
    ],
    ids=["arrays", "objects", "unread", "numbers", "strings"],
)
def test_what_would_take_more_memory_than_it_has_bytes_is_refused(raw: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=f"the body has more than {words}"):
            parse_body(raw, Anything)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(raw)
    finally:
        tracemalloc.stop()


def test_signs_in_texts_do_not_count() -> None:
    text = '[{,\\"[{,\n' * MAX_CONTAINERS
    assert parse_body(json.dumps({"x": text}).encode(), Anything).x == text
    many = [[]] * (MAX_CONTAINERS - 3)
    assert parse_body(json.dumps({"x": [text, *many]}).encode(), Anything).x == [text, *many]


def too_many(model: Any, fields: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as refused:
        parse_body(json.dumps(fields).encode(), model)
    assert refused.value.param is not None
    return f"{refused.value.param}: {refused.value.message.split(': ', 1)[1]}"


@pytest.mark.parametrize("model", [ChatCompletionRequest, MessagesBody, ChatBody])
def test_messages_are_counted(model: Any) -> None:
    said = too_many(model, CHAT | {"messages": HELLO * (MAX_MESSAGES + 1)})
    assert said.startswith(f"messages: list should have at most {MAX_MESSAGES} items")
    parse_body(json.dumps(CHAT | {"messages": HELLO * MAX_MESSAGES}).encode(), model)


@pytest.mark.parametrize(
    ("model", "field", "value", "limit"),
    [
        (ChatCompletionRequest, "stop", ["x"] * (MAX_STOPS + 1), MAX_STOPS),
        (ChatCompletionRequest, "stop", "x" * (MAX_STOP_CHARACTERS + 1), MAX_STOP_CHARACTERS),
        (ChatCompletionRequest, "stop_token_ids", [1] * (MAX_TOKEN_IDS + 1), MAX_TOKEN_IDS),
        (ChatCompletionRequest, "logit_bias", dict.fromkeys(range(MAX_TOKEN_IDS + 1), 1), MAX_TOKEN_IDS),
        (MessagesBody, "stop_sequences", ["x"] * (MAX_STOPS + 1), MAX_STOPS),
        (MessagesBody, "stop_sequences", ["x" * (MAX_STOP_CHARACTERS + 1)], MAX_STOP_CHARACTERS),
        (ChatBody, "options", {"stop": ["x"] * (MAX_STOPS + 1)}, MAX_STOPS),
        (ChatBody, "messages", [HELLO[0] | {"images": ["AAAA"] * (MAX_IMAGES + 1)}], MAX_IMAGES),
    ],
)
def test_each_list_has_its_limit(model: Any, field: str, value: Any, limit: int) -> None:
    said = too_many(model, CHAT | {field: value})
    assert said.startswith(field)
    assert f"at most {limit}" in said


def test_items_of_a_response_are_counted(live_server: Any) -> None:
    body = {"model": "echo", "input": HELLO * (MAX_MESSAGES + 1), "store": False}
    refused = live_server.client.post("/v1/responses", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == f"input: {MAX_MESSAGES + 1} items, the limit is {MAX_MESSAGES}"


def test_the_size_of_a_body_is_a_setting(start_server: Any) -> None:
    server = start_server({"max_body_size": "128KiB"})
    client: httpx.Client = server.client
    padding = "x" * (131_072 - len(json.dumps(CHAT | {"ignored": ""})))
    exact = json.dumps(CHAT | {"ignored": padding}).encode()
    assert len(exact) == 131_072
    assert client.post("/v1/chat/completions", content=exact).status_code == 200
    for content in (exact + b" ", iter([exact, b" "])):
        refused = client.post("/v1/chat/completions", content=content)
        assert refused.status_code == 413
        said = refused.json()["error"]["message"]
        assert said == "the request body is larger than the limit of 0.125 MiB (setting max_body_size)"
    form = client.post("/v1/vision/detect", files={"file": bytes(131_073)}, data={"model": "echo"})
    assert form.status_code == 413


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "echo", "prompt": "x" * (MAX_CHARACTERS + 1)}, "prompt"),
        ("/api/generate", {"model": "echo", "prompt": "x" * (MAX_CHARACTERS + 1), "raw": True}, "prompt"),
        ("/v1/completions", {"model": "coder", "prompt": "a", "suffix": "x" * (MAX_CHARACTERS + 1)}, "suffix"),
    ],
)
def test_a_text_longer_than_any_context_is_not_made_tokens_of(coder: Any, path: str, body: Any, param: str) -> None:
    refused = coder.client.post(path, json=body)
    assert refused.status_code == 400
    said = f"{param}: {MAX_CHARACTERS + 1} characters, the limit is {MAX_CHARACTERS}"
    assert said in refused.text


@pytest.mark.parametrize("body", [{"input": ["x" * 2**20] * 9}, {"input": "x" * (9 * 2**20)}])
def test_texts_that_are_embedded_are_bounded_together(encoder_server: Any, body: Any) -> None:
    refused = encoder_server.client.post("/v1/embeddings", json=body | {"model": "words", "truncate": True})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == f"input: {9 * 2**20} characters in all, the limit is {MAX_CHARACTERS}"


@pytest.mark.parametrize("path", ["/v1/vision/zero-shot", "/v1/vision/embed", "/v1/vision/search", "/v1/vision/detect"])
@pytest.mark.parametrize("text", ["[" * 5_000, "[" * 100_000 + "]" * 100_000, "[NaN]", '["\\ud800"]'])
def test_json_within_a_text_is_no_failure_however_deep(live_server: Any, path: str, text: str) -> None:
    """Found by fuzzing: fields of forms hold arrays as JSON, and bodies may say the same."""
    fields = {"model": "echo", "labels": text, "texts": text, "images": text, "classes": text, "query": text}
    for response in (
        live_server.client.post(path, json=fields),
        live_server.client.post(path, files={"x": ""}, data=fields),
    ):
        assert response.status_code == 400
        assert response.json()["error"]["message"]
