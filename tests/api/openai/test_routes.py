"""`/v1` over a real server: shapes, streams, statuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from vmm_server.api.openai.models import model_fields
from vmm_server.models.facts import FileFacts
from vmm_server.models.shown import details, model_info

HELLO = [{"role": "user", "content": "héllo"}]


def sse(response: httpx.Response) -> list[Any]:
    """The events of a stream; `[DONE]` stays a string."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in response.text.split("\n\n") if block]
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


@pytest.fixture
def post(live_server: Any) -> Callable[..., httpx.Response]:
    def send(path: str, **body: object) -> httpx.Response:
        response: httpx.Response = live_server.client.post(path, json={"model": "echo"} | body)
        return response

    return send


@pytest.fixture
def chat(post: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    return lambda **body: post("/v1/chat/completions", **({"messages": HELLO} | body))


@pytest.fixture
def complete(post: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    return lambda **body: post("/v1/completions", **({"prompt": "ab", "max_tokens": 3} | body))


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


def test_a_chat_answer(chat: Callable[..., httpx.Response]) -> None:
    response = chat()
    body = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "echo"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "héllo", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert usage["prompt_tokens"] == len("héllo".encode()) + 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_headers_say_who_answered(chat: Callable[..., httpx.Response]) -> None:
    headers = chat(model="PARROT").headers
    assert headers["x-vmm-model"] == "echo:latest"
    assert headers["x-vmm-backend"] == "echo"
    assert headers["x-vmm-cached-tokens"].isdigit()
    assert chat(stream=True).headers["x-vmm-backend"] == "echo"


def test_a_repeated_prompt_reports_its_cached_tokens(chat: Callable[..., httpx.Response]) -> None:
    long = [{"role": "user", "content": "x" * 100}]
    assert chat(messages=long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = chat(messages=long)
    cached = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 96
    assert again.headers["x-vmm-cached-tokens"] == str(cached)


def test_a_chat_stream_has_openais_order(chat: Callable[..., httpx.Response]) -> None:
    events = sse(chat(stream=True, stream_options={"include_usage": True}))
    assert events.pop() == "[DONE]"
    usage = events.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.get("content", "") for delta in deltas) == "héllo"
    assert deltas[-1] == {}
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert len({(event["id"], event["created"], event["model"]) for event in [*events, usage]}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert all(event["usage"] is None for event in events)


def test_length_and_stop_end_an_answer(chat: Callable[..., httpx.Response]) -> None:
    choice = chat(max_tokens=2, messages=[{"role": "user", "content": "hello"}]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("he", "length")
    choice = chat(stop=["lo"], messages=[{"role": "user", "content": "hello"}]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hel", "stop")


def test_chat_logprobs_come_with_and_without_streaming(chat: Callable[..., httpx.Response]) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    whole = chat(**asked).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        entry
        for event in sse(chat(stream=True, **asked))[:-1]
        for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["bytes"] for entry in whole] == [[byte] for byte in "hé".encode()]
    assert [entry["bytes"] for entry in streamed] == [entry["bytes"] for entry in whole]
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole)
    assert all(entry["logprob"] <= 0 for entry in whole)


def test_a_seed_repeats_an_answer(chat: Callable[..., httpx.Response]) -> None:
    asked = {"temperature": 30.0, "seed": 7, "max_tokens": 8}
    answers = {chat(**asked).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(answers) == 1


def test_a_text_completion(complete: Callable[..., httpx.Response]) -> None:
    body = complete().json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "cde", "logprobs": None, "finish_reason": "length"}]


def test_choices_follow_the_prompts(complete: Callable[..., httpx.Response]) -> None:
    body = complete(prompt=["ab", "kl", "xy"]).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "cde"), (1, "mno"), (2, "zab")]
    assert body["usage"]["completion_tokens"] == 9


def test_prompts_may_be_token_ids(complete: Callable[..., httpx.Response]) -> None:
    body = complete(prompt=[[97, 98], [107]]).json()
    assert [choice["text"] for choice in body["choices"]] == ["cde", "lmn"]


