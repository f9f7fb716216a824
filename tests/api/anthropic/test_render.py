"""Deltas → Anthropic's messages and events, in golden shapes that the official client's types take."""

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from vmm_adapters.types import FinishReason
from vmm_server.api.anthropic.render import Identity, MessageEvents, message
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.errors import GenerationFailed

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
IDENTITY = Identity(id="msg_1", model="m", num_prompt_tokens=10, max_tokens=9)
USAGE = Usage(10, 8, 5, 0.0, 0.0, 0.0, num_reasoning_tokens=2)
USAGE_FIELDS = {
    "input_tokens": 2,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 8,
    "output_tokens": 5,
    "output_tokens_details": {"thinking_tokens": 2},
}


def end(reason: FinishReason = FinishReason.STOP, text: str = "", **usage: Any) -> Delta:
    fields = {name: getattr(USAGE, name) for name in USAGE.__slots__} | usage
    return Delta(text, finish_reason=reason, usage=Usage(**fields))


def stream(*deltas: Delta, identity: Identity = IDENTITY) -> list[Any]:
    events = MessageEvents(identity)
    got = []
    for delta in deltas:
        for raw in events.events(delta):
            name, line, *rest = raw.decode().split("\n")
            assert rest == ["", ""]
            body = json.loads(line.removeprefix("data: "))
            assert name == f"event: {body['type']}"
            EVENT.validate_python(body)
            got.append(body)
    return got


ANSWER = (
    Delta("", reasoning="h"),
    Delta("", (1,)),
    Delta("", reasoning="m"),
    Delta("let me"),
    Delta(" see"),
    Delta("", tool_calls=(ToolCallDelta(0, id="c1", name="f"), ToolCallDelta(0, '{"a":'))),
    Delta("", tool_calls=(ToolCallDelta(0, "1}"), ToolCallDelta(1, id="c2", name="g"), ToolCallDelta(1, "{}"))),
    end(FinishReason.TOOL_CALLS),
)
CONTENT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "text", "text": "let me see"},
    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
]


def test_a_message_streams_in_the_clients_order() -> None:
    def delta(index: int, kind: str, key: str, piece: str) -> dict[str, object]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: piece}}

    def start(index: int, **block: object) -> dict[str, object]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def stop(index: int) -> dict[str, object]:
        return {"type": "content_block_stop", "index": index}

    started: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 0},
    }
    assert stream(*ANSWER) == [
        {"type": "message_start", "message": started},
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", "thinking", "h"),
        delta(0, "thinking_delta", "thinking", "m"),
        stop(0),
        start(1, type="text", text=""),
        delta(1, "text_delta", "text", "let me"),
        delta(1, "text_delta", "text", " see"),
        stop(1),
        start(2, type="tool_use", id="c1", name="f", input={}),
        delta(2, "input_json_delta", "partial_json", '{"a":'),
        delta(2, "input_json_delta", "partial_json", "1}"),
        stop(2),
        start(3, type="tool_use", id="c2", name="g", input={}),
        delta(3, "input_json_delta", "partial_json", "{}"),
        stop(3),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": USAGE_FIELDS,
        },
        {"type": "message_stop"},
    ]


def whole(*deltas: Delta, identity: Identity = IDENTITY) -> Any:
    got = json.loads(msgspec.json.encode(message(identity, deltas)))
    Message.model_validate(got)
    return got


def test_a_whole_message_has_the_same_content() -> None:
    assert whole(*ANSWER) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": CONTENT,
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": USAGE_FIELDS,
    }


def test_thinking_that_is_not_to_be_shown_leaves_an_empty_block() -> None:
    hidden = Identity("msg_1", "m", 10, 9, shows_thinking=False)
    assert whole(*ANSWER, identity=hidden)["content"] == [CONTENT[0] | {"thinking": ""}, *CONTENT[1:]]
    events = stream(*ANSWER, identity=hidden)
    assert not [one for one in events if one.get("delta", {}).get("type") == "thinking_delta"]
    assert accumulated(events)["content"][0] == CONTENT[0] | {"thinking": ""}


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (end(), "end_turn", None),
        (end(stop_string="##"), "stop_sequence", "##"),
        (end(FinishReason.TOOL_CALLS), "tool_use", None),
        (end(FinishReason.TOOL_CALLS, stop_string="##"), "tool_use", None),
        (end(FinishReason.LENGTH, num_generated_tokens=9), "max_tokens", None),
        (end(FinishReason.LENGTH, num_generated_tokens=8), "model_context_window_exceeded", None),
    ],
)
def test_the_reason_for_the_end(last: Delta, reason: str, sequence: str | None) -> None:
    got = whole(Delta("x"), last)
    assert (got["stop_reason"], got["stop_sequence"]) == (reason, sequence)
    assert stream(Delta("x"), last)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_an_empty_answer_has_no_block() -> None:
    assert whole(end())["content"] == []
    assert [event["type"] for event in stream(end())] == ["message_start", "message_delta", "message_stop"]


def test_an_answer_that_was_broken_off_is_no_answer() -> None:
    broken = Delta("", finish_reason=FinishReason.ABORT, usage=USAGE)
    for deltas in ((Delta("x"), broken), (Delta("x"),), ()):
        with pytest.raises(GenerationFailed):
            message(IDENTITY, deltas)
    with pytest.raises(GenerationFailed):
        stream(Delta("x"), broken)


def accumulated(events: list[Any]) -> Any:
    """What a client makes of a stream."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    got = events[0]["message"]
    open_block: int | None = None
    arguments = ""
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert (open_block, event["index"]) == (None, len(got["content"]))
                open_block, arguments = event["index"], ""
                got["content"].append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == open_block
                block, delta = got["content"][-1], event["delta"]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    block[block["type"]] += delta[block["type"]]
            case "content_block_stop":
                assert event["index"] == open_block
                if got["content"][-1]["type"] == "tool_use":
                    got["content"][-1]["input"] = json.loads(arguments or "{}")
                open_block = None
            case "message_delta":
                assert open_block is None
                got |= event["delta"] | {"usage": got["usage"] | event["usage"]}
    return got


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Thinking, then text and calls in any order, in any pieces."""
    pieces = st.text('ab\n"ä', max_size=3)
    deltas = [Delta("", reasoning=piece) for piece in draw(st.lists(pieces, max_size=3))]
    for number, is_call in enumerate(draw(st.lists(st.booleans(), max_size=4))):
        if is_call:
            arguments = json.dumps(draw(st.dictionaries(pieces, st.integers() | pieces, max_size=2)))
            cut = draw(st.integers(0, len(arguments)))
            first = (ToolCallDelta(number, id=f"c{number}", name="f"), ToolCallDelta(number, arguments[:cut]))
            together = draw(st.booleans())
            deltas += [Delta("", tool_calls=first)] if together else [Delta("", tool_calls=(one,)) for one in first]
            deltas.append(Delta("", tool_calls=(ToolCallDelta(number, arguments[cut:]),)))
        else:
            deltas += [Delta(piece, (1,)) for piece in draw(st.lists(pieces, max_size=3))]
    return [*deltas, end(draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS])))]


@given(answers())
def test_a_stream_says_what_a_whole_message_says(deltas: list[Delta]) -> None:
    assert accumulated(stream(*deltas)) == whole(*deltas)
