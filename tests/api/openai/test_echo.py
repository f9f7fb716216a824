"""`echo`: the prompt said again, and scored; what evaluation harnesses ask for."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Post = Callable[..., Any]
TEXT = "abcdéfgxyz"


@pytest.fixture
def complete(live_server: Any) -> Post:
    def send(**body: object) -> Any:
        asked = {"model": "echo", "prompt": TEXT, "echo": True, "max_tokens": 2, "temperature": 0} | body
        response = live_server.client.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
        return response

    return send


def streamed(response: Any) -> list[Any]:
    blocks = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    assert blocks.pop() == "[DONE]"
    return [json.loads(block)["choices"][0] for block in blocks]


@pytest.mark.parametrize("prompt", [TEXT, list(TEXT.encode())], ids=["text", "tokens"])
def test_a_prompt_goes_before_its_answer(complete: Post, prompt: object) -> None:
    choice = complete(prompt=prompt).json()["choices"][0]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == (TEXT + "ab", None, "length")
    assert "".join(one["text"] for one in streamed(complete(prompt=prompt, stream=True))) == TEXT + "ab"


def test_logprobs_cover_prompt_and_answer(complete: Post) -> None:
    body = complete(logprobs=2).json()
    choice, usage = body["choices"][0], body["usage"]
    logprobs = choice["logprobs"]
    tokens = [*"abcd", "bytes:\\xc3", "bytes:\\xa9", *"fgxyz", *"ab"]
    assert logprobs["tokens"] == tokens
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    likely = [logprob > -0.01 for logprob in logprobs["token_logprobs"][1:]]
    assert likely == [True, True, True, False, False, False, True, False, True, True, True, True], (
        "it says the alphabet"
    )
    assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 2)


def test_streamed_logprobs_are_the_same(complete: Post) -> None:
    whole = complete(logprobs=1, prompt=TEXT * 9).json()["choices"][0]
    choices = streamed(complete(logprobs=1, prompt=TEXT * 9, stream=True))
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_harness_scores_token_ids(complete: Post, max_tokens: int) -> None:
    """What lm-evaluation-harness's local-completions sends, and how it reads the answer."""
    context, continuation = list(b"abc"), list(b"dex")
    body = complete(prompt=[context + continuation, continuation], max_tokens=max_tokens, logprobs=1, seed=1234).json()
    first, second = body["choices"]
    end = len(context) + len(continuation)
    scores = first["logprobs"]["token_logprobs"][len(context) : end]
    tops = first["logprobs"]["top_logprobs"][len(context) : end]
    assert len(first["logprobs"]["tokens"]) == end + max_tokens
    assert [score == max(top.values()) for score, top in zip(scores, tops, strict=True)] == [True, True, False]
    assert len(second["logprobs"]["tokens"]) == 3 + max_tokens
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"]["completion_tokens"] == 2 * max_tokens


def test_no_answer_may_be_asked_for(complete: Post) -> None:
    choice = complete(max_tokens=0).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    (only,) = streamed(complete(max_tokens=0, stream=True))
    assert (only["text"], only["finish_reason"]) == (TEXT, "length")
    assert complete(max_tokens=0, echo=False).json()["choices"][0]["text"] == ""


def test_every_choice_has_its_echo(complete: Post) -> None:
    asked = {"prompt": ["ab", "kl"], "logprobs": 0, "temperature": 20, "seed": 1, "max_tokens": 4}
    for choices in (complete(n=2, **asked).json()["choices"], complete(n=2, best_of=4, **asked).json()["choices"]):
        assert [choice["text"][:2] for choice in choices] == ["ab", "ab", "kl", "kl"]
        assert [choice["logprobs"]["tokens"][:2] for choice in choices] == [[*"ab"], [*"ab"], [*"kl"], [*"kl"]]
        assert len({choice["text"] for choice in choices}) == 4
