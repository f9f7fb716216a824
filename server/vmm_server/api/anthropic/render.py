"""Deltas → Anthropic's messages and stream events. Pure.

An answer is a list of blocks: one for each stretch of thinking or of text, one for each tool call. A whole message is
made of the same `Blocks` as a stream, so the two cannot differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vmm_adapters.types import FinishReason
from vmm_server.api.arguments import begun_object
from vmm_server.api.framing import named_event
from vmm_server.api.gathered import completed
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.errors import GenerationFailed

Kind = Literal["text", "thinking", "tool_use"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a message before its content."""

    id: str
    model: str
    """As the client wrote it."""
    num_prompt_tokens: int
    max_tokens: int
    shows_thinking: bool = True
    """Otherwise thinking blocks are there, and empty."""


@dataclass(slots=True)
class Block:
    """One element of `content`, as far as it has come."""

    kind: Kind
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    def start(self) -> dict[str, object]:
        """The block without its content. Clients add to these fields, so they are there."""
        match self.kind:
            case "text":
                return {"type": "text", "text": ""}
            case "thinking":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "tool_use":
                return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}

    def delta(self, piece: str) -> dict[str, object]:
        """What a stream says of a piece."""
        match self.kind:
            case "text":
                return {"type": "text_delta", "text": piece}
            case "thinking":
                return {"type": "thinking_delta", "thinking": piece}
            case "tool_use":
                return {"type": "input_json_delta", "partial_json": piece}

    def whole(self) -> dict[str, object]:
        """The block with all of its content."""
        content = "".join(self.pieces)
        if self.kind == "tool_use":
            return self.start() | {"input": begun_object(content)}
        return self.start() | {self.kind: content}


@dataclass(frozen=True, slots=True)
class Growth:
    """What a delta added to the content."""

    index: int
    """Of the block."""
    block: Block
    begins: bool
    """The block is new."""
    piece: str
    """Of its content; may be empty."""


class Blocks:
    """The content of one answer, as it grows."""

    def __init__(self, *, shows_thinking: bool = True) -> None:
        self.all: list[Block] = []
        self._shows_thinking = shows_thinking

    def add(self, delta: Delta) -> list[Growth]:
        """Take the next delta."""
        grown = []
        if delta.reasoning:
            grown.append(self._grow("thinking", delta.reasoning if self._shows_thinking else ""))
        if delta.text:
            grown.append(self._grow("text", delta.text))
        return grown + [self._grow("tool_use", call.arguments, call) for call in delta.tool_calls]

    def whole(self) -> list[dict[str, object]]:
        """All of it."""
        return [block.whole() for block in self.all]

    def _grow(self, kind: Kind, piece: str, call: ToolCallDelta | None = None) -> Growth:
        begins = not self.all or self.all[-1].kind != kind or bool(call and call.name is not None)
        if begins:
            self.all.append(Block(kind, (call and call.id) or "", (call and call.name) or ""))
        self.all[-1].pieces.append(piece)
        return Growth(len(self.all) - 1, self.all[-1], begins, piece)


class MessageEvents:
    """Deltas of one answer → server-sent events. Nothing comes before the first delta: it would pass for a token."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._blocks = Blocks(shows_thinking=identity.shows_thinking)
        self._has_begun = False

    def events(self, delta: Delta) -> Iterator[bytes]:
        """The events for one delta; the last delta ends the message."""
        if not self._has_begun:
            self._has_begun = True
            yield named_event({"type": "message_start", "message": _start(self._identity)})
        for grown in self._blocks.add(delta):
            index, block = grown.index, grown.block
            if grown.begins:
                if index:
                    yield named_event({"type": "content_block_stop", "index": index - 1})
                yield named_event({"type": "content_block_start", "index": index, "content_block": block.start()})
            if grown.piece:
                change = block.delta(grown.piece)
                yield named_event({"type": "content_block_delta", "index": index, "delta": change})
        if delta.finish_reason is not None:
            if self._blocks.all:
                yield named_event({"type": "content_block_stop", "index": len(self._blocks.all) - 1})
            stop, usage = _end(self._identity, delta)
            yield named_event({"type": "message_delta", "delta": stop, "usage": usage})
            yield named_event({"type": "message_stop"})


def message(identity: Identity, deltas: Sequence[Delta]) -> dict[str, object]:
    """A whole message. Raises `GenerationFailed` when the answer was broken off."""
    blocks = Blocks(shows_thinking=identity.shows_thinking)
    for delta in deltas:
        blocks.add(delta)
    stop, usage = _end(identity, deltas[-1] if deltas else Delta(""))
    return _start(identity) | {"content": blocks.whole()} | stop | {"usage": usage}


def _start(identity: Identity) -> dict[str, object]:
    """How many of the input tokens were cached is known at the end; `message_delta` says it, and clients take that."""
    return {
        "id": identity.id,
        "type": "message",
        "role": "assistant",
        "model": identity.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": identity.num_prompt_tokens, "output_tokens": 0},
    }


def _end(identity: Identity, last: Delta) -> tuple[dict[str, object], dict[str, object]]:
    """`stop_reason` with `stop_sequence`, and `usage`, which counts cached tokens apart."""
    reason, usage = completed(last.finish_reason), last.usage
    if usage is None:
        raise GenerationFailed("the generation ended early")
    stopped_by = usage.stop_string if reason is FinishReason.STOP else None
    stop: dict[str, object] = {
        "stop_reason": _stop_reason(reason, usage, identity.max_tokens),
        "stop_sequence": stopped_by,
    }
    return stop, {
        "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.num_cached_tokens,
        "output_tokens": usage.num_generated_tokens,
        "output_tokens_details": {"thinking_tokens": usage.num_reasoning_tokens},
    }


def _stop_reason(reason: FinishReason, usage: Usage, max_tokens: int) -> str:
    if reason is FinishReason.TOOL_CALLS:
        return "tool_use"
    if reason is FinishReason.STOP:
        return "end_turn" if usage.stop_string is None else "stop_sequence"
    return "max_tokens" if usage.num_generated_tokens >= max_tokens else "model_context_window_exceeded"
