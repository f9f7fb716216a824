"""Text ↔ tokens over a real server. Of the echo model a byte is a token, and special ones come after."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_adapters.echo import write_echo_model
from vmm_server.api.openai.tokens.wire import MAX_CHARACTERS, MAX_TEXTS, MAX_TOKENS
from vmm_server.models.store import Store

Post = Callable[..., httpx.Response]
HI = [{"role": "user", "content": "hé"}]
CHAT = [257, 104, 195, 169, 260, 258]
"""`HI` as the model's template writes it."""
TOOL = {"type": "function", "function": {"name": "f", "description": "a tool"}}


@pytest.fixture(scope="session")
def post(clever_server: Any) -> Post:
    def send(path: str, **body: object) -> httpx.Response:
        response: httpx.Response = clever_server.client.post(path, json={"model": "echo"} | body)
        return response

    return send


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
@pytest.mark.parametrize("field", ["prompt", "content", "text"])
def test_a_text_under_any_name(post: Post, path: str, field: str) -> None:
    response = post(path, **{field: "hé"})
    assert response.status_code == 200
    assert response.json() == {"tokens": [104, 195, 169], "count": 3, "max_model_len": 512}


def test_several_texts(post: Post) -> None:
    body = post("/tokenize", text=["a", "bc"], return_token_strs=True).json()
    assert body == {
        "tokens": [[97], [98, 99]],
        "count": [1, 2],
        "token_strs": [["a"], ["b", "c"]],
        "max_model_len": 512,
    }
    assert post("/tokenize", text=[]).json() == {"tokens": [], "count": [], "max_model_len": 512}
    assert post("/tokenize", text="").json()["count"] == 0


def test_pieces_are_texts_or_bytes(post: Post) -> None:
    body = post("/tokenize", content="hé<|end|>", with_pieces=True).json()
    assert body["tokens"] == [
        {"id": 104, "piece": "h"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
        {"id": 260, "piece": "<|end|>"},
    ]
    assert body["count"] == 4
    assert post("/tokenize", prompt="hé", return_token_strs=True).json()["token_strs"] == ["h", "\ufffd", "\ufffd"]


def test_a_conversation_is_the_prompt_of_chat_completions(post: Post) -> None:
    body = post("/tokenize", messages=HI).json()
    assert (body["tokens"], body["count"]) == (CHAT, 6)
    asked = {"model": "clever", "messages": HI, "tools": [TOOL], "reasoning_effort": "low"}
    used = post("/v1/chat/completions", **asked).json()["usage"]["prompt_tokens"]
    assert post("/tokenize", **asked).json()["count"] == used
    text = post("/apply-template", **asked).json()["prompt"]
    assert text.endswith("a tool<|end|><|user|>hé<|end|><|assistant|>")
    assert post("/tokenize", prompt=text, model="clever").json()["count"] == used


@pytest.mark.parametrize("path", ["/apply-template", "/v1/apply-template"])
def test_a_template_is_applied(post: Post, path: str) -> None:
    assert post(path, messages=HI).json() == {"prompt": "<|user|>hé<|end|><|assistant|>"}
    begun = [*HI, {"role": "assistant", "content": "h"}]
    for fields in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert post(path, messages=begun, **fields).json() == {"prompt": "<|user|>hé<|end|><|assistant|>h"}


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
def test_tokens_become_text(post: Post, path: str) -> None:
    text = "<|user|>hé<|end|><|assistant|>"
    assert post(path, tokens=CHAT).json() == {"content": text, "prompt": text, "text": text}
    assert post(path, tokens=[]).json()["text"] == ""


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
@given(st.text(max_size=30))
def test_a_text_comes_back(post: Post, text: str) -> None:
    ids = post("/tokenize", prompt=text).json()["tokens"]
    assert post("/detokenize", tokens=ids).json()["content"] == text


def test_the_tokeniser_adds_what_it_adds_unless_told_not_to(start_server: Any, tmp_path: Path) -> None:
    server, folder = start_server(), tmp_path / "begins"
    write_echo_model(folder)
    config = json.loads((folder / "tokenizer.json").read_text())
    begin = "<|system|>"
    config["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {begin: {"id": begin, "ids": [256], "tokens": [begin]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(config))
    echo = server.parts.registry.resolve("echo")
    Store(server.parts.settings.store_dir).install(replace(echo, name="begins:latest", aliases=(), folder=folder))

    def tokens(**body: object) -> Any:
        return server.client.post("/tokenize", json={"model": "begins"} | body).json()["tokens"]

    for field in ("prompt", "text"):
        assert tokens(**{field: "a"}) == [256, 97]
        assert tokens(**{field: "a"}, add_special_tokens=False) == tokens(**{field: "a"}, add_special=False) == [97]
    assert tokens(content="a") == [97]
    assert tokens(content="a", add_special=True) == [256, 97]
    assert tokens(messages=HI) == CHAT


def test_no_model_is_the_default_or_the_only_one(start_server: Any, clever_server: Any) -> None:
    alone = start_server()
    assert alone.client.post("/tokenize", json={"content": "a"}).json()["tokens"] == [97]
    assert alone.client.post("/detokenize", json={"tokens": [97]}).json()["content"] == "a"
    assert alone.client.post("/apply-template", json={"messages": HI}).json()["prompt"]
    several = clever_server.client.post("/tokenize", json={"content": "a"})
    assert (several.status_code, several.json()["error"]["param"]) == (400, "model")


def test_the_default_model_stands_for_none(start_server: Any) -> None:
    server = start_server({"default_model": "parrot"})
    assert server.client.post("/tokenize", json={"content": "a"}).json()["count"] == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "text": "b"}, "text"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"content": ["a", 5]}, "content"),
        ("/tokenize", {"text": ["a"] * (MAX_TEXTS + 1)}, "text"),
        ("/tokenize", {"text": "a" * (MAX_CHARACTERS + 1)}, "text"),
        ("/tokenize", {"prompt": "a", "parse_special": False}, "parse_special"),
        ("/tokenize", {"text": "a", "max_length": 5}, "max_length"),
        ("/tokenize", {"text": "a", "pad_to_max_length": True}, "pad_to_max_length"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HI, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": HI, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"messages": HI, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": HI, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": [2**80]}, "tokens"),
        ("/detokenize", {"tokens": [1] * (MAX_TOKENS + 1)}, "tokens"),
    ],
)
def test_wrong_fields_are_refused_by_name(post: Post, path: str, body: Any, param: str) -> None:
    response = post(path, **body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/detokenize", "/apply-template"])
def test_an_unknown_model_is_not_found(post: Post, path: str) -> None:
    response = post(path, model="nobody", prompt="a", tokens=[1], messages=HI if path == "/apply-template" else None)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
