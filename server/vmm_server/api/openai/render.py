"""Deltas → OpenAI's objects and chunks. Pure.

Everything of a chunk that stays the same - id, model, time - is encoded once a request, so that a chunk costs one JSON
string and one concatenation.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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


def usage_fields(usages: Sequence[Usage], per_prompt: int = 1) -> dict[str, object]:
    """`usage`, summed over a request: each prompt once, with its first generation's cached tokens; all that was drawn.

    `per_prompt` generations of a prompt stand one behind the other.
    """
    firsts = usages[::per_prompt]
    prompt = sum(usage.num_prompt_tokens for usage in firsts)
    generated = sum(usage.num_generated_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.num_cached_tokens for usage in firsts)},
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


def chat_completion(
    identity: Identity, gathered: Sequence[Gathered], token_bytes: TokenText | None
) -> dict[str, object]:
    """Whole chat answers to one prompt. `token_bytes` is given when logprobs are wanted."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": chat_logprobs(one.logprobs, token_bytes) if token_bytes else None,
            "finish_reason": one.reason.value,
        }
        for index, one in enumerate(gathered)
    ]
    usage = usage_fields([one.usage for one in gathered], len(gathered))
    return identity.fields("chat.completion") | {"choices": choices, "usage": usage}


def text_completion(
    identity: Identity, gathered: Sequence[Gathered], token_bytes: TokenText | None, usage: dict[str, object]
) -> dict[str, object]:
    """Whole text completions, one a choice. `token_bytes` is given when logprobs are wanted."""
    choices = [
        {
            "index": index,
            "text": one.text,
            "logprobs": LegacyLogprobs(token_bytes).fields(one.logprobs) if token_bytes else None,
            "finish_reason": one.reason.value,
        }
        for index, one in enumerate(gathered)
    ]
    return identity.fields("text_completion") | {"choices": choices, "usage": usage}


class _Chunks:
    """What both kinds of stream share: each choice ends once, and the last one to end brings usage and `[DONE]`."""

    KIND: ClassVar[str]

    def __init__(self, identity: Identity, num_choices: int, *, include_usage: bool, per_prompt: int) -> None:
        self._identity = identity
        self._include_usage = include_usage
        self._per_prompt = per_prompt
        self._usages: list[Usage | None] = [None] * num_choices
        self._num_open = num_choices
        self._start = sse_event(identity.fields(self.KIND)).rstrip()[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def _chunk(self, choice: dict[str, object]) -> bytes:
        return self._start + b',"choices":[' + _encode(choice) + b"]" + self._tail

    def _end(self, index: int, usage: Usage | None) -> list[bytes]:
        self._num_open -= 1
        self._usages[index] = usage
        if self._num_open:
            return []
        if not self._include_usage:
            return [DONE]
        usages = [usage for usage in self._usages if usage is not None]
        fields = {"choices": [], "usage": usage_fields(usages, self._per_prompt)}
        return [sse_event(self._identity.fields(self.KIND) | fields), DONE]


class ChatChunks(_Chunks):
    """Deltas of chat answers → server-sent events, each choice in OpenAI's order: role, content, finish."""

    KIND = "chat.completion.chunk"

    def __init__(
        self, identity: Identity, num_choices: int, *, include_usage: bool, token_bytes: TokenText | None
    ) -> None:
        """`token_bytes` is given when logprobs are wanted."""
        super().__init__(identity, num_choices, include_usage=include_usage, per_prompt=num_choices)
        self._token_bytes = token_bytes
        self._role_sent = [False] * num_choices
        self._before_content = [
            b'%b,"choices":[{"index":%d,"delta":{"content":' % (self._start, index) for index in range(num_choices)
        ]
        self._after_content = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of choice `index`; none while there is nothing to tell."""
        events: list[bytes] = []
        if self._token_bytes is not None:
            if delta.text or delta.logprobs:
                logprobs = chat_logprobs(delta.logprobs, self._token_bytes)
                events.append(self._choice(index, self._delta(index, delta.text), logprobs, None))
        elif delta.text:
            events.append(self._content(index, delta.text))
        if delta.finish_reason is not None:
            reason = completed(delta.finish_reason)
            if not self._role_sent[index]:
                events.append(self._choice(index, self._delta(index, ""), None, None))
            events += [self._choice(index, {}, None, reason), *self._end(index, delta.usage)]
        return events

    def _content(self, index: int, text: str) -> bytes:
        if self._role_sent[index]:
            return self._before_content[index] + _encode(text) + self._after_content
        return self._choice(index, self._delta(index, text), None, None)

    def _delta(self, index: int, text: str) -> dict[str, object]:
        """The role goes with the first content, so that no client takes it for a first token."""
        first, self._role_sent[index] = not self._role_sent[index], True
        return {"role": "assistant", "content": text} if first else {"content": text}

    def _choice(
        self, index: int, delta: dict[str, object], logprobs: dict[str, object] | None, reason: str | None
    ) -> bytes:
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


class CompletionChunks(_Chunks):
    """Deltas of text completions → server-sent events. A choice's last chunk has its finish reason."""

    KIND = "text_completion"

    def __init__(
        self,
        identity: Identity,
        num_choices: int,
        *,
        include_usage: bool,
        token_bytes: TokenText | None,
        per_prompt: int = 1,
    ) -> None:
        """`token_bytes` is given when logprobs are wanted; each prompt has `per_prompt` choices."""
        super().__init__(identity, num_choices, include_usage=include_usage, per_prompt=per_prompt)
        self._logprobs = [LegacyLogprobs(token_bytes) if token_bytes else None for _ in range(num_choices)]
        self._before_text = [
            b'%b,"choices":[{"index":%d,"text":' % (self._start, index) for index in range(num_choices)
        ]
        self._after_text = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of choice `index`; the last one of all brings usage and `[DONE]`."""
        logprobs = self._logprobs[index]
        if delta.finish_reason is None:
            if not delta.text and not (logprobs and delta.logprobs):
                return []
            if logprobs is None:
                return [self._before_text[index] + _encode(delta.text) + self._after_text]
        reason = completed(delta.finish_reason) if delta.finish_reason else None
        choice: dict[str, object] = {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs.fields(delta.logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        event = self._chunk(choice)
        return [event] if reason is None else [event, *self._end(index, delta.usage)]
