"""Deltas → Ollama's objects and lines, in golden shapes."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.gathered import Gathered
from vmm_server.api.ollama.render import Lines, Reply, chat_piece, generate_piece, metrics, timestamp
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.errors import GenerationFailed
from vmm_server.models.shown import parameter_count

NOW = "2026-11-21T10:00:00.000000Z"
USAGE = Usage(
    num_prompt_tokens=10, num_cached_tokens=8, num_generated_tokens=2, queued_s=0.5, prefill_s=0.25, decode_s=0.125
)
METRICS = {
    "total_duration": 1_875_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 10,
    "prompt_eval_cached_count": 8,
    "prompt_eval_duration": 250_000_000,
    "eval_count": 2,
    "eval_duration": 125_000_000,
}
LAST = Delta("", finish_reason=FinishReason.STOP, usage=USAGE)


def reply(**changes: Any) -> Reply:
    fields: dict[str, Any] = {
        "model": 'm"x',
        "piece": generate_piece,
        "now": lambda: datetime(2026, 11, 21, 10, tzinfo=UTC),
        "load_s": 1.0,
    }
    return Reply(**(fields | changes))


def lines(form: Reply, *deltas: Delta) -> list[Any]:
    stream = Lines(form)
    raw = b"".join(line for delta in deltas for line in stream.lines(delta))
    assert raw.endswith(b"\n")
    assert b"\n\n" not in raw
    return [json.loads(line) for line in raw.splitlines()]


def test_generate_streams_pieces_and_one_final_line() -> None:
    form = reply(prompt_tokens=(7, 8))
    got = lines(form, Delta('H"\n', (1,)), Delta("", (2,)), Delta("i", (3,)), LAST)
    assert got == [
        {"model": 'm"x', "created_at": NOW, "response": 'H"\n', "done": False},
        {"model": 'm"x', "created_at": NOW, "response": "i", "done": False},
        {
            "model": 'm"x',
            "created_at": NOW,
            "response": "",
            "done": True,
            "done_reason": "stop",
            "context": [7, 8, 1, 2, 3],
            **METRICS,
        },
    ]


def test_chat_streams_messages_and_has_no_context() -> None:
    last = Delta("i", finish_reason=FinishReason.LENGTH, usage=USAGE)
    assert lines(reply(piece=chat_piece), Delta("H"), last) == [
        {"model": 'm"x', "created_at": NOW, "message": {"role": "assistant", "content": "H"}, "done": False},
        {"model": 'm"x', "created_at": NOW, "message": {"role": "assistant", "content": "i"}, "done": False},
        {
            "model": 'm"x',
            "created_at": NOW,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length",
            **METRICS,
        },
    ]


def test_a_whole_answer_has_the_same_fields() -> None:
    gathered = Gathered(["H", "i"], [1, 2], [], FinishReason.STOP, USAGE)
    assert reply(prompt_tokens=(7,)).whole(gathered) == {
        "model": 'm"x',
        "created_at": NOW,
        "response": "Hi",
        "done": True,
        "done_reason": "stop",
        "context": [7, 1, 2],
        **METRICS,
    }


def test_loading_is_one_object_without_metrics() -> None:
    assert reply(piece=chat_piece).idle("load") == {
        "model": 'm"x',
        "created_at": NOW,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }


def test_logprobs_are_a_flat_array_on_the_line() -> None:
    form = reply(token_bytes={1: b"H", 2: b"\xe2"}.__getitem__)
    got = lines(form, Delta("H", (1,), (TokenLogprob(1, -0.5, ((1, -0.5), (2, -3.0))),)), Delta("", (2,)), LAST)
    assert got[0]["logprobs"] == [
        {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.5, "bytes": [72]},
                {"token": "\ufffd", "logprob": -3.0, "bytes": [226]},
            ],
        }
    ]
    assert len(got) == 2


def call(index: int, name: str, arguments: object) -> dict[str, object]:
    return {"id": f"call_{index}", "function": {"index": index, "name": name, "arguments": arguments}}


CALLS = (
    Delta("", reasoning="h", token_ids=(1,)),
    Delta("", reasoning="m"),
    Delta("let me"),
    Delta("", tool_calls=(ToolCallDelta(0, id="call_0", name="f"), ToolCallDelta(0, '{"b": 1.0,'))),
    Delta("", tool_calls=(ToolCallDelta(0, ' "a": []}'), ToolCallDelta(1, id="call_1", name="g"))),
    Delta("", tool_calls=(ToolCallDelta(1, "{}"),)),
    Delta(" see"),
    Delta(
        "",
        tool_calls=(ToolCallDelta(2, id="call_2", name="f"), ToolCallDelta(2, "{}")),
        finish_reason=FinishReason.TOOL_CALLS,
        usage=USAGE,
    ),
)


def test_thinking_and_whole_calls_stream_in_lines_of_their_own() -> None:
    got = lines(reply(piece=chat_piece), *CALLS)
    assert [line["message"] for line in got] == [
        {"role": "assistant", "content": "", "thinking": "h"},
        {"role": "assistant", "content": "", "thinking": "m"},
        {"role": "assistant", "content": "let me"},
        {"role": "assistant", "content": "", "tool_calls": [call(0, "f", {"b": 1.0, "a": []})]},
        {"role": "assistant", "content": "", "tool_calls": [call(1, "g", {})]},
        {"role": "assistant", "content": " see"},
        {"role": "assistant", "content": "", "tool_calls": [call(2, "f", {})]},
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in got] == [False] * 7 + [True]
    assert got[-1]["done_reason"] == "stop"


def test_arguments_keep_their_spelling() -> None:
    stream = Lines(reply(piece=chat_piece))
    raw = b"".join(line for delta in CALLS for line in stream.lines(delta))
    assert b'"arguments":{"b": 1.0, "a": []}' in raw


def gathered(deltas: Sequence[Delta]) -> Gathered:
    whole = Gathered()
    for delta in deltas:
        whole.add(delta)
    return whole


def test_a_whole_answer_has_thinking_and_calls() -> None:
    got = json.loads(msgspec.json.encode(reply(piece=chat_piece).whole(gathered(CALLS))))
    assert (got["done"], got["done_reason"]) == (True, "stop")
    assert got["message"] == {
        "role": "assistant",
        "content": "let me see",
        "thinking": "hm",
        "tool_calls": [call(0, "f", {"b": 1.0, "a": []}), call(1, "g", {}), call(2, "f", {})],
    }


def test_generate_says_thinking_beside_the_response() -> None:
    deltas = (Delta("", reasoning="hm"), Delta("yes"), LAST)
    got = lines(reply(), *deltas)
    assert [(line["response"], line.get("thinking")) for line in got] == [("", "hm"), ("yes", None), ("", None)]
    whole = reply().whole(gathered(deltas))
    assert (whole["response"], whole["thinking"]) == ("yes", "hm")


def test_a_call_that_was_cut_off_is_no_call() -> None:
    cut = Delta(
        "",
        tool_calls=(ToolCallDelta(0, id="call_0", name="rm"), ToolCallDelta(0, '{"files": ["a", "b')),
        finish_reason=FinishReason.LENGTH,
        usage=USAGE,
    )
    got = lines(reply(piece=chat_piece), cut)
    assert [line["message"] for line in got] == [
        {"role": "assistant", "content": '{"files": ["a", "b'},
        {"role": "assistant", "content": ""},
    ]
    whole = reply(piece=chat_piece).whole(gathered([cut]))
    assert whole["message"] == {"role": "assistant", "content": '{"files": ["a", "b'}
    assert whole["done_reason"] == got[-1]["done_reason"] == "length"


def test_logprobs_of_thinking_are_on_its_line() -> None:
    form = reply(token_bytes={1: b"H", 2: b"!"}.__getitem__)
    thought = Delta("", (1,), (TokenLogprob(1, -0.5),), reasoning="H")
    called = Delta("", (2,), (TokenLogprob(2, -1.0),), tool_calls=(ToolCallDelta(0, id="c", name="f"),))
    got = lines(form, thought, called, LAST)
    assert [line["logprobs"][0]["token"] for line in got[:2]] == ["H", "!"]
    assert (got[0]["thinking"], got[1]["response"]) == ("H", "")


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Thinking, then text and calls in any order, in any pieces; the last call may be cut off."""
    pieces = st.text('ab\n"', max_size=3)
    deltas = [Delta("", reasoning=piece) for piece in draw(st.lists(pieces, max_size=3))]
    kinds = draw(st.lists(st.booleans(), max_size=4))
    is_cut = bool(kinds) and kinds[-1] and draw(st.booleans())
    for position, is_call in enumerate(kinds):
        index = sum(kinds[:position])
        if not is_call:
            deltas += [Delta(piece, (1,)) for piece in draw(st.lists(pieces, max_size=3))]
            continue
        value = draw(st.dictionaries(pieces, st.integers() | pieces, max_size=2))
        arguments = json.dumps(value, indent=draw(st.sampled_from([None, 1])))
        if is_cut and position == len(kinds) - 1:
            arguments = arguments[:-1]
        at = draw(st.integers(0, len(arguments)))
        deltas.append(Delta("", tool_calls=(ToolCallDelta(index, id=f"call_{index}", name="f"),)))
        deltas += [Delta("", tool_calls=(ToolCallDelta(index, text),)) for text in (arguments[:at], arguments[at:])]
    return [*deltas, Delta("", finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP, usage=USAGE)]


