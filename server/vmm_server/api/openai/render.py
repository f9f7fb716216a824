"""Deltas → OpenAI's objects and chunks. Pure.

Everything of a chunk that stays the same - id, model, time - is encoded once a request, so that a chunk costs one JSON
string and one concatenation.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from vmm_adapters.types import TokenLogprob
from vmm_server.api.framing import sse_event
from vmm_server.api.gathered import Gathered, completed
from vmm_server.engine.stream import Delta, Usage

DONE = b"data: [DONE]\n\n"

TokenText = Callable[[int], bytes]
"""The bytes a token id stands for."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Identity:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """As the client wrote it."""
    system_fingerprint: str

    def fields(self, kind: str) -> dict[str, object]:
        """The first fields of an object of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage_fields(usages: Sequence[Usage]) -> dict[str, object]:
    """`usage`, summed over the prompts of a request."""
    prompt = sum(usage.num_prompt_tokens for usage in usages)
    generated = sum(usage.num_generated_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.num_cached_tokens for usage in usages)},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenText) -> dict[str, object]:
    """`choices[].logprobs` of a chat answer."""

    def entry(token_id: int, logprob: float) -> dict[str, object]:
        raw = token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        entry(item.token_id, item.logprob) | {"top_logprobs": [entry(*alternative) for alternative in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


@dataclass(slots=True)
class LegacyLogprobs:
    """`choices[].logprobs` of a text completion; offsets go on from one chunk to the next."""

    token_bytes: TokenText
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), init=False
    )
    _num_characters: int = field(default=0, init=False)

    def fields(self, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        """The next tokens. `text_offset` counts whole characters of the answer before each token."""
        offsets = []
        for item in logprobs:
            offsets.append(self._num_characters)
            self._num_characters += len(self._decoder.decode(self.token_bytes(item.token_id)))
        return {
            "tokens": [self._text(item.token_id) for item in logprobs],
            "token_logprobs": [item.logprob for item in logprobs],
            "top_logprobs": [{self._text(token): logprob for token, logprob in item.top} for item in logprobs],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        """Legacy clients key by text, so half characters must stay apart (OpenAI writes `bytes:\\xe2` too)."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_completion(identity: Identity, gathered: Gathered, token_bytes: TokenText | None) -> dict[str, object]:
    """A whole chat answer. `token_bytes` is given when logprobs are wanted."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": gathered.text, "refusal": None},
        "logprobs": chat_logprobs(gathered.logprobs, token_bytes) if token_bytes else None,
        "finish_reason": gathered.reason.value,
    }
    return identity.fields("chat.completion") | {"choices": [choice], "usage": usage_fields([gathered.usage])}


def text_completion(
    identity: Identity, gathered: Sequence[Gathered], token_bytes: TokenText | None
) -> dict[str, object]:
    """Whole text completions, one choice a prompt. `token_bytes` is given when logprobs are wanted."""
    choices = [
        {
            "index": index,
            "text": one.text,
            "logprobs": LegacyLogprobs(token_bytes).fields(one.logprobs) if token_bytes else None,
            "finish_reason": one.reason.value,
        }
        for index, one in enumerate(gathered)
    ]
    usage = usage_fields([one.usage for one in gathered])
    return identity.fields("text_completion") | {"choices": choices, "usage": usage}


