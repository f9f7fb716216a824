"""Deltas → items and events: any split of an answer tells the same, and OpenAI's client folds it to the same."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response as ClientResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.openai.responses.logprobs import TextLogprobs
from vmm_server.api.openai.responses.output import Output
from vmm_server.api.openai.responses.render import Events, Identity, Response, configuration
from vmm_server.api.openai.responses.wire import ResponseRequest
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.errors import GenerationFailed

USAGE = Usage(7, 3, 9, 0.0, 0.0, 0.0, num_reasoning_tokens=4)
EVENT = TypeAdapter[Any](ResponseStreamEvent)
Said = tuple[str, str]
"""(`reasoning`, `text` or a call's name, what it says)."""


def counted_ids() -> Callable[[str], str]:
    numbers = itertools.count()
    return lambda kind: f"{kind}_{next(numbers)}"


def make_response(*, summarised: bool = False, logprobs: bool = False, **fields: object) -> Response:
    wire = ResponseRequest.model_validate({"model": "m", "input": "hi"} | fields)
    finder = TextLogprobs(lambda token: bytes([token])) if logprobs else None
    output = Output(counted_ids(), summarised=summarised, logprobs=finder)
    return Response(Identity("resp_1", 1000), configuration(wire, SamplingDefaults(), store=True), output)


def deltas_of(said: Sequence[Said], cuts: Callable[[str], list[str]], reason: FinishReason) -> list[Delta]:
    deltas: list[Delta] = []
    num_calls = 0
    for kind, text in said:
        if kind == "reasoning":
            deltas += [Delta("", reasoning=piece) for piece in cuts(text)]
        elif kind == "text":
            deltas += [Delta(piece) for piece in cuts(text)]
        else:
            first = ToolCallDelta(num_calls, id=f"call_{num_calls}", name=kind)
            pieces = [first, *(ToolCallDelta(num_calls, arguments=piece) for piece in cuts(text))]
            deltas += [Delta("", tool_calls=(piece,)) for piece in pieces]
            num_calls += 1
    return [*deltas, Delta("", finish_reason=reason, usage=USAGE)]


def streamed(response: Response, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    events = Events(response)
    raw = [*events.start(), *(event for delta in deltas for event in events.add(delta))]
    raw.append(events.end(response.whole(1001)))
    found = []
    for block in raw:
        name, data = block.decode().rstrip("\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def whole(response: Response, deltas: Sequence[Delta]) -> dict[str, Any]:
    for delta in deltas:
        response.add(delta)
    body: dict[str, Any] = json.loads(json.dumps(response.whole(1001)))
    return body


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
answers = st.builds(
    lambda thoughts, parts: [("reasoning", thoughts)] * bool(thoughts) + parts,
    st.one_of(st.just(""), words),
    st.lists(st.tuples(st.sampled_from(["text", "get_weather", "f"]), words), max_size=4),
)


@st.composite
def cutters(draw: st.DrawFn) -> Callable[[str], list[str]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))

    def cut(text: str) -> list[str]:
        pieces, steps = [], itertools.cycle(sizes)
        while text:
            size = next(steps)
            pieces.append(text[:size])
            text = text[size:]
        return pieces

    return cut


@given(answers, cutters(), st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]), st.booleans())
@settings(max_examples=150)
def test_a_stream_folds_to_the_whole_answer(
    said: list[Said], cut: Callable[[str], list[str]], reason: FinishReason, summarised: bool
) -> None:
    deltas = deltas_of(said, cut, reason)
    expected = whole(make_response(summarised=summarised), deltas_of(said, lambda text: [text], reason))
    assert whole(make_response(summarised=summarised), deltas) == expected
    events = streamed(make_response(summarised=summarised), deltas)
    assert events[-1]["response"] == expected

    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENT.validate_python(event))
    folded = state._ResponseStreamState__current_snapshot.output  # type: ignore[attr-defined]
    for item, other in zip(folded, expected["output"], strict=True):
        assert item.id == other["id"]
        if item.type == "message":
            assert [part.text for part in item.content] == [part["text"] for part in other["content"]]
        elif item.type == "function_call":
            assert (item.call_id, item.name, item.arguments) == (other["call_id"], other["name"], other["arguments"])
    completed = state._completed_response
    assert (completed is None) == (reason is FinishReason.LENGTH)
    if completed is not None:
        assert completed.output_text == "".join(text for kind, text in said if kind == "text")


