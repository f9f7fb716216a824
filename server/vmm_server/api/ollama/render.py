"""Deltas → Ollama's objects and lines. Pure.

`/api/generate` and `/api/chat` differ in one field: the piece of text is `response`, or `message.content`. What stays
the same of a line is encoded once a request, so that a line costs one JSON string and one timestamp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from vmm_adapters.types import TokenLogprob
from vmm_server.api.framing import json_line
from vmm_server.api.gathered import Gathered, completed
from vmm_server.engine.stream import Delta, Usage

TokenText = Callable[[int], bytes]
"""The bytes a token id stands for."""

_encode = msgspec.json.Encoder().encode


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def generate_piece(text: str) -> dict[str, object]:
    """Where `/api/generate` has its text."""
    return {"response": text}


def chat_piece(text: str) -> dict[str, object]:
    """Where `/api/chat` has its text."""
    return {"message": {"role": "assistant", "content": text}}


Piece = Callable[[str], dict[str, object]]


def metrics(usage: Usage, load_s: float) -> dict[str, object]:
    """Counts and nanoseconds; the parts and the time in the queue add up to the total, and zeros are left out."""
    load, queued, prefill, decode = (
        int(seconds * 1e9) for seconds in (load_s, usage.queued_s, usage.prefill_s, usage.decode_s)
    )
    fields = {
        "total_duration": load + queued + prefill + decode,
        "load_duration": load,
        "prompt_eval_count": usage.num_prompt_tokens,
        "prompt_eval_duration": prefill,
        "eval_count": usage.num_generated_tokens,
        "eval_duration": decode,
    }
    return {name: value for name, value in fields.items() if value}


def logprob_entries(logprobs: Sequence[TokenLogprob], token_bytes: TokenText) -> list[dict[str, object]]:
    """The flat `logprobs` array."""

    def entry(token_id: int, logprob: float) -> dict[str, object]:
        raw = token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    return [
        entry(item.token_id, item.logprob)
        | ({"top_logprobs": [entry(*alternative) for alternative in item.top]} if item.top else {})
        for item in logprobs
    ]


@dataclass(frozen=True, slots=True)
class Reply:
    """What is known of an answer before its text."""

    model: str
    """As the client wrote it."""
    piece: Piece
    now: Callable[[], datetime]
    load_s: float
    prompt_tokens: tuple[int, ...] | None = None
    """Given when the reply carries `context`."""
    token_bytes: TokenText | None = None
    """Given when logprobs are wanted."""

    def whole(self, gathered: Gathered) -> dict[str, object]:
        """The one object of an answer that is not streamed."""
        logprobs: dict[str, object] = {}
        if self.token_bytes is not None:
            logprobs = {"logprobs": logprob_entries(gathered.logprobs, self.token_bytes)}
        reason = completed(gathered.finish_reason).value
        return self._final(gathered.text, reason, gathered.token_ids, gathered.usage) | logprobs

    def idle(self, reason: str) -> dict[str, object]:
        """The one object for an empty prompt: `load` or `unload`."""
        return self._start() | self.piece("") | {"done": True, "done_reason": reason}

    def last(self, reason: str, token_ids: Sequence[int], usage: Usage) -> dict[str, object]:
        """The last line of a stream."""
        return self._final("", reason, token_ids, usage)

    def _start(self) -> dict[str, object]:
        return {"model": self.model, "created_at": timestamp(self.now())}

    def _final(self, text: str, reason: str, token_ids: Sequence[int], usage: Usage) -> dict[str, object]:
        context: dict[str, object] = {}
        if self.prompt_tokens is not None:
            context = {"context": [*self.prompt_tokens, *token_ids]}
        fields = self._start() | self.piece(text) | {"done": True, "done_reason": reason}
        return fields | context | metrics(usage, self.load_s)


@dataclass(slots=True)
class Lines:
    """Deltas of one answer → NDJSON lines."""

    reply: Reply
    _token_ids: list[int] = field(default_factory=list, init=False)
    _before_time: bytes = field(init=False)
    _before_text: bytes = field(init=False)
    _after_text: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._before_time = b'{"model":' + _encode(self.reply.model) + b',"created_at":"'
        before, after = _encode(self.reply.piece("\x00")).split(b'"\\u0000"')
        self._before_text = b'",' + before[1:]
        self._after_text = after[:-1] + b',"done":false'

    def lines(self, delta: Delta) -> list[bytes]:
        """The lines for one delta; none while there is nothing to tell."""
        self._token_ids.extend(delta.token_ids)
        has_text = delta.text or (self.reply.token_bytes and delta.logprobs)
        lines = [self._text_line(delta)] if has_text else []
        if delta.finish_reason is not None:
            reason = completed(delta.finish_reason).value
            usage = Gathered(last_usage=delta.usage).usage
            lines.append(json_line(self.reply.last(reason, self._token_ids, usage)))
        return lines

    def _text_line(self, delta: Delta) -> bytes:
        end = b"}\n"
        if self.reply.token_bytes is not None:
            end = b',"logprobs":' + _encode(logprob_entries(delta.logprobs, self.reply.token_bytes)) + end
        moment = timestamp(self.reply.now()).encode()
        return self._before_time + moment + self._before_text + _encode(delta.text) + self._after_text + end
