"""From the worker's thread to the event loop: what one generation says, merged when its reader lags."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.errors import VMMError


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took. Times are seconds on the worker's clock."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt, found in the prefix cache and not computed again."""
    num_generated_tokens: int
    """Drawn tokens, the one that ended the answer included."""
    queued_s: float
    """From submission to the first step that held the sequence."""
    prefill_s: float
    """From that step to the first generated token."""
    decode_s: float
    """From the first generated token to the last."""
    num_reasoning_tokens: int = 0
    """Of the generated ones, thinking and its markers; counted by `prompt.answer`."""
    num_drafted_tokens: int = 0
    """Guessed and computed with the token before them (`speculation`)."""
    num_accepted_tokens: int = 0
    """Of them, those that are in the answer; they are among the generated ones."""
    num_drafted_predictions: int = 0
    """Drafted tokens that stood in the prediction that came with the request."""
    num_accepted_predictions: int = 0
    stop_string: str | None = None
    """The one of `SamplingParams.stop` that ended the answer."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. The first one of a call has `id` and `name`; all of them may have arguments."""

    index: int
    """The call's number in the answer, from 0."""
    arguments: str = ""
    """The next characters of the JSON object."""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. Text held back for a possible stop string comes with a later delta.

    `text` may be empty while `token_ids` is not (half a character, or held back); the last delta has `finish_reason`
    and `usage`. A token that ends the answer (EOS, `stop_token_ids`) is not part of it; the tokens of a stop
    string are in `token_ids` although their text is cut.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if they were asked for."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the next prompt tokens, if they were asked for: all but the first one, before anything else."""
    reasoning: str = ""
    """Thinking. The engine knows only text; `prompt.answer.AnswerReader` tells the three apart, and then at most one
    of `text`, `reasoning` and `tool_calls` is there."""
    tool_calls: tuple[ToolCallDelta, ...] = ()


def merge(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what these say, in order. There must be one."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        finish_reason=deltas[-1].finish_reason,
        usage=deltas[-1].usage,
        prompt_logprobs=tuple(logprob for delta in deltas for logprob in delta.prompt_logprobs),
    )


class TokenStream:
    """What a reader has not read yet. Used on the event loop only; `Outbox` brings things there.

    Memory is bounded by the answer, not by the reader: deltas that wait are folded into one now and then, and
    after `close` nothing is kept.
    """

    _MAX_WAITING = 32

    def __init__(self) -> None:
        self._waiting: list[Delta] = []
        self._error: VMMError | None = None
        self._news = asyncio.Event()
        self._is_closed = False

    def put(self, item: Delta | VMMError) -> None:
        """Add what the worker said; an error comes last."""
        if self._is_closed:
            return
        if isinstance(item, VMMError):
            self._error = item
        else:
            self._waiting.append(item)
            if len(self._waiting) > self._MAX_WAITING:
                self._waiting = [merge(self._waiting)]
        self._news.set()

    async def get(self) -> Delta | None:
        """All that came since the last call as one delta, waiting for it if needed; `None` once closed.

        Raises the error that ended the generation, after everything before it was read.
        """
        while not (self._waiting or self._error or self._is_closed):
            self._news.clear()
            await self._news.wait()
        if self._is_closed:
            return None
        if not self._waiting and self._error is not None:
            raise self._error
        deltas, self._waiting = self._waiting, []
        return merge(deltas)

    def close(self) -> None:
        """Forget everything, and let a reader that waits go. Idempotent."""
        self._is_closed = True
        self._waiting = []
        self._news.set()


class Outbox:
    """Carries a step's deltas from the worker's thread to the event loop, with one wake-up for all of them.

    While the loop is late, steps add to the same delivery instead of queueing wake-ups.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[list[tuple[TokenStream, Delta | VMMError]]] = deque()
        self._is_awake = False

    def post(self, items: list[tuple[TokenStream, Delta | VMMError]]) -> bool:
        """Hand over from any one thread; false when the loop is closed and nobody will read."""
        self._posted.append(items)
        if not self._is_awake:
            self._is_awake = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: the only error this call has
                return False
        return True

    def _deliver(self) -> None:
        self._is_awake = False  # before reading: what is posted from here on wakes the loop again
        while self._posted:
            for stream, item in self._posted.popleft():
                stream.put(item)
