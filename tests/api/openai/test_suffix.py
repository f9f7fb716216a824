"""`suffix`: a text between two others, by a model with fill-in-the-middle tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import write_echo_model
from vmm_server.models.store import Store

RENAMED = {"<|system|>": "<fim_prefix>", "<|tool|>": "<fim_suffix>", "<|user|>": "<fim_middle>"}


@pytest.fixture
def coder(start_server: Any, tmp_path: Path) -> Any:
    """A server whose `coder` knows StarCoder's tokens, and fills every gap with the alphabet."""
    server = start_server()
    folder = tmp_path / "coder"
    write_echo_model(folder)
    text = (folder / "tokenizer.json").read_text()
    for echo, coder in RENAMED.items():
        text = text.replace(json.dumps(echo), json.dumps(coder))
    (folder / "tokenizer.json").write_text(text)
    echo = server.parts.registry.resolve("echo")
    model = replace(echo, name="coder:latest", aliases=(), digest="c" * 64, folder=folder)
    Store(server.parts.settings.store_dir).install(model)
    return server


def complete(server: Any, **body: object) -> httpx.Response:
    asked = {"model": "coder", "max_tokens": 3, "temperature": 0} | body
    response: httpx.Response = server.client.post("/v1/completions", json=asked)
    return response


def test_text_goes_between_prompt_and_suffix(coder: Any) -> None:
    body = complete(coder, prompt=["def f(", "x = ["], suffix="):", n=2, logprobs=0).json()
    assert [choice["text"] for choice in body["choices"]] == ["abc"] * 4
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == len("def f(") + len("x = [") + 2 * len("):") + 2 * len(RENAMED)


def test_an_insertion_streams_as_any_completion(coder: Any) -> None:
    blocks = complete(coder, prompt="a", suffix="b", stream=True).text.split("\n\n")[:-2]
    choices = [json.loads(block[6:])["choices"][0] for block in blocks]
    assert "".join(choice["text"] for choice in choices) == "abc"
    assert choices[-1]["finish_reason"] == "length"


def test_prompt_and_suffix_share_the_context(coder: Any) -> None:
    error = complete(coder, prompt=["a", "a" * 300], suffix="b" * 300).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "suffix")


def test_a_model_without_such_tokens_says_so(coder: Any) -> None:
    response = complete(coder, model="echo", prompt="a", suffix="b")
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["message"], error["param"]) == ('"echo" does not support insert', "suffix")