@given(answers, cutters())
def test_events_come_in_openais_order(said: list[Said], cut: Callable[[str], list[str]]) -> None:
    events = streamed(make_response(), deltas_of(said, cut, FinishReason.STOP))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    types = [event["type"].removeprefix("response.") for event in events]
    assert types[:2] == ["created", "in_progress"]
    assert types[-1] == "completed"
    starts = [index for index, kind in enumerate(types) if kind == "output_item.added"] + [len(types) - 1]
    output = events[-1]["response"]["output"]
    assert len(starts) == len(output) + 1
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        kinds = list(dict.fromkeys(types[start:end]))
        assert kinds in (
            [
                "output_item.added",
                "content_part.added",
                *(["output_text.delta"] if "output_text.delta" in kinds else []),  # an empty message has none
                "output_text.done",
                "content_part.done",
                "output_item.done",
            ],
            [
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
            ],
            [
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
            ],
        )
        assert {event["output_index"] for event in events[start:end]} == {number}
        assert events[end - 1]["item"] == output[number]
        ids = {event.get("item_id") or event["item"]["id"] for event in events[start:end]}
        assert ids == {output[number]["id"]}


def test_thinking_that_is_asked_for_as_a_summary_goes_by_that_name() -> None:
    deltas = [Delta("", reasoning="hm"), Delta("ah", finish_reason=FinishReason.STOP, usage=USAGE)]
    events = streamed(make_response(summarised=True), deltas)
    assert [event["type"] for event in events[3:7]] == [
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]
    reasoning = events[-1]["response"]["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert reasoning["content"] == []


def statuses(said: Sequence[Said], reason: FinishReason) -> list[tuple[str, str]]:
    body = whole(make_response(), deltas_of(said, lambda text: [text], reason))
    return [(item["type"], item["status"]) for item in body["output"]]


def test_only_what_was_cut_off_is_incomplete() -> None:
    said = [("reasoning", "hm"), ("text", "ah"), ("f", "{")]
    assert statuses(said, FinishReason.LENGTH) == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]
    assert {status for _, status in statuses(said, FinishReason.TOOL_CALLS)} == {"completed"}
    assert statuses([("reasoning", "hm")], FinishReason.LENGTH) == [("reasoning", "incomplete")]


def test_an_answer_that_says_nothing_is_an_empty_message() -> None:
    assert statuses([], FinishReason.STOP) == [("message", "completed")]
    assert statuses([], FinishReason.LENGTH) == [("message", "incomplete")]
    assert statuses([("reasoning", "hm")], FinishReason.STOP) == [("reasoning", "completed"), ("message", "completed")]


def test_a_response_says_why_it_is_incomplete_and_what_it_took() -> None:
    body = whole(make_response(), deltas_of([("text", "ah")], lambda text: [text], FinishReason.LENGTH))
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["completed_at"] is None
    assert body["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 16,
    }
    assert ClientResponse.model_validate(body).output_text == "ah"


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR, None])
def test_what_was_broken_off_is_no_answer(reason: FinishReason | None) -> None:
    with pytest.raises(GenerationFailed):
        whole(make_response(), [Delta("ah", finish_reason=reason)])


def test_a_failed_response_has_the_error_and_what_there_was() -> None:
    response = make_response()
    response.add(Delta("", reasoning="hm"))
    response.add(Delta("ah"))
    body = response.failed(GenerationFailed("it broke"))
    assert (body["status"], body["store"], body["usage"]) == ("failed", False, None)
    assert body["error"] == {"code": "server_error", "message": "it broke"}
    items: Any = body["output"]
    assert [item["status"] for item in items] == ["completed", "incomplete"]
    ClientResponse.model_validate(body)
    assert response.failed(ValueError("secret"))["error"] == {
        "code": "server_error",
        "message": "internal server error",
    }