class ChatChunks:
    """Deltas of a chat answer → server-sent events, in OpenAI's order: role, content, finish, usage, `[DONE]`."""

    KIND = "chat.completion.chunk"

    def __init__(self, identity: Identity, *, include_usage: bool, token_bytes: TokenText | None) -> None:
        """`token_bytes` is given when logprobs are wanted."""
        self._identity = identity
        self._include_usage = include_usage
        self._token_bytes = token_bytes
        self._role_sent = False
        start = sse_event(identity.fields(self.KIND)).rstrip()[:-1]
        self._before_content = start + b',"choices":[{"index":0,"delta":{"content":'
        self._after_content = b'},"logprobs":null,"finish_reason":null}]' + self._tail()

    def events(self, delta: Delta) -> list[bytes]:
        """The events for one delta; none while there is nothing to tell."""
        events: list[bytes] = []
        if self._token_bytes is not None:
            if delta.text or delta.logprobs:
                events.append(self._content_with_logprobs(delta, self._token_bytes))
        elif delta.text:
            events.append(self._content(delta.text))
        if delta.finish_reason is not None:
            events += self._finish(delta, completed(delta.finish_reason))
        return events

    def _content(self, text: str) -> bytes:
        if self._role_sent:
            return self._before_content + _encode(text) + self._after_content
        return self._choice(self._delta(text), None, None)

    def _content_with_logprobs(self, delta: Delta, token_bytes: TokenText) -> bytes:
        return self._choice(self._delta(delta.text), chat_logprobs(delta.logprobs, token_bytes), None)

    def _delta(self, text: str) -> dict[str, object]:
        """The role goes with the first content, so that no client takes it for a first token."""
        first, self._role_sent = not self._role_sent, True
        return {"role": "assistant", "content": text} if first else {"content": text}

    def _finish(self, delta: Delta, reason: str) -> list[bytes]:
        events = [] if self._role_sent else [self._choice(self._delta(""), None, None)]
        events.append(self._choice({}, None, reason))
        if self._include_usage and delta.usage is not None:
            usage = {"choices": [], "usage": usage_fields([delta.usage])}
            events.append(sse_event(self._identity.fields(self.KIND) | usage))
        return [*events, DONE]

    def _choice(self, delta: dict[str, object], logprobs: dict[str, object] | None, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        event = sse_event(self._identity.fields(self.KIND) | {"choices": [choice]})
        return event[: -len(b"}\n\n")] + self._tail()

    def _tail(self) -> bytes:
        return b',"usage":null}\n\n' if self._include_usage else b"}\n\n"


class CompletionChunks:
    """Deltas of text completions → server-sent events. The finish reason comes on a chunk of its own at the end."""

    KIND = "text_completion"

    def __init__(
        self, identity: Identity, num_choices: int, *, include_usage: bool, token_bytes: TokenText | None
    ) -> None:
        """`token_bytes` is given when logprobs are wanted."""
        self._identity = identity
        self._include_usage = include_usage
        self._logprobs = [LegacyLogprobs(token_bytes) if token_bytes else None for _ in range(num_choices)]
        self._usages: list[Usage] = []
        self._num_open = num_choices
        start = sse_event(identity.fields(self.KIND)).rstrip()[:-1]
        self._before_text = [b'%b,"choices":[{"index":%d,"text":' % (start, index) for index in range(num_choices)]
        self._after_text = b',"logprobs":null,"finish_reason":null}]' + self._tail()

    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of prompt `index`; the last one of all brings usage and `[DONE]`."""
        logprobs = self._logprobs[index]
        if delta.finish_reason is None:
            if not delta.text and not (logprobs and delta.logprobs):
                return []
            if logprobs is None:
                return [self._before_text[index] + _encode(delta.text) + self._after_text]
        reason = completed(delta.finish_reason) if delta.finish_reason else None
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs.fields(delta.logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        event = sse_event(self._identity.fields(self.KIND) | {"choices": [choice]})[: -len(b"}\n\n")] + self._tail()
        return [event] if reason is None else [event, *self._end(delta)]

    def _end(self, delta: Delta) -> list[bytes]:
        self._num_open -= 1
        if delta.usage is not None:
            self._usages.append(delta.usage)
        if self._num_open:
            return []
        if not self._include_usage:
            return [DONE]
        usage = {"choices": [], "usage": usage_fields(self._usages)}
        return [sse_event(self._identity.fields(self.KIND) | usage), DONE]

    def _tail(self) -> bytes:
        return b',"usage":null}\n\n' if self._include_usage else b"}\n\n"
