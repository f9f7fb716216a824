"""Thinking and calls of a chat answer: golden shapes, and the same message streamed and whole, however it is cut."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.gathered import Gathered
from vmm_server.api.openai.render import Identity, usage_fields
from vmm_server.api.openai.render_chat import ChatChunks, chat_completion
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage

IDENTITY = Identity(id="chatcmpl-1", created=1700000000, model="m", system_fingerprint="vmm-f")
USAGE = Usage(
    num_prompt_tokens=10,
    num_cached_tokens=8,
    num_generated_tokens=9,
    queued_s=0.0,
    prefill_s=0.1,
    decode_s=0.2,
    num_reasoning_tokens=4,
)
STOP = Delta("", finish_reason=FinishReason.STOP, usage=USAGE)
LENGTH = Delta("", finish_reason=FinishReason.LENGTH, usage=USAGE)
CALLS = Delta("", finish_reason=FinishReason.TOOL_CALLS, usage=USAGE)


def call(index: int, arguments: str = "", name: str | None = None) -> Delta:
    call_id = f"call_{index}" if name is not None else None
    return Delta("", tool_calls=(ToolCallDelta(index, arguments, call_id, name),))


def thought(text: str) -> Delta:
    return Delta("", reasoning=text)


def stream(deltas: Sequence[Delta], *, functions: bool = False, usage: bool = False) -> list[Any]:
    """The events before `[DONE]`."""
    chunks = ChatChunks(IDENTITY, 1, include_usage=usage, token_bytes=None, functions=functions)
    blocks = b"".join(event for delta in deltas for event in chunks.events(0, delta)).decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def said(deltas: Sequence[Delta], *, functions: bool = False) -> list[Any]:
    """`delta` of every event but the last one's, which only ends the answer."""
    choices = [event["choices"][0] for event in stream(deltas, functions=functions)]
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    assert choices[-1]["delta"] == {}
    return [choice["delta"] for choice in choices[:-1]]


def whole(deltas: Sequence[Delta], *, functions: bool = False) -> Any:
    gathered = Gathered()
    for delta in deltas:
        gathered.add(delta)
    return chat_completion(IDENTITY, [gathered], None, functions=functions)


