"""Deltas → OpenAI's objects and events, in golden shapes."""

import json
from typing import Any

import pytest

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.gathered import Gathered
from vmm_server.api.openai.render import Identity, usage_fields
from vmm_server.api.openai.render_chat import ChatChunks, chat_completion
from vmm_server.api.openai.render_completion import (
    CompletionChunks,
    Echo,
    LegacyLogprobs,
    text_completion,
)
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import GenerationFailed

IDENTITY = Identity(id="id-1", created=1700000000, model='m"x', system_fingerprint="vmm-f")
USAGE = Usage(
    num_prompt_tokens=10, num_cached_tokens=8, num_generated_tokens=3, queued_s=0.0, prefill_s=0.1, decode_s=0.2
)
USAGE_FIELDS = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
SAME = {"id": "id-1", "created": 1700000000, "model": 'm"x', "system_fingerprint": "vmm-f"}
LAST = Delta("", finish_reason=FinishReason.STOP, usage=USAGE)
BYTES = {1: b"He", 2: "€".encode()[:2], 3: "€".encode()[2:], 4: b"y"}


def events(raw: bytes) -> list[Any]:
    """What a client reads; `[DONE]` stays a string."""
    blocks = raw.decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block[6:]) if block != "data: [DONE]" else "[DONE]" for block in blocks]


def chat_events(*deltas: Delta, usage: bool = False, logprobs: bool = False) -> list[Any]:
    chunks = ChatChunks(IDENTITY, 1, include_usage=usage, token_bytes=BYTES.__getitem__ if logprobs else None)
    return events(b"".join(event for delta in deltas for event in chunks.events(0, delta)))


def chunk(delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**SAME, "object": "chat.completion.chunk", "choices": [choice]}


def test_role_is_only_on_the_first_chunk() -> None:
    assert chat_events(Delta("He"), Delta('y "\n\u2028'), LAST) == [
        chunk({"role": "assistant", "content": "He"}),
        chunk({"content": 'y "\n\u2028'}),
        chunk({}, "stop"),
        "[DONE]",
    ]


def test_nothing_is_sent_for_a_delta_without_text() -> None:
    chunks = ChatChunks(IDENTITY, 1, include_usage=False, token_bytes=None)
    assert chunks.events(0, Delta("", token_ids=(2,))) == []


def test_an_empty_answer_still_has_a_role() -> None:
    assert chat_events(LAST) == [chunk({"role": "assistant", "content": ""}), chunk({}, "stop"), "[DONE]"]


def test_the_last_text_comes_before_the_finish_chunk() -> None:
    last = Delta("y", finish_reason=FinishReason.LENGTH, usage=USAGE)
    assert chat_events(last) == [chunk({"role": "assistant", "content": "y"}), chunk({}, "length"), "[DONE]"]


def test_usage_comes_once_at_the_end_and_is_null_before() -> None:
    got = chat_events(Delta("He"), Delta("y"), LAST, usage=True)
    assert [event["usage"] for event in got[:-2]] == [None, None, None]
    assert got[-2] == {**SAME, "object": "chat.completion.chunk", "choices": [], "usage": USAGE_FIELDS}
    assert got[-1] == "[DONE]"


def test_no_chunk_speaks_of_usage_that_was_not_asked_for() -> None:
    assert all("usage" not in event for event in chat_events(Delta("He"), LAST)[:-1])


