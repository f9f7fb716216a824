"""`n` and `best_of`: several answers to one prompt."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from vmm_adapters.types import SamplingParams, TokenLogprob
from vmm_server.api.gathered import Gathered
from vmm_server.api.openai.choices import best, candidates
from vmm_server.requests import GenerateRequest, TextPrompt

Post = Callable[..., Any]
LIVELY = {"temperature": 30.0, "seed": 7, "max_tokens": 12}


@pytest.fixture
def chat(live_server: Any) -> Post:
    def send(**body: object) -> httpx.Response:
        asked = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]} | body
        response: httpx.Response = live_server.client.post("/v1/chat/completions", json=asked)
        assert response.status_code == 200, response.text
        return response

    return send


@pytest.fixture
def complete(live_server: Any) -> Post:
    def send(**body: object) -> httpx.Response:
        asked = {"model": "echo", "prompt": ["ab", "kl"]} | LIVELY | body
        response: httpx.Response = live_server.client.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
        return response

    return send


def events(response: httpx.Response) -> list[Any]:
    """What came before `[DONE]`."""
    blocks = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    assert blocks.pop() == "[DONE]"
    assert "[DONE]" not in blocks
    return [json.loads(block) for block in blocks]


def chat_texts(response: httpx.Response) -> list[str]:
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["message"]["content"] for choice in choices]


def test_choices_of_a_seed_differ_and_repeat(chat: Post) -> None:
    texts = chat_texts(chat(n=4, **LIVELY))
    assert len(set(texts)) == 4
    assert chat_texts(chat(n=4, **LIVELY)) == texts
    assert chat_texts(chat(**LIVELY | {"seed": 9})) == [texts[2]], "choice i is drawn with seed + i"


def test_choices_stream_side_by_side_as_they_come_whole(chat: Post) -> None:
    whole = chat_texts(chat(n=3, **LIVELY))
    got = events(chat(n=3, stream=True, stream_options={"include_usage": True}, **LIVELY))
    usage = got.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 36
    choices = [event["choices"][0] for event in got]
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == whole[index]
        assert [choice["delta"].get("role") for choice in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]


def test_usage_counts_a_prompt_once_and_every_drawn_token(chat: Post, complete: Post) -> None:
    one, many = (chat(n=n, **LIVELY).json()["usage"] for n in (1, 5))
    assert many["prompt_tokens"] == one["prompt_tokens"]
    assert many["completion_tokens"] == 5 * one["completion_tokens"] == 60
    assert many["prompt_tokens_details"]["cached_tokens"] <= many["prompt_tokens"]
    usage = complete(n=3).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 72)
    *_, last = events(complete(n=3, stream=True, stream_options={"include_usage": True}))
    assert last["usage"]["prompt_tokens"] == 4


def test_choices_go_by_prompt_and_then_by_number(complete: Post) -> None:
    choices = complete(n=2, temperature=0, max_tokens=3).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == [(0, "cde"), (1, "cde"), (2, "mno"), (3, "mno")]
    texts = dict.fromkeys(range(4), "")
    for event in events(complete(n=2, temperature=0, max_tokens=3, stream=True)):
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == {0: "cde", 1: "cde", 2: "mno", 3: "mno"}


@pytest.mark.parametrize("prompt", [["ab", "kl"], [[97, 98], [107, 108]], ["ab", [107, 108]]])
def test_prompts_of_any_form_have_choices_streamed_and_whole(complete: Post, prompt: object) -> None:
    asked = {"prompt": prompt, "n": 3, "max_tokens": 5}
    whole = [choice["text"] for choice in complete(**asked).json()["choices"]]
    texts = dict.fromkeys(range(6), "")
    for event in events(complete(stream=True, **asked)):
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert list(texts.values()) == whole
    assert len(set(whole[:3])) == len(set(whole[3:])) == 3


def test_one_prompt_of_token_ids_is_not_many_prompts(complete: Post) -> None:
    choices = complete(prompt=[97, 98], n=2, temperature=0, max_tokens=3).json()["choices"]
    assert [choice["text"] for choice in choices] == ["cde", "cde"]


def test_best_of_keeps_the_likeliest_and_counts_all(complete: Post) -> None:
    def mean(choice: Any) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return float(sum(logprobs) / len(logprobs))

    asked = {"prompt": "ab", "temperature": 6.0, "max_tokens": 6, "logprobs": 0}
    everything = complete(n=8, **asked).json()["choices"]
    body = complete(n=2, best_of=8, **asked).json()
    ranked = sorted(everything, key=mean, reverse=True)
    assert mean(ranked[0]) > mean(ranked[-1])
    assert [choice["text"] for choice in body["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in everything)
    silent = complete(n=2, best_of=8, **asked | {"logprobs": None}).json()["choices"]
    assert [(choice["text"], choice["logprobs"]) for choice in silent] == [
        (choice["text"], None) for choice in ranked[:2]
    ]


def test_an_answer_without_tokens_ranks_last() -> None:
    empty, unlikely, likely = Gathered(), Gathered(["u"]), Gathered(["l"])
    unlikely.logprobs = [TokenLogprob(1, -3.0)]
    likely.logprobs = [TokenLogprob(1, -2.0), TokenLogprob(1, -2.0)]  # per token, not in all
    assert best([empty, unlikely, likely], 3) == [likely, unlikely, empty]


def test_a_seed_of_the_model_is_for_the_first_of_several() -> None:
    request = GenerateRequest("m", TextPrompt("x"), SamplingParams(), unset=frozenset({"seed", "top_p"}))
    first, *others = candidates(request, 3)
    assert first.unset == {"seed", "top_p"}
    assert [other.unset for other in others] == [{"top_p"}] * 2