def logprobs_of(*deltas: Delta) -> list[str]:
    body = whole(make_response(logprobs=True), [*deltas, Delta("", finish_reason=FinishReason.STOP, usage=USAGE)])
    return [
        entry["token"]
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
        for entry in part["logprobs"]
    ]


def tokens(text: str) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(byte, -0.5, ((byte, -0.5),)) for byte in text.encode())


def test_logprobs_are_those_of_the_text() -> None:
    assert logprobs_of(Delta("ah", logprobs=tokens("ah"))) == ["a", "h"]
    thought = Delta("", reasoning="hm", logprobs=tokens("<t>hm</t>ah"))
    assert logprobs_of(thought, Delta("ah")) == ["a", "h"]
    assert logprobs_of(Delta("", logprobs=tokens("a")), Delta("ah", logprobs=tokens("h!")), Delta("!")) == [
        "a",
        "h",
        "!",
    ]
    assert logprobs_of(Delta("\ufffd", logprobs=tokens("é")[:1])) == ["\ufffd"]


def test_logprobs_are_not_those_of_the_same_words_in_the_thinking() -> None:
    drawn = (*tokens("<t>ah</t>"), *(TokenLogprob(byte, -9.0) for byte in b"ah"))
    deltas = [Delta("", reasoning="ah", logprobs=drawn), Delta("ah", finish_reason=FinishReason.STOP, usage=USAGE)]
    part = whole(make_response(logprobs=True), deltas)["output"][1]["content"][0]
    assert [entry["logprob"] for entry in part["logprobs"]] == [-9.0, -9.0]


def test_the_tokens_of_a_call_are_not_those_of_the_text_before_it() -> None:
    call = ToolCallDelta(0, "{}", "call_0", "f")
    assert logprobs_of(Delta("ah", logprobs=tokens("ah")), Delta("", tool_calls=(call,), logprobs=tokens("<f>{}"))) == [
        "a",
        "h",
    ]


def test_streamed_logprobs_are_the_same() -> None:
    deltas = [Delta(piece, logprobs=tokens(piece)) for piece in ("a", "hé", "!")]
    events = streamed(make_response(logprobs=True), [*deltas, Delta("", finish_reason=FinishReason.STOP, usage=USAGE)])
    part = events[-1]["response"]["output"][0]["content"][0]
    by_delta = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert part["logprobs"] == done["logprobs"] == [entry for entries in by_delta for entry in entries]
    assert part["logprobs"][0] == {
        "token": "a",
        "bytes": [97],
        "logprob": -0.5,
        "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5}],
    }


def test_the_configuration_is_repeated() -> None:
    asked: dict[str, Any] = {
        "instructions": "be brief",
        "max_output_tokens": 5,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "previous_response_id": "resp_0",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "user": "u",
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 3,
        "max_tool_calls": 2,
        "tool_choice": {"type": "function", "name": "f"},
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}],
    }
    body = make_response(
        **asked,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    ).in_progress()
    ClientResponse.model_validate(body)
    tool = asked["tools"][0] | {"strict": True}
    assert asked | {"tools": [tool]} == {name: body[name] for name in asked}
    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert body["text"] == {
        "format": {
            "type": "json_schema",
            "name": "n",
            "description": None,
            "schema": {"type": "object"},
            "strict": True,
        },
        "verbosity": "medium",
    }


def test_what_was_left_out_is_repeated_as_it_is() -> None:
    wire = ResponseRequest(model="m")
    body = configuration(wire, SamplingDefaults(temperature=0.25), store=False)
    expected = {"temperature": 0.25, "top_p": 1.0, "tool_choice": "auto", "tools": [], "truncation": "disabled"}
    assert {name: body[name] for name in expected} == expected
    assert body["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert (body["store"], body["metadata"], body["parallel_tool_calls"]) == (False, {}, True)
