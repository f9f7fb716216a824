"""One answer of an engine, as its reader sees it."""

import logging
import weakref
from typing import Self

from vmm_server.engine.sequence import Sequence
from vmm_server.engine.stream import Delta, TokenStream, Usage
from vmm_server.engine.worker import Abort, Worker
from vmm_server.errors import VMMError

logger = logging.getLogger(__name__)


class Generation:
    """One answer as it grows: an async iterator of `Delta`, for one reader.

    Close it (`aclose`) unless it was read to its end; one that is dropped unfinished is aborted with a warning.
    """

    def __init__(self, worker: Worker, sequence: Sequence, stream: TokenStream) -> None:
        self.num_prompt_tokens = sequence.num_prompt_tokens
        self.usage: Usage | None = None
        """Set with the last delta."""
        self._worker = worker
        self._sequence = sequence
        self._stream = stream
        # Alive while unfinished; detached by whatever ends the generation in an orderly way.
        self._finalizer = weakref.finalize(self, _abort_dropped, worker, sequence)
        self._finalizer.atexit = False

    @property
    def queued_s(self) -> float | None:
        """From submission to the first step that held it; `None` as long as it waits."""
        started = self._sequence.started_at
        return None if started is None else started - self._sequence.submitted_at

    @property
    def num_computed_tokens(self) -> int:
        """Of the prompt, up to now: cached ones too."""
        if self.usage is not None:
            return self.usage.num_prompt_tokens
        sequence = self._sequence
        num_prompt_tokens = sequence.num_prompt_tokens + sequence.num_seen_tokens
        return (
            num_prompt_tokens if sequence.num_generated_tokens else min(sequence.num_computed_tokens, num_prompt_tokens)
        )

    @property
    def first_token_at(self) -> float | None:
        """When the first token was drawn, on the engine's clock; `None` as long as there is none."""
        return self._sequence.first_token_at

    @property
    def num_generated_tokens(self) -> int:
        """Drawn so far, a step old at most."""
        return self._sequence.num_generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """The next piece; all that came since the last one, if the reader was slow. Raises `GenerationFailed`."""
        if not self._finalizer.alive:
            raise StopAsyncIteration
        try:
            delta = await self._stream.get()
        except VMMError:
            self._finalizer.detach()
            raise
        if delta is None:
            raise StopAsyncIteration
        if delta.finish_reason is not None:
            self._finalizer.detach()
            self.usage = delta.usage
        return delta

    async def aclose(self) -> None:
        """Abort if unfinished. Idempotent; blocks are free before the engine's next step."""
        if self._finalizer.detach() is not None:
            self._stream.close()
            self._worker.post(Abort(self._sequence))


def _abort_dropped(worker: Worker, sequence: Sequence) -> None:
    logger.warning("a generation was dropped unfinished and without aclose(); aborting it")
    worker.post(Abort(sequence))
