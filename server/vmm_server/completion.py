"""An answer on its way: what it runs on, how it is read, and where it goes when its device fails before it began."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Self

from vmm_adapters.types import FinishReason
from vmm_server.engine.engine import Engine
from vmm_server.engine.generation import Generation
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import GenerationFailed, InvalidRequest, ModelLoadFailed, PlacementFailed, ShuttingDown, VMMError
from vmm_server.models.leases import MAX_MOVES, Lease
from vmm_server.models.loading import ReadyModel
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.observed import Watch
from vmm_server.prompt.answer import AnswerReader
from vmm_server.prompting import WrittenPrompt

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Started:
    """A request, the lease it runs under, and how to begin it again elsewhere. Whoever has it releases the lease."""

    lease: Lease[ReadyModel]
    find: Callable[[], Awaitable[Lease[ReadyModel]]]
    """Another lease, of a placement whose device has not failed."""
    submit: Callable[[Engine], Generation]
    clock: Callable[[], float]
    generation: Generation = field(init=False)
    """After `begin`."""
    submitted_at: float = 0.0
    """When it first was; seconds on `clock`."""
    moved_s: float = 0.0
    """From then until it was submitted for the last time; 0 where it stayed."""
    num_moves: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    error: BaseException | None = None
    """What it ended with."""
    said: list[str] | None = None
    """The answer so far, where it is to be logged."""

    async def begin(self) -> None:
        """Submit it, elsewhere if the device has failed meanwhile. Raises as `Engine.submit` and `find` do."""
        try:
            try:
                self._submit()
            except PlacementFailed as error:
                await self._move(error)
        except BaseException:
            self.lease.release()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. Nothing has been said yet where a placement failed before the request had begun there."""
        try:
            delta = await self._next()
        except VMMError as error:
            self.error = error
            raise
        if delta.usage is not None and self.moved_s:
            delta = replace(delta, usage=replace(delta.usage, queued_s=delta.usage.queued_s + self.moved_s))
        self.usage = delta.usage
        self.finish_reason = delta.finish_reason
        if self.said is not None:
            self.said.append(delta.text)
        return delta

    async def _next(self) -> Delta:
        while True:
            try:
                delta = await anext(self.generation)
            except PlacementFailed as error:
                await self._move(error)
                self.moved_s = self.clock() - self.submitted_at
                continue
            if delta.finish_reason is FinishReason.ABORT:  # nobody who still reads has asked for that
                raise ShuttingDown
            return delta

    async def _move(self, error: PlacementFailed) -> None:
        """Begin on another placement, and on another one still if that fails too."""
        while self.num_moves < MAX_MOVES:
            self.num_moves += 1
            try:
                lease = await self.find()
                self.lease.release()
                self.lease = lease
                return self._submit()
            except PlacementFailed as again:
                error = again
            except (ModelLoadFailed, InvalidRequest) as no_other:
                words = f"{error.failure}; the request could not go elsewhere: {no_other.message}"
                raise GenerationFailed(words, hint=no_other.hint) from error
        raise error

    def _submit(self) -> None:
        self.generation = self.submit(self.lease.ready.engine)
        self.lease.begun()


class Completion:
    """One generation and the lease it runs under. Iterate it for `Delta`s; `aclose` it in any case."""

    def __init__(
        self,
        model: InstalledModel,
        started: Started,
        prompt: WrittenPrompt,
        reader: AnswerReader | None,
        created: datetime,
        load_s: float,
        prepare_s: float,
        watch: Watch,
        on_close: Callable[["Completion"], None],
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt.tokens
        self.prompt_text = prompt.text
        """Of a chat, as rendered."""
        self.num_dropped_tokens = prompt.num_dropped_tokens
        """Of a prompt that was too long; `prompt_tokens` are the others."""
        self.num_dropped_messages = prompt.num_dropped_messages
        self.created = created
        self.load_s = load_s
        self.prepare_s = prepare_s
        """From the model's being there to the engine's having the prompt: rendering, tokenising, compiling a form."""
        self._started = started
        self._deltas = started if reader is None else _Answer(started, reader)
        self._watch = watch
        self._on_close = on_close

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        return self._started.lease.ready.placement

    @property
    def queued_s(self) -> float | None:
        """How long it waited for other requests, and for another device; `None` as long as it does."""
        queued_s = self._started.generation.queued_s
        return None if queued_s is None else self._started.moved_s + queued_s

    @property
    def usage(self) -> Usage | None:
        """Known after the last delta."""
        return self._deltas.usage

    @property
    def num_prompt_tokens(self) -> int:
        """Computed of the prompt up to now, cached ones included."""
        return self._started.generation.num_computed_tokens

    @property
    def num_generated_tokens(self) -> int:
        """Drawn up to now."""
        return self._started.generation.num_generated_tokens

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        return self._started.lease.ready.token_bytes(token_id)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    def lease_again(self) -> Lease[ReadyModel]:
        """A second lease of the model that this runs on."""
        return self._started.lease.again()

    async def aclose(self) -> None:
        """Abort if unfinished and return the lease. Idempotent."""
        await self._close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(error)

    async def _close(self, error: BaseException | None) -> None:
        try:
            await self._started.generation.aclose()
        finally:
            self._started.lease.release()
            self._on_close(self)
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        watch, started = self._watch, self._started
        watch.placement = self.placement
        watch.submitted_at = started.submitted_at
        watch.queued_s = self.queued_s
        watch.first_token_at = started.generation.first_token_at
        watch.usage = self.usage or started.usage
        watch.num_input_tokens = len(self.prompt_tokens)
        watch.num_output_tokens = started.generation.num_generated_tokens
        if watch.usage is not None:
            watch.num_input_tokens = watch.usage.num_prompt_tokens
        watch.finish_reason = started.finish_reason
        watch.error = started.error
        if started.said is not None:
            logger.info("answer of %s: %s", self.model.name, "".join(started.said))
            started.said = None
        watch.end(error)


class _Answer:
    """A generation's deltas as a reader tells them apart."""

    def __init__(self, deltas: Started, reader: AnswerReader) -> None:
        self.usage: Usage | None = None
        self._from = deltas
        self._reader = reader
        self._said: deque[Delta] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._said:
            self._said.extend(self._reader.read(await anext(self._from)))
        delta = self._said.popleft()
        self.usage = delta.usage
        return delta
