"""Deltas of text completions → OpenAI's objects and chunks. Pure."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from vmm_adapters.types import TokenLogprob
from vmm_server.api.gathered import Gathered, completed
from vmm_server.api.openai.render import Chunks, Identity, TokenText, encode
from vmm_server.engine.stream import Delta


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


class CompletionChunks(Chunks):
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
        logprobs = self._logprobs[index]
        text, self._prompts[index] = self._prompts[index] + delta.text, ""
        entries = [*delta.prompt_logprobs, *delta.logprobs]
        if delta.finish_reason is None:
            if not text and not (logprobs and entries):
                return []
            if logprobs is None:
                return [self._before_text[index] + encode(text) + self._after_text]
        reason = completed(delta.finish_reason) if delta.finish_reason else None
        choice: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": logprobs.fields(entries) if logprobs else None,
            "finish_reason": reason,
        }
        event = b'%b,"choices":[%b]%b' % (self._start, encode(choice), self._tail)
        return [event] if reason is None else [event, *self._end(index, delta.usage)]
