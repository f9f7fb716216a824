"""Deltas → Ollama's objects and lines, in golden shapes."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.gathered import Gathered
from vmm_server.api.ollama.describe import parameter_count
from vmm_server.api.ollama.render import Lines, Reply, chat_piece, generate_piece, metrics, timestamp
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import GenerationFailed

NOW = "2026-11-21T10:00:00.000000Z"
USAGE = Usage(
    num_prompt_tokens=10, num_cached_tokens=8, num_generated_tokens=2, queued_s=0.5, prefill_s=0.25, decode_s=0.125
)
METRICS = {
    "total_duration": 1_875_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 10,
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


def test_an_answer_that_was_broken_off_is_no_answer() -> None:
    with pytest.raises(GenerationFailed):
        lines(reply(), Delta("H"), Delta("", finish_reason=FinishReason.ABORT))


@given(st.tuples(*(st.floats(0, 1000) for _ in range(4))))
def test_durations_add_up_to_the_total(seconds: tuple[float, float, float, float]) -> None:
    load, queued, prefill, decode = seconds
    got: dict[str, Any] = metrics(Usage(1, 0, 1, queued, prefill, decode), load)
    parts = sum(got.get(name, 0) for name in ("load_duration", "prompt_eval_duration", "eval_duration"))
    assert got.get("total_duration", 0) == parts + int(queued * 1e9)
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
