"""An engine's text → thinking, tool calls and content, told apart as it comes.

First the thinking is taken off, which stands at the beginning or nowhere; what follows goes through the parser of the
model's tool calls, if the request has tools. Without either a delta passes as it is.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from vmm_adapters.types import FinishReason
from vmm_server.engine.stream import Delta, ToolCallDelta
from vmm_server.prompt.formats.base import Arguments, CallStart, ChatFormat, Part, Text
from vmm_server.prompt.thinking import ThinkingReader, TokenCounter
from vmm_server.requests import Tool

_TURN = re.compile(
    r"<\|[^|<>]{1,40}\|>|<｜[^｜<>]{1,40}｜>|<\|\w{1,40}>|<\w{1,40}\|>|<(?:start|end)_of_turn>|</?s>|<seed:[be]os>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_RESULTS)\]"
)
"""What begins or ends a message or a tool's result, in the templates of the families that think."""


class ThinkingState(Enum):
    """Where a prompt leaves the model."""

    NONE = "none"
    """It cannot think, or is past it."""
    POSSIBLE = "possible"
    """It may begin to."""
    OPEN = "open"
    """It is in the middle of it."""


def thinking_state(format: ChatFormat, prompt: str) -> ThinkingState:
    """Whether the answer to a rendered prompt begins with thinking.

    Only what the prompt says after its last message's beginning counts: templates write there the start marker, or
    both markers to keep the model from thinking, and so may the client's own beginning of the answer.
    """
    if format.reasoning is None:
        return ThinkingState.NONE
    start, end = format.reasoning.start, format.reasoning.end
    turn = max(
        (match.end() for match in _TURN.finditer(prompt) if not _is_marker(prompt, match, start, end)), default=0
    )
    answer = prompt[turn:].rstrip()
    started, ended = answer.rfind(start), answer.rfind(end)
    if turn == 0 and not answer.endswith((start, end)):  # no telling where the answer begins
        return ThinkingState.POSSIBLE
    if started > ended:
        return ThinkingState.OPEN
    return ThinkingState.POSSIBLE if ended < 0 else ThinkingState.NONE


def _is_marker(prompt: str, match: re.Match[str], *markers: str) -> bool:
    return any(prompt.startswith(marker, match.start()) for marker in markers)


@dataclass(frozen=True, slots=True)
class _Thought:
    """Thinking, as a part of an answer."""

    text: str


class AnswerReader:
    """Reads one answer. Pure: deltas in, deltas out."""

    def __init__(
        self,
        format: ChatFormat,
        *,
        thinking: ThinkingState,
        tools: Sequence[Tool],
        token_bytes: Callable[[int], bytes],
        new_call_id: Callable[[], str],
    ) -> None:
        """`tools` are those that may be called; none: nothing is read as a call."""
        reasoning = format.reasoning if thinking is not ThinkingState.NONE else None
        is_open = thinking is ThinkingState.OPEN
        self._thinking = None if reasoning is None else ThinkingReader(reasoning, is_open=is_open)
        self._counter = None if reasoning is None else TokenCounter(reasoning.end, token_bytes)
        self._parser = format.tools.parser(tools) if tools else None
        self._new_call_id = new_call_id
        self._num_calls = 0

    def read(self, delta: Delta) -> list[Delta]:
        """What a delta says, as one to a few. Token ids and logprobs are with the first, the end with the last."""
        if self._counter is not None:
            self._counter.push(delta.token_ids)
        if self._thinking is None and self._parser is None:
            return [self._ended(delta, delta)]
        parts = list(self._parts(delta))
        if len(parts) == 1 and parts[0] == Text(delta.text) and delta.finish_reason is None:
            return [delta]
        said = self._merged(parts) or [Delta("")]
        first = said[0]
        said[0] = Delta(
            first.text,
            delta.token_ids,
            delta.logprobs,
            prompt_logprobs=delta.prompt_logprobs,
            reasoning=first.reasoning,
            tool_calls=first.tool_calls,
        )
        said[-1] = self._ended(said[-1], delta)
        return said

    def _parts(self, delta: Delta) -> Iterable[Part | _Thought]:
        is_last = delta.finish_reason is not None
        text = delta.text
        if self._thinking is not None:
            thought, text = self._thinking.push(text, is_last)
            if thought:
                yield _Thought(thought)
            if self._thinking.is_over:
                if not self._thinking.was_found:
                    self._counter = None
                self._thinking = None
        if self._parser is None:
            if text:
                yield Text(text)
            return
        if text:
            yield from self._parser.push(text)
        if is_last:
            yield from self._parser.finish()

    def _merged(self, parts: Iterable[Part | _Thought]) -> list[Delta]:
        """Deltas of one kind each, in order."""
        said: list[Delta] = []
        for part in parts:
            last = said[-1] if said else None
            match part:
                case _Thought(text):
                    said.append(Delta("", reasoning=text))
                case Text(text):
                    if last is not None and last.text:
                        said[-1] = replace(last, text=last.text + text)
                    else:
                        said.append(Delta(text))
                case CallStart() | Arguments():
                    calls = last.tool_calls if last is not None else ()
                    if calls and last is not None:
                        said[-1] = replace(last, tool_calls=self._with_call(calls, part))
                    else:
                        said.append(Delta("", tool_calls=self._with_call((), part)))
        return said

    def _with_call(self, calls: tuple[ToolCallDelta, ...], part: CallStart | Arguments) -> tuple[ToolCallDelta, ...]:
        """A call's first delta names it and says nothing else, which is what clients expect."""
        if isinstance(part, CallStart):
            self._num_calls += 1
            return (*calls, ToolCallDelta(self._num_calls - 1, id=self._new_call_id(), name=part.name))
        if calls and calls[-1].id is None:
            return (*calls[:-1], replace(calls[-1], arguments=calls[-1].arguments + part.text))
        return (*calls, ToolCallDelta(self._num_calls - 1, arguments=part.text))

    def _ended(self, said: Delta, delta: Delta) -> Delta:
        """`said` with the end that `delta` brings, if it does."""
        if delta.finish_reason is None:
            return said
        reason, usage = delta.finish_reason, delta.usage
        if self._num_calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        if usage is not None and self._counter is not None:
            usage = replace(usage, num_reasoning_tokens=self._counter.count)
        return replace(said, finish_reason=reason, usage=usage)
