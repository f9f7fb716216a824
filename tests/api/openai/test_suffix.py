"""`suffix`: a text between two others, by a model with fill-in-the-middle tokens."""

import json
from typing import Any

import httpx

NUM_MARKERS = 3
"""Tokens around what goes before and after the gap."""


def complete(server: Any, **body: object) -> httpx.Response:
    asked = {"model": "coder", "max_tokens": 3, "temperature": 0} | body
    response: httpx.Response = server.client.post("/v1/completions", json=asked)
    return response


def test_text_goes_between_prompt_and_suffix(coder: Any) -> None:
    body = complete(coder, prompt=["def f(", "x = ["], suffix="):", n=2, logprobs=0).json()
    assert [choice["text"] for choice in body["choices"]] == ["abc"] * 4
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == len("def f(") + len("x = [") + 2 * len("):") + 2 * NUM_MARKERS


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
