"""A whole answer, gathered from its deltas. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.errors import GenerationFailed
from vmm_server.requests import ToolCall


@dataclass(slots=True)
class Gathered:
    """A whole answer."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    last_usage: Usage | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens but the first, if they were asked for."""
    reasonings: list[str] = field(default_factory=list)
    call_deltas: list[ToolCallDelta] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """All thinking."""
        return "".join(self.reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls, in order; the arguments of the last one may be cut off when `reason` is `LENGTH`."""
        calls: dict[int, list[ToolCallDelta]] = {}
        for piece in self.call_deltas:
            calls.setdefault(piece.index, []).append(piece)
        return [_joined(calls[index]) for index in sorted(calls)]

    @property
    def usage(self) -> Usage:
        """What it took. Raises `GenerationFailed` when the generation stopped without an end."""
        if self.last_usage is None:
            raise GenerationFailed("the generation ended early")
        return self.last_usage

    @property
    def reason(self) -> FinishReason:
        """Why it ended: `STOP`, `LENGTH` or `TOOL_CALLS`. Raises `GenerationFailed` for any other end."""
        return completed(self.finish_reason)

    def add(self, delta: Delta) -> None:
        """Append the next delta."""
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.reasonings.append(delta.reasoning)
        self.call_deltas.extend(delta.tool_calls)
        self.finish_reason = delta.finish_reason
        self.last_usage = delta.usage


def completed(reason: FinishReason | None) -> FinishReason:
    """`STOP`, `LENGTH` or `TOOL_CALLS`, the ends an answer may have.

    Raises `GenerationFailed` for an answer that was broken off.
    """
    if reason not in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS):
        raise GenerationFailed(f"the generation ended early: {reason or 'no reason given'}")
    return reason


def _joined(pieces: Sequence[ToolCallDelta]) -> ToolCall:
    return ToolCall(pieces[0].name or "", "".join(piece.arguments for piece in pieces), pieces[0].id)