def test_logprobs_stream_with_their_tokens() -> None:
    delta = Delta("He", token_ids=(1,), logprobs=(TokenLogprob(1, -0.5, ((1, -0.5), (4, -2.0))),))
    half = Delta("", token_ids=(2,), logprobs=(TokenLogprob(2, -1.0),))
    got = chat_events(delta, half, LAST, logprobs=True)
    assert got[0]["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "He",
                "logprob": -0.5,
                "bytes": [72, 101],
                "top_logprobs": [
                    {"token": "He", "logprob": -0.5, "bytes": [72, 101]},
                    {"token": "y", "logprob": -2.0, "bytes": [121]},
                ],
            }
        ],
        "refusal": None,
    }
    assert got[1]["choices"][0]["delta"] == {}
    assert got[1]["choices"][0]["logprobs"]["content"][0]["bytes"] == [0xE2, 0x82]
    assert got[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_an_answer_that_was_broken_off_is_no_answer(reason: FinishReason) -> None:
    with pytest.raises(GenerationFailed):
        chat_events(Delta("He"), Delta("", finish_reason=reason))
    with pytest.raises(GenerationFailed):
        chat_completion(IDENTITY, [Gathered(["He"], finish_reason=reason)], None)


def test_a_whole_chat_answer() -> None:
    gathered = Gathered(["He", "y"], [1, 4], [], FinishReason.STOP, USAGE)
    assert chat_completion(IDENTITY, [gathered], None) == {
        **SAME,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hey", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE_FIELDS,
    }


def test_a_text_completion_streams_under_the_same_object_name() -> None:
    chunks = CompletionChunks(IDENTITY, [None], include_usage=False, token_bytes=None)
    got = events(b"".join(event for delta in (Delta("He"), Delta(""), LAST) for event in chunks.events(0, delta)))
    texts = [{"index": 0, "text": text, "logprobs": None, "finish_reason": None} for text in ("He", "")]
    texts[1]["finish_reason"] = "stop"
    assert got == [{**SAME, "object": "text_completion", "choices": [choice]} for choice in texts] + ["[DONE]"]


def test_done_and_usage_wait_for_the_last_choice() -> None:
    chunks = CompletionChunks(IDENTITY, [None, None], include_usage=True, token_bytes=None)
    first = events(b"".join(chunks.events(1, LAST)))
    assert [event["choices"][0]["index"] for event in first] == [1]
    got = events(b"".join(chunks.events(0, LAST)))
    assert got[0]["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    assert got[1]["choices"] == []
    assert got[1]["usage"]["total_tokens"] == 26
    assert got[1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
    assert got[2:] == ["[DONE]"]


def test_legacy_logprobs_count_characters_across_chunks() -> None:
    legacy = LegacyLogprobs(BYTES.__getitem__)
    first = legacy.fields([TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.0))), TokenLogprob(2, -1.0)])
    second = legacy.fields([TokenLogprob(3, -1.5), TokenLogprob(4, -2.0)])
    assert first == {
        "tokens": ["He", "bytes:\\xe2\\x82"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"He": -0.5, "bytes:\\xe2\\x82": -1.0}, {}],
        "text_offset": [0, 2],
    }
    assert second["tokens"] == ["bytes:\\xac", "y"]
    assert second["text_offset"] == [2, 3]


def test_an_echoed_prompt_counts_only_what_its_text_shows() -> None:
    """Token 9 stands for a BOS token, which the tokeniser put before the text."""
    prompt = Echo("Hey", (9, 1, 4))
    legacy = LegacyLogprobs((BYTES | {9: b"<s>"}).__getitem__, prompt)
    scores = [TokenLogprob(1, -0.5, ((4, -0.25),)), TokenLogprob(4, -1.0), TokenLogprob(4, -2.0)]
    assert legacy.fields(scores[:1]) == {
        "tokens": ["<s>", "He"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"y": -0.25}],
        "text_offset": [0, 0],
    }
    assert legacy.fields(scores[1:])["text_offset"] == [2, 3]


def test_an_echo_goes_before_the_first_text_once() -> None:
    chunks = CompletionChunks(IDENTITY, [Echo("€", (2, 3))], include_usage=False, token_bytes=BYTES.__getitem__)
    deltas = Delta("", prompt_logprobs=(TokenLogprob(3, -0.5),)), Delta("y", (4,), (TokenLogprob(4, -1.0),)), LAST
    got = [event["choices"][0] for event in events(b"".join(e for d in deltas for e in chunks.events(0, d)))[:-1]]
    assert [choice["text"] for choice in got] == ["€", "y", ""]
    assert [choice["logprobs"]["token_logprobs"] for choice in got] == [[None, -0.5], [-1.0], []]
    assert [choice["logprobs"]["text_offset"] for choice in got] == [[0, 0], [1], []]


def test_choices_of_a_text_completion_are_in_prompt_order() -> None:
    one = Gathered(["a"], [1], [], FinishReason.STOP, USAGE)
    two = Gathered(["b"], [1], [TokenLogprob(1, -0.5)], FinishReason.LENGTH, USAGE)
    body = text_completion(IDENTITY, [one, two], None, usage_fields([USAGE, USAGE]), [None, None])
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "b", "logprobs": None, "finish_reason": "length"},
    ]
    assert body["usage"] == USAGE_FIELDS | {
        "prompt_tokens": 20,
        "completion_tokens": 6,
        "total_tokens": 26,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