def test_a_call_streams_its_name_first_and_then_its_arguments() -> None:
    assert said([call(0, '{"a', "f"), call(0, '": 1}'), call(1, "", "g"), call(1, "{}"), CALLS]) == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"index": 0, "id": "call_0", "type": "function", "function": {"name": "f", "arguments": ""}}
            ],
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]},
        {"tool_calls": [{"index": 1, "id": "call_1", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]


def test_thinking_goes_by_both_names_and_before_content() -> None:
    assert said([thought("h"), thought("m"), Delta("y"), Delta("es"), STOP]) == [
        {"role": "assistant", "content": None, "reasoning_content": "h", "reasoning": "h"},
        {"reasoning_content": "m", "reasoning": "m"},
        {"content": "y"},
        {"content": "es"},
    ]


def test_an_answer_that_is_all_thinking_still_has_content() -> None:
    deltas = [thought("hm"), LENGTH]
    assert said(deltas)[-1] == {"content": ""}
    assert whole(deltas)["choices"][0]["message"]["content"] == ""


def test_content_is_null_where_there_are_only_calls() -> None:
    assert whole([thought("hm"), call(0, "{}", "f"), call(1, "{}", "g"), CALLS])["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "hm",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_a_message_without_thinking_and_calls_does_not_speak_of_them() -> None:
    assert whole([Delta("y"), STOP])["choices"][0]["message"].keys() == {"role", "content", "refusal"}


@pytest.mark.parametrize(
    ("last", "functions", "reason"),
    [
        (CALLS, False, "tool_calls"),
        (CALLS, True, "function_call"),
        (LENGTH, False, "length"),
        (LENGTH, True, "length"),
    ],
)
def test_a_cut_off_call_says_length(last: Delta, functions: bool, reason: str) -> None:
    deltas = [call(0, '{"a', "f"), last]
    assert stream(deltas, functions=functions)[-1]["choices"][0]["finish_reason"] == reason
    assert whole(deltas, functions=functions)["choices"][0]["finish_reason"] == reason


def test_functions_answer_by_the_older_name() -> None:
    deltas = [call(0, "{", "f"), call(0, "}"), call(1, "{}", "g"), CALLS]
    assert said(deltas, functions=True) == [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{"}},
        {"function_call": {"arguments": "}"}},
    ]
    message = whole(deltas, functions=True)["choices"][0]["message"]
    assert message["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in message


def test_reasoning_tokens_are_counted_over_all_choices() -> None:
    details = usage_fields([USAGE, replace(USAGE, num_reasoning_tokens=3)], 2)["completion_tokens_details"]
    assert details == {"reasoning_tokens": 7, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


def test_logprobs_go_with_the_first_chunk_of_a_delta() -> None:
    chunks = ChatChunks(IDENTITY, 1, include_usage=False, token_bytes={1: b"x"}.__getitem__)
    deltas = [
        Delta("", (1,), (TokenLogprob(1, -0.5),)),  # half a marker: a token that says nothing
        replace(thought("h"), logprobs=(TokenLogprob(1, -1.0),)),
        replace(call(0, "{}", "f"), logprobs=(TokenLogprob(1, -2.0),)),
    ]
    got = [json.loads(event[6:])["choices"][0] for delta in deltas for event in chunks.events(0, delta)]
    assert [choice["logprobs"] and choice["logprobs"]["content"][0]["logprob"] for choice in got] == [
        -0.5,
        -1.0,
        -2.0,
        None,
    ]
    assert got[0]["delta"] == {"role": "assistant", "content": None}
    assert [choice["delta"].get("role") for choice in got[1:]] == [None] * 3


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Thinking, text and calls in any order after it, each cut anywhere, at most one of the three in a delta."""

    def cut(text: str) -> list[str]:
        ends = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)) | {len(text)})
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    deltas = [thought(piece) for piece in cut(draw(st.text(max_size=8)))]
    number = 0
    for part in draw(st.lists(st.text(max_size=8) | st.just(None), max_size=4)):
        if part is not None:
            deltas += [Delta(piece) for piece in cut(part)]
            continue
        first, *rest = cut(draw(st.sampled_from(['{"a": "é"}', "{}", '{"b']) | st.text(max_size=5)))
        pieces = [ToolCallDelta(number, first, f"call_{number}", "f"), *(ToolCallDelta(number, one) for one in rest)]
        together = draw(st.integers(1, len(pieces)))
        deltas.append(Delta("", tool_calls=tuple(pieces[:together])))
        deltas += [Delta("", tool_calls=(piece,)) for piece in pieces[together:]]
        number += 1
    ends = (CALLS, LENGTH) if number else (STOP, LENGTH)
    last = draw(st.sampled_from(ends))
    if draw(st.booleans()):
        deltas[-1] = replace(deltas[-1], finish_reason=last.finish_reason, usage=last.usage)
        return deltas
    return [*deltas, last]


@given(answers())
def test_a_stream_joins_to_the_message_that_comes_whole(deltas: list[Delta]) -> None:
    """By openai-python's own accumulation: no call is lost or merged, no finish reason differs."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for event in stream(deltas, usage=True):
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    joined = state.current_completion_snapshot.model_dump(exclude_none=True)
    message = joined["choices"][0]["message"]
    for one in message.get("tool_calls", ()):
        del one["index"]  # there to put the pieces together
        one["function"].pop("parsed_arguments", None)
    expected = ChatCompletion.model_validate(whole(deltas)).model_dump(exclude_none=True)
    assert message == expected["choices"][0]["message"]
    assert joined["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]
    assert joined["usage"] == expected["usage"]


@given(answers(), st.data())
def test_logprobs_of_a_stream_are_those_of_the_whole(deltas: list[Delta], data: st.DataObject) -> None:
    """Of every token, whatever it says or does not say yet."""
    token = TokenLogprob(1, -0.5)
    deltas = [replace(delta, logprobs=(token,) * data.draw(st.integers(0, 2))) for delta in deltas]
    chunks = ChatChunks(IDENTITY, 1, include_usage=False, token_bytes={1: b"x"}.__getitem__)
    blocks = b"".join(event for delta in deltas for event in chunks.events(0, delta)).split(b"\n\n")[:-2]
    choices = [json.loads(block[6:])["choices"][0] for block in blocks]
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert len(entries) == sum(len(delta.logprobs) for delta in deltas)
    assert told(choices) == told([event["choices"][0] for event in stream(deltas)])


def told(choices: Sequence[Any]) -> list[Any]:
    """What the chunks say, less what goes with the role on the first of them."""
    deltas = [choice["delta"] for choice in choices]
    said = [{key: value for key, value in delta.items() if key != "role" and value is not None} for delta in deltas]
    return [delta for delta in said if delta]


@given(answers())
def test_a_stream_keeps_its_order_however_it_is_cut(deltas: list[Delta]) -> None:
    got = said(deltas)
    assert [delta.pop("role", None) for delta in got] == ["assistant"] + [None] * (len(got) - 1)
    if got[0].get("content", "") is None:
        del got[0]["content"]
    seen: list[int] = []
    for delta in got:
        assert delta.keys() in ({"content"}, {"reasoning_content", "reasoning"}, {"tool_calls"})
        for one in delta.get("tool_calls", ()):
            if one["index"] in seen:
                assert one.keys() == {"index", "function"}
                assert one["function"].keys() == {"arguments"}
            else:
                assert one.keys() == {"index", "id", "type", "function"}
                assert one["function"] == {"name": "f", "arguments": ""}
                seen.append(one["index"])
    assert seen == list(range(len(seen)))