@given(answers())
def test_a_stream_says_what_a_whole_answer_says(deltas: list[Delta]) -> None:
    streamed = [line["message"] for line in lines(reply(piece=chat_piece), *deltas)]
    whole = json.loads(msgspec.json.encode(reply(piece=chat_piece).whole(gathered(deltas))))["message"]
    assert "".join(message["content"] for message in streamed) == whole["content"]
    assert "".join(message.get("thinking", "") for message in streamed) == whole.get("thinking", "")
    calls = [entry for message in streamed for entry in message.get("tool_calls", ())]
    assert calls == whole.get("tool_calls", [])


def test_an_answer_that_was_broken_off_is_no_answer() -> None:
    with pytest.raises(GenerationFailed):
        lines(reply(), Delta("H"), Delta("", finish_reason=FinishReason.ABORT))


@given(st.tuples(*[st.floats(0, 1e5)] * 5))
def test_durations_add_up_to_the_total(seconds: tuple[float, float, float, float, float]) -> None:
    load, prepare, queued, prefill, decode = seconds
    got: dict[str, Any] = metrics(Usage(2, 1, 1, queued, prefill, decode), load, prepare)
    parts = sum(got.get(name, 0) for name in ("load_duration", "prompt_eval_duration", "eval_duration"))
    assert got.get("total_duration", 0) == parts + int(prepare * 1e9) + int(queued * 1e9)
    assert (got["prompt_eval_count"], got["prompt_eval_cached_count"]) == (2, 1)
    assert all(isinstance(value, int) and value > 0 for value in got.values())


def test_timestamps_are_rfc_3339_in_utc() -> None:
    moment = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(moment) == "2026-01-02T03:04:05.000000Z"


def test_parameter_counts_are_read_from_words() -> None:
    assert [parameter_count(size) for size in ("135M", "1.07B", "7b", "")] == [
        135_000_000,
        1_070_000_000,
        7 * 10**9,
        None,
    ]
