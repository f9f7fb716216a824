"""An engine's deltas → thinking, calls and content, in the order they were said."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage, merge
from vmm_server.prompt.answer import AnswerReader, ThinkingState, thinking_state
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat
from vmm_server.prompt.formats.hermes import Hermes
from vmm_server.prompt.formats.reasoning import REASONING_FORMATS
from vmm_server.requests import Tool

NONE, POSSIBLE, OPEN = ThinkingState.NONE, ThinkingState.POSSIBLE, ThinkingState.OPEN
THINK = ReasoningFormat("<think>", "</think>")
THINKING = ChatFormat(Hermes(), THINK, tools_in_template=True)
PLAIN = ChatFormat(Hermes(), None, tools_in_template=True)
TOOLS = (Tool("now"), Tool("get_weather"))
USAGE = Usage(7, 0, 40, 0.0, 0.1, 0.2)
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'


def reader(format: ChatFormat = THINKING, thinking: ThinkingState = NONE, tools: Sequence[Tool] = ()) -> AnswerReader:
    """One whose tokens are bytes."""
    numbers = itertools.count()
    return AnswerReader(
        format,
        thinking=thinking,
        tools=tools,
        token_bytes=lambda token_id: bytes([token_id]),
        new_call_id=lambda: f"call_{next(numbers)}",
    )


def deltas(text: str, finish: FinishReason = FinishReason.STOP, cuts: Sequence[int] | None = None) -> Iterator[Delta]:
    """An engine that says a text in ASCII, a token a character; all characters apart, or cut there."""
    edges = [0, *(range(1, len(text)) if cuts is None else sorted(cuts)), len(text)]
    for start, end in itertools.pairwise(edges):
        ids = tuple(text[start:end].encode())
        yield Delta(text[start:end], ids, tuple(TokenLogprob(token_id, -1.0) for token_id in ids))
    yield Delta("", finish_reason=finish, usage=USAGE)


def answer(one: AnswerReader, said: Iterator[Delta]) -> list[Delta]:
    return [out for delta in said for out in one.read(delta)]


def told(out: Sequence[Delta]) -> tuple[str, str, list[tuple[str | None, str]]]:
    """(thinking, content, calls)."""
    calls: list[tuple[str | None, str]] = []
    for call in (call for delta in out for call in delta.tool_calls):
        if call.name is not None:
            assert (call.index, call.id, call.arguments) == (len(calls), f"call_{len(calls)}", "")
            calls.append((call.name, ""))
        assert call.index == len(calls) - 1
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    return "".join(delta.reasoning for delta in out), "".join(delta.text for delta in out), calls


CASES: list[tuple[ThinkingState, str, tuple[str, str, list[tuple[str | None, str]]], int]] = [
    (NONE, "Hello <think>no</think>", ("", "Hello <think>no</think>", []), 0),
    (POSSIBLE, "Hello <think>no</think>", ("", "Hello <think>no</think>", []), 0),
    (POSSIBLE, "  <thin", ("", "  <thin", []), 0),
    (POSSIBLE, "<think>\nso so\n</think>\n\nHello", ("so so", "Hello", []), 22),
    (POSSIBLE, "\n<think>so </thin></think> Hello</think>", ("so </thin>", "Hello</think>", []), 26),
    (POSSIBLE, "<think>\n\n</think>\n\n", ("", "", []), 17),
    (POSSIBLE, "<think>so", ("so", "", []), 9),
    (POSSIBLE, "<think>so\n</th", ("so\n</th", "", []), 14),
    (OPEN, "so\n</think>\nHello", ("so", "Hello", []), 11),
    (OPEN, "<think>\nso</think>Hello", ("so", "Hello", []), 18),
    (OPEN, " so < so", ("so < so", "", []), 8),
    (OPEN, "</think>Hello", ("", "Hello", []), 8),
    (NONE, f"Well.\n{CALL}", ("", "Well.", [("now", '{"a": 1}')]), 0),
    (OPEN, f"so {CALL}</think>\n\n{CALL}\n{CALL}", (f"so {CALL}", "", [("now", '{"a": 1}')] * 2), 3 + len(CALL) + 8),
    (POSSIBLE, f"{CALL} then", ("", "then", [("now", '{"a": 1}')]), 0),
    (NONE, "a <tool_call>", ("", "a <tool_call>", []), 0),
]


@pytest.mark.parametrize(("thinking", "text", "expected", "num_reasoning_tokens"), CASES)
def test_answers_are_told_apart_however_they_are_cut(
    thinking: ThinkingState,
    text: str,
    expected: tuple[str, str, list[tuple[str | None, str]]],
    num_reasoning_tokens: int,
) -> None:
    rng = random.Random(text)
    cuts: list[Sequence[int] | None] = [None, ()]
    cuts += [rng.choices(range(len(text) + 1), k=rng.randint(1, 5)) for _ in range(30)]
    for cut in cuts:
        out = answer(reader(thinking=thinking, tools=TOOLS), deltas(text, cuts=cut))
        assert told(out) == expected
        usage = out[-1].usage
        assert usage is not None
        assert usage.num_reasoning_tokens == num_reasoning_tokens
        assert out[-1].finish_reason is (FinishReason.TOOL_CALLS if expected[2] else FinishReason.STOP)
        assert all(delta.finish_reason is None and delta.usage is None for delta in out[:-1])
        assert all(bool(delta.text) + bool(delta.reasoning) + bool(delta.tool_calls) <= 1 for delta in out)


@pytest.mark.parametrize(
    ("text", "thought", "content"),
    [
        ("<think>so</think>\n<response>\nHi </resp>\n</response>\n", "so", "Hi </resp>"),
        ("<think>so</think><response>Hi", "so", "Hi"),
        ("<think>so</think><response>Hi</res", "so", "Hi</res"),
        ("<think>so</think> <resp", "so", "<resp"),
        ("<think>so</think> <resp>Hi</response>", "so", "<resp>Hi</response>"),
        ("<think>so</think><response>Hi</response> more </response>", "so", "Himore </response>"),
        ("<response>Hi</response>", "", "<response>Hi</response>"),
        ("<think>so", "so", ""),
    ],
)
def test_the_answers_own_tag_is_not_shown(text: str, thought: str, content: str) -> None:
    format = replace(THINKING, reasoning=REASONING_FORMATS["granite_tags"])
    for cuts in (None, (), *((cut,) for cut in range(len(text)))):
        out = answer(reader(format, POSSIBLE, TOOLS), deltas(text, cuts=cuts))
        assert told(out) == (thought, content, [])


def test_one_delta_that_says_everything() -> None:
    text = f"<think>so</think>Well.\n{CALL}"
    whole = merge(list(deltas(text)))
    out = reader(thinking=POSSIBLE, tools=TOOLS).read(whole)
    assert [(delta.reasoning, delta.text, bool(delta.tool_calls)) for delta in out] == [
        ("so", "", False),
        ("", "Well.", False),
        ("", "", True),
    ]
    assert out[0].token_ids == whole.token_ids
    assert out[0].logprobs == whole.logprobs
    assert not any(delta.token_ids or delta.logprobs for delta in out[1:])
    assert out[2].tool_calls == (ToolCallDelta(0, id="call_0", name="now"), ToolCallDelta(0, '{"a": 1}'))


def test_token_ids_and_logprobs_come_when_the_engine_says_them() -> None:
    said = list(deltas(f"<think>so</think>Well.\n{CALL}"))
    one = reader(thinking=POSSIBLE, tools=TOOLS)
    for delta in said:
        first, *others = one.read(delta)
        assert (first.token_ids, first.logprobs) == (delta.token_ids, delta.logprobs)
        assert not any(other.token_ids or other.logprobs for other in others)


def test_prompt_logprobs_pass() -> None:
    scores = (TokenLogprob(1, -2.0),)
    (out,) = reader(thinking=POSSIBLE, tools=TOOLS).read(Delta("", prompt_logprobs=scores))
    assert out.prompt_logprobs == scores


def test_arguments_come_as_they_are_written() -> None:
    one = reader(tools=TOOLS)
    pieces = [call.arguments for delta in deltas(CALL) for out in one.read(delta) for call in out.tool_calls]
    assert pieces == ["", *'{"a": ', "1}"]  # a number is certain when it ends


def test_without_tools_nothing_is_a_call() -> None:
    out = answer(reader(), deltas(CALL))
    assert told(out) == ("", CALL, [])
    assert out[-1].finish_reason is FinishReason.STOP


def test_a_tool_that_may_not_be_called_is_none() -> None:
    assert told(answer(reader(tools=TOOLS[1:]), deltas(CALL))) == ("", CALL, [])


def test_what_needs_no_reading_passes_untouched() -> None:
    one = reader()
    for delta in deltas("Hello <think>"):
        (same,) = one.read(delta)
        assert same is delta if delta.finish_reason is None else same == delta
    delta = Delta("on", (1,))
    assert reader(tools=TOOLS).read(delta)[0] is delta
    past = reader(thinking=OPEN)
    answer(past, deltas("so</think>now"))
    assert past.read(delta)[0] is delta


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.ABORT])
def test_a_cut_off_call_does_not_change_the_reason(finish: FinishReason) -> None:
    out = answer(reader(tools=TOOLS), deltas(CALL[:47], finish))
    assert told(out)[2] == [("now", '{"a": ')]
    assert out[-1].finish_reason is finish


def test_a_model_that_cannot_think_does_not() -> None:
    text = "<think>so</think>Hello"
    out = answer(reader(PLAIN, POSSIBLE), deltas(text))
    assert told(out) == ("", text, [])
    assert out[-1].usage == USAGE


def test_tokens_may_hold_a_marker_and_more() -> None:
    words = [b"<th", b"ink>\n", b"so", b"</thi", b"nk>\n\nHe", b"llo"]
    one = AnswerReader(
        THINKING, thinking=POSSIBLE, tools=(), token_bytes=words.__getitem__, new_call_id=lambda: "unused"
    )
    out = [delta for index, word in enumerate(words) for delta in one.read(Delta(word.decode(), (index,)))]
    out += one.read(Delta("", finish_reason=FinishReason.STOP, usage=USAGE))
    assert told(out) == ("so", "Hello", [])
    assert out[-1].usage is not None
    assert out[-1].usage.num_reasoning_tokens == 5


def test_text_that_lags_behind_its_tokens_counts_the_same() -> None:
    one = reader(thinking=OPEN)
    one.read(Delta("", tuple(b"so</think>Hel")))
    out = one.read(Delta("so</think>Hello", tuple(b"lo"), finish_reason=FinishReason.STOP, usage=USAGE))
    assert told(out) == ("so", "Hello", [])
    assert out[-1].usage is not None
    assert out[-1].usage.num_reasoning_tokens == len("so</think>")


TURN = "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TURN, POSSIBLE),
        (TURN + "<think>\n", OPEN),
        (TURN + "<think>\n\n</think>\n\n", NONE),
        (TURN + "<think>\nSo far", OPEN),
        (TURN + "<think>\nso\n</think>\n\nThe answer", NONE),
        (TURN + "The answer", POSSIBLE),
        ("<｜begin▁of▁sentence｜><｜User｜>Hi <think><｜Assistant｜><think>\n", OPEN),
        ("<｜begin▁of▁sentence｜><｜User｜>Hi <think><｜Assistant｜>", POSSIBLE),
        ("User: what is <think> for?\nAssistant:", POSSIBLE),
        ("User: hi\nAssistant: <think>\n", OPEN),
        ("User: hi\nAssistant: <think>\n\n</think>\n\n", NONE),
        ("[INST]Hi[/INST]<think>a</think>[TOOL_CALLS][]</s>[TOOL_RESULTS]<think>[/TOOL_RESULTS]", POSSIBLE),
        ("", POSSIBLE),
    ],
)
def test_where_a_prompt_leaves_the_model(prompt: str, expected: ThinkingState) -> None:
    assert thinking_state(THINKING, prompt) is expected
    assert thinking_state(PLAIN, prompt) is NONE


def test_markers_that_look_like_turns() -> None:
    format = replace(THINKING, reasoning=REASONING_FORMATS["gemma4"])
    assert thinking_state(format, "<|turn>user\nHi<turn|>\n<|turn>model\n") is POSSIBLE
    assert thinking_state(format, "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>") is NONE
    assert thinking_state(format, "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\nSo") is OPEN