def test_streams_of_several_prompts_interleave_and_end_once(complete: Callable[..., httpx.Response]) -> None:
    events = sse(complete(prompt=["ab", "kl"], stream=True, stream_options={"include_usage": True}))
    assert events.pop() == "[DONE]"
    assert events.pop()["usage"]["completion_tokens"] == 6
    texts = {0: "", 1: ""}
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == {0: "cde", 1: "mno"}
    assert sum(event["choices"][0]["finish_reason"] == "length" for event in events) == 2


def test_completion_logprobs_have_the_legacy_shape(complete: Callable[..., httpx.Response]) -> None:
    logprobs = complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["c", "d", "e"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2, 2]
    assert len(logprobs["token_logprobs"]) == 3


def test_models_are_listed_and_found_by_any_of_their_names(live_server: Any) -> None:
    listed = live_server.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["object"]) for model in listed["data"]] == [("echo:latest", "model")]
    for name in ("echo", "echo:latest", "PARROT", "library/echo", "registry.ollama.ai/library/echo:latest"):
        found = live_server.client.get(f"/v1/models/{name}")
        assert found.status_code == 200, name
        assert found.json()["id"] == name
        assert found.json()["context_length"] == 512


def test_a_model_that_reads_no_text_has_no_context(live_server: Any) -> None:
    echo = live_server.parts.registry.resolve("echo")
    sees = replace(echo, context_length=0, embedding_length=64, capabilities=("detection",))
    assert {"id", "context_length", "max_model_len"} & {*model_fields(sees, "sees")} == {"id"}
    assert {"context_length", "embedding_length"} & {*details(sees)} == {"embedding_length"}
    assert not any("context" in name for name in model_info(sees, FileFacts()))


def test_an_unknown_model_is_404_in_openais_shape(live_server: Any, chat: Callable[..., httpx.Response]) -> None:
    for response in (
        live_server.client.get("/v1/models/nobody/no:one"),
        chat(model="nobody"),
        chat(model="nobody", stream=True),
    ):
        assert response.status_code == 404
        error = error_of(response)
        assert (error["type"], error["code"], error["param"]) == ("not_found_error", "model_not_found", "model")


def test_the_model_list_is_an_array_even_when_empty(start_server: Any) -> None:
    live_server = start_server()
    live_server.parts.registry.remove("echo")
    assert live_server.client.get("/v1/models").json() == {"object": "list", "data": []}


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_naming_field_and_limit(
    chat: Callable[..., httpx.Response], complete: Callable[..., httpx.Response], stream: bool
) -> None:
    for response, param in (
        (chat(messages=[{"role": "user", "content": "x" * 600}], stream=stream), "messages"),
        (complete(prompt=["a", "x" * 600], stream=stream), "prompt[1]"),
        (chat(options={"num_ctx": 4}, stream=stream), "messages"),
    ):
        error = error_of(response)
        assert response.status_code == 400
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "limit is 4" in error["message"]


def test_empty_messages_are_refused(chat: Callable[..., httpx.Response]) -> None:
    response = chat(messages=[])
    assert response.status_code == 400
    assert error_of(response)["message"] == "[] is too short - 'messages'"
    assert error_of(response)["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields_are_400_with_their_name(chat: Callable[..., httpx.Response], stream: bool) -> None:
    for fields, param in (({"temperature": "hot"}, "temperature"), ({"logit_bias": {"9999": 1}}, "logit_bias")):
        response = chat(stream=stream, **fields)
        assert response.status_code == 400
        error = error_of(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert param in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "missing request body"), (b"{", "Invalid JSON"), (b"[]", ""), (b"\xff", "Invalid JSON"), (b"null", "")],
)
def test_bodies_that_are_no_request_are_400(live_server: Any, body: bytes, message: str) -> None:
    response = live_server.client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    error = error_of(response)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_content_type_does_not_matter(live_server: Any) -> None:
    body = json.dumps({"model": "echo", "messages": HELLO}).encode()
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
        response = live_server.client.post("/v1/chat/completions", content=body, headers={"content-type": content_type})
        assert response.status_code == 200, content_type
