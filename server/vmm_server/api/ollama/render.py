"""Deltas → Ollama's objects and lines. Pure.

`/api/generate` and `/api/chat` differ in one place: what is said stands in the object itself, or in its `message`. What
stays the same of a line of text is encoded once a request, so that it costs one JSON string and one timestamp. A tool
call is one line, when it is whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.api.arguments import whole_object
from vmm_server.api.framing import json_line
from vmm_server.api.gathered import Gathered, completed
from vmm_server.engine.stream import Delta, ToolCallDelta, Usage
from vmm_server.requests import ToolCall

TokenText = Callable[[int], bytes]
"""The bytes a token id stands for."""

_CALL_ID_LENGTH = len("call_") + 8
"""Ollama's ids of calls are shorter than ours."""

_encode = msgspec.json.Encoder().encode


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer, or a piece of one, says."""

    text: str = ""
    thinking: str = ""
    tool_calls: Sequence[Mapping[str, object]] = ()

    @property
    def extras(self) -> dict[str, object]:
        """Fields that are there only when they say something."""
        fields = {"thinking": self.thinking, "tool_calls": self.tool_calls}
        return {name: value for name, value in fields.items() if value}


def generate_piece(said: Said) -> dict[str, object]:
    """How `/api/generate` says it."""
    return {"response": said.text} | said.extras


def chat_piece(said: Said) -> dict[str, object]:
    """How `/api/chat` says it."""
    return {"message": {"role": "assistant", "content": said.text} | said.extras}


Piece = Callable[[Said], dict[str, object]]


def called(index: int, call: ToolCall) -> Said:
    """A call, with its arguments as an object. One that was cut off is no call but a text: nobody may run it."""
    arguments = whole_object(call.arguments)
    if arguments is None:
        return Said(call.arguments)
    function = {"index": index, "name": call.name, "arguments": arguments}
    return Said(tool_calls=[{"id": (call.id or "")[:_CALL_ID_LENGTH], "function": function}])


def metrics(usage: Usage, load_s: float, prepare_s: float) -> dict[str, object]:
    """Counts and nanoseconds, zeros left out. The total is the parts, the preparation and the time in the queue.

    `prompt_eval_count` is all that the model saw of the prompt, `prompt_eval_cached_count` what of it was in the cache;
    `draft_count` are tokens that were guessed, `draft_accepted_count` those of them that are in the answer.
    """
    load, prepare, queued, prefill, decode = (
        int(seconds * 1e9) for seconds in (load_s, prepare_s, usage.queued_s, usage.prefill_s, usage.decode_s)
    )
    fields = {
        "total_duration": load + prepare + queued + prefill + decode,
        "load_duration": load,
        "prompt_eval_count": usage.num_prompt_tokens,
        "prompt_eval_cached_count": usage.num_cached_tokens,
        "prompt_eval_duration": prefill,
        "eval_count": usage.num_generated_tokens,
        "eval_duration": decode,
        "draft_count": usage.num_drafted_tokens,
        "draft_accepted_count": usage.num_accepted_tokens,
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
    prepare_s: float = 0.0
    prompt_tokens: tuple[int, ...] | None = None
    """Given when the reply carries `context`."""
    token_bytes: TokenText | None = None
    """Given when logprobs are wanted."""

    def whole(self, gathered: Gathered) -> dict[str, object]:
        """The one object of an answer that is not streamed."""
        logprobs: dict[str, object] = {}
        if self.token_bytes is not None:
            logprobs = {"logprobs": logprob_entries(gathered.logprobs, self.token_bytes)}
        calls = [called(index, call) for index, call in enumerate(gathered.tool_calls)]
        said = Said(
            gathered.text + "".join(call.text for call in calls),
            gathered.reasoning,
            [entry for call in calls for entry in call.tool_calls],
        )
        return self._final(said, gathered.reason, gathered.token_ids, gathered.usage) | logprobs

    def idle(self, reason: str) -> dict[str, object]:
        """The one object for an empty prompt: `load` or `unload`."""
        return self._start() | self.piece(Said()) | {"done": True, "done_reason": reason}

    def prompt(self, text: str) -> dict[str, object]:
        """The one object that shows what the model would see."""
        return self._start() | self.piece(Said()) | {"done": False, "_debug_info": {"rendered_template": text}}

    def part(self, said: Said) -> dict[str, object]:
        """A line in the middle of a stream."""
        return self._start() | self.piece(said) | {"done": False}

    def last(self, reason: FinishReason, token_ids: Sequence[int], usage: Usage) -> dict[str, object]:
        """The last line of a stream."""
        return self._final(Said(), reason, token_ids, usage)

    def _start(self) -> dict[str, object]:
        return {"model": self.model, "created_at": timestamp(self.now())}

    def _final(self, said: Said, reason: FinishReason, token_ids: Sequence[int], usage: Usage) -> dict[str, object]:
        context: dict[str, object] = {}
        if self.prompt_tokens is not None:
            context = {"context": [*self.prompt_tokens, *token_ids]}
        done_reason = "length" if reason is FinishReason.LENGTH else "stop"  # so it is after a call, too
        fields = self._start() | self.piece(said) | {"done": True, "done_reason": done_reason}
        return fields | context | metrics(usage, self.load_s, self.prepare_s)


@dataclass(slots=True)
class Lines:
    """Deltas of one answer → NDJSON lines."""

    reply: Reply
    _token_ids: list[int] = field(default_factory=list, init=False)
    _call: list[ToolCallDelta] = field(default_factory=list, init=False)
    """Of a call that is not whole yet."""
    _before_time: bytes = field(init=False)
    _before_text: bytes = field(init=False)
    _after_text: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._before_time = b'{"model":' + _encode(self.reply.model) + b',"created_at":"'
        before, after = _encode(self.reply.piece(Said("\x00"))).split(b'"\\u0000"')
        self._before_text = b'",' + before[1:]
        self._after_text = after[:-1] + b',"done":false'

    def lines(self, delta: Delta) -> list[bytes]:
        """The lines for one delta; none while there is nothing to tell."""
        self._token_ids.extend(delta.token_ids)
        lines: list[bytes] = []
        if delta.text or delta.reasoning:
            lines += self._end_call()
        if delta.reasoning:
            lines.append(json_line(self.reply.part(Said(thinking=delta.reasoning)) | self._logprobs(delta)))
        elif delta.text or (self.reply.token_bytes and delta.logprobs):
            lines.append(self._text_line(delta))
        for piece in delta.tool_calls:
            if piece.name is not None:
                lines += self._end_call()
            self._call.append(piece)
        if delta.finish_reason is not None:
            usage = Gathered(last_usage=delta.usage).usage
            lines += self._end_call()
            lines.append(json_line(self.reply.last(completed(delta.finish_reason), self._token_ids, usage)))
        return lines

    def _end_call(self) -> list[bytes]:
        """The line of the call that is whole now, if there is one."""
        pieces, self._call = self._call, []
        return [
            json_line(self.reply.part(called(pieces[0].index, call)))
            for call in Gathered(call_deltas=pieces).tool_calls
        ]

    def _logprobs(self, delta: Delta) -> dict[str, object]:
        if self.reply.token_bytes is None:
            return {}
        return {"logprobs": logprob_entries(delta.logprobs, self.reply.token_bytes)}

    def _text_line(self, delta: Delta) -> bytes:
        end = b"}\n"
        if self.reply.token_bytes is not None:
            end = b',"logprobs":' + _encode(logprob_entries(delta.logprobs, self.reply.token_bytes)) + end
        moment = timestamp(self.reply.now()).encode()
        return self._before_time + moment + self._before_text + _encode(delta.text) + self._after_text + end
