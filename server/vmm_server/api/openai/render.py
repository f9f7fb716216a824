"""Deltas → OpenAI's objects and chunks. Pure.

Everything of a chunk that stays the same - id, model, time - is encoded once a request, so that a chunk costs one JSON
string and one concatenation.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt, said again before its answer."""

    text: str
    token_ids: tuple[int, ...]
    """With those that the tokeniser added and `text` does not show, such as a BOS token."""


class LegacyLogprobs:
    """`choices[].logprobs` of a text completion; offsets go on from one chunk to the next."""

    def __init__(self, token_bytes: TokenText, echo: Echo | None = None) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0
        self._unscored: tuple[int, ...] = ()
        if echo is not None:
            self._unscored = echo.token_ids[:1]  # nothing comes before it
            shown = self._decoder.decode(b"".join(map(token_bytes, echo.token_ids)))
            self._num_characters = min(0, len(echo.text) - len(shown))
            self._decoder.reset()

    def fields(self, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        """The next tokens, an echoed prompt's first.

        `text_offset` counts whole characters of the choice's text before each token.
        """
        unscored, self._unscored = self._unscored, ()
        tokens = [*unscored, *(item.token_id for item in logprobs)]
        offsets = []
        for token_id in tokens:
            offsets.append(max(0, self._num_characters))
            self._num_characters += len(self._decoder.decode(self._token_bytes(token_id)))
        nulls = [None] * len(unscored)
        top = [{self._text(token): logprob for token, logprob in item.top} for item in logprobs]
        return {
            "tokens": [self._text(token_id) for token_id in tokens],
            "token_logprobs": [*nulls, *(item.logprob for item in logprobs)],
            "top_logprobs": [*nulls, *top],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        """Legacy clients key by text, so half characters must stay apart (OpenAI writes `bytes:\\xe2` too)."""
        raw = self._token_bytes(token_id)
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
    identity: Identity,
    gathered: Sequence[Gathered],
    token_bytes: TokenText | None,
    usage: dict[str, object],
    echoes: Sequence[Echo | None],
) -> dict[str, object]:
    """Whole text completions, each after its echo if it has one. `token_bytes` is given when logprobs are wanted."""

    def logprobs(one: Gathered, echo: Echo | None) -> dict[str, object] | None:
        if token_bytes is None:
            return None
        return LegacyLogprobs(token_bytes, echo).fields([*one.prompt_logprobs, *one.logprobs])

    choices = [
        {
            "index": index,
            "text": (echo.text if echo else "") + one.text,
            "logprobs": logprobs(one, echo),
            "finish_reason": one.reason.value,
        }
        for index, (one, echo) in enumerate(zip(gathered, echoes, strict=True))
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
        echoes: Sequence[Echo | None],
        *,
        include_usage: bool,
        token_bytes: TokenText | None,
        per_prompt: int = 1,
    ) -> None:
        """`echoes` has one for each choice; each prompt has `per_prompt` of them.

        `token_bytes` is given when logprobs are wanted.
        """
        num_choices = len(echoes)
        super().__init__(identity, num_choices, include_usage=include_usage, per_prompt=per_prompt)
        self._prompts = [echo.text if echo else "" for echo in echoes]
        self._logprobs = [LegacyLogprobs(token_bytes, echo) if token_bytes else None for echo in echoes]
        self._before_text = [
            b'%b,"choices":[{"index":%d,"text":' % (self._start, index) for index in range(num_choices)
        ]
        self._after_text = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of choice `index`; the last one of all brings usage and `[DONE]`."""
        logprobs = self._logprobs[index]
        text, self._prompts[index] = self._prompts[index] + delta.text, ""
        entries = [*delta.prompt_logprobs, *delta.logprobs]
        if delta.finish_reason is None:
            if not text and not (logprobs and entries):
                return []
            if logprobs is None:
                return [self._before_text[index] + _encode(text) + self._after_text]
        reason = completed(delta.finish_reason) if delta.finish_reason else None
        choice: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": logprobs.fields(entries) if logprobs else None,
            "finish_reason": reason,
        }
        event = self._chunk(choice)
        return [event] if reason is None else [event, *self._end(index, delta.usage)]
