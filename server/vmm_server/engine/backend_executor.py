"""A `TextBackend`: it computes up to `max_sequences` requests as it likes; the others wait here, in our order: best
priority first, then the tenant that got least (`turns`). What the runtime has, it does not give back for others.

What is not given to it yet has cost nothing, and can still go to another placement.
"""

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from itertools import count
from operator import attrgetter

from vmm_adapters.base import TextBackend
from vmm_adapters.errors import AdapterError, DeviceLost
from vmm_adapters.types import FinishReason, TextOutput, TextRequest
from vmm_server.engine.executor import EngineStats, Outcome, runtime_failed
from vmm_server.engine.forecast import Pace
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.lacking import effective
from vmm_server.engine.sampler import Sampled
from vmm_server.engine.sequence import Sequence, SequenceStatus
from vmm_server.engine.turns import Turns

_by_rank = attrgetter("rank")


class BackendExecutor:
    """See `Executor`. Owns the backend."""

    takes_images = True
    num_step_tokens = 0

    def __init__(self, backend: TextBackend, *, max_sequences: int, clock: Callable[[], float]) -> None:
        self.device = backend.device
        self.vocab_size = backend.vocab_size
        self.context_length = backend.context_length
        self.max_prompt_tokens = backend.context_length - 1
        self.max_sequences = min(max_sequences, backend.max_sequences)
        self.step_tokens = backend.context_length
        self.pace = Pace()
        self.lacks: Mapping[str, str] = backend.lacks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.involved: Collection[Sequence] | None = None
        self._backend = backend
        self._clock = clock
        self._turns = Turns()
        self._arrivals = count(1)
        self._grammars: dict[Sequence, CompiledGrammar] = {}
        self._given: dict[int, Sequence] = {}
        """What the backend has, by the number of its arrival, which is the request's id."""
        self._abort_error: AdapterError | None = None

    @property
    def has_work(self) -> bool:
        """See `Executor.has_work`."""
        return bool(self.waiting or self.running)

    @property
    def stats(self) -> EngineStats:
        """See `Executor.stats`."""
        return EngineStats(len(self.waiting), len(self.running), num_blocks=0, num_free_blocks=0, num_preempted=0)

    def add(self, sequence: Sequence, grammar: CompiledGrammar | None) -> None:
        """See `Executor.add`."""
        sequence.rank = (sequence.priority, next(self._arrivals))
        self._turns.join(sequence, (self.waiting,))
        if grammar is not None:
            self._grammars[sequence] = grammar
        insort(self.waiting, sequence, key=_by_rank)

    def step(self) -> Iterable[Outcome]:
        """See `Executor.step`."""
        self.involved = self.running
        try:
            refused = self._give()
            if self._abort_error is not None:
                raise self._abort_error
            outputs = self._backend.step() if self._given else ()
        except Exception:
            self._given.clear()  # they are lost: there is nothing to abort
            self._abort_error = None
            raise
        return self._outcomes(refused, outputs)

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """See `Executor.finish`. A backend that cannot abort fails in the next step."""
        self._grammars.pop(sequence, None)
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)
                self._turns.leave(sequence)
        sequence.status = status
        if self._given.pop(sequence.rank[1], None) is not None:
            try:
                self._backend.abort(sequence.rank[1])
            except AdapterError as error:
                self._abort_error = error

    def close(self) -> None:
        """See `Executor.close`."""
        self._backend.close()

    def _give(self) -> list[Outcome]:
        """Give the backend what it has room for; returns what it refused."""
        refused: list[Outcome] = []
        now = self._clock()
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self._turns.first(self.waiting)
            self.waiting.remove(sequence)
            self._turns.begin(sequence)
            self._turns.charge(sequence, sequence.num_prompt_tokens)
            self.running.append(sequence)
            sequence.status = SequenceStatus.RUNNING
            sequence.started_at = now
            request = self._request(sequence)
            try:
                self._backend.add(request)
            except DeviceLost:
                raise
            except AdapterError as error:
                refused.append(Outcome(sequence, error=runtime_failed(error)))
            else:
                self._given[request.id] = sequence
        return refused

    def _request(self, sequence: Sequence) -> TextRequest:
        """The backend is asked for one token where none is wanted (`max_tokens` is 0): so it computes the prompt."""
        sampling, grammar = sequence.sampling, self._grammars.get(sequence)
        max_tokens = None if sampling.max_tokens is None else max(1, sampling.max_tokens)
        max_length = max(sequence.max_length, sequence.num_prompt_tokens + 1)
        seen = sequence.seen
        return TextRequest(
            id=sequence.rank[1],
            token_ids=tuple(sequence.token_ids),
            sampling=replace(effective(sampling), max_tokens=max_tokens),
            max_length=min(sequence.context_length if seen else max_length, self.context_length),
            eos_token_ids=sequence.eos_token_ids | frozenset(sampling.stop_token_ids),
            guidance=None if grammar is None else grammar.guidance,
            text=seen.text if seen else None,
            images=seen.images if seen else (),
        )

    def _outcomes(self, refused: List[Outcome], outputs: List[TextOutput]) -> Iterator[Outcome]:
        yield from refused
        for output in outputs:
            sequence = self._given.get(output.id)
            if sequence is not None:
                yield from self._booked(sequence, output)

    def _booked(self, sequence: Sequence, output: TextOutput) -> Iterator[Outcome]:
        """An output, token by token; nothing more of it once the sequence is finished."""
        if output.num_cached_tokens is not None:
            sequence.num_cached_tokens = output.num_cached_tokens
        if output.num_prompt_tokens is not None and sequence.seen is not None:
            sequence.num_seen_tokens = output.num_prompt_tokens
        if output.error is not None or output.finish_reason is not None:
            del self._given[output.id]  # the backend has forgotten it
        if output.error is not None:
            yield Outcome(sequence, error=runtime_failed(output.error))
            return
        if output.token_ids:
            self._note_prompt(sequence)
            sequence.num_computed_tokens = len(sequence.token_ids)
            self._turns.charge(sequence, len(sequence.token_ids))
        if sequence.sampling.max_tokens == 0 and (output.token_ids or output.finish_reason):
            sequence.status = SequenceStatus.LENGTH_CAPPED
            yield Outcome(sequence)
            return
        for index, token_id in enumerate(output.token_ids, 1):
            sequence.append(token_id)
            if index == len(output.token_ids) and not sequence.is_finished:
                sequence.status = _end(sequence, output)
            yield Outcome(sequence, Sampled(token_id))
            if sequence.is_finished:  # with this token, or with the text that it made
                return
        if output.finish_reason is not None:
            sequence.status = _end(sequence, output)
            yield Outcome(sequence)

    def _note_prompt(self, sequence: Sequence) -> None:
        """What a prompt took that had the runtime to itself, once its first token is there."""
        is_first = sequence.num_generated_tokens == 0 and sequence.seen is None
        if is_first and len(self.running) == 1 and sequence.started_at is not None:
            num_computed = sequence.num_prompt_tokens - sequence.num_cached_tokens
            self.pace.note_step(num_computed, self._clock() - sequence.started_at)


def _end(sequence: Sequence, output: TextOutput) -> SequenceStatus:
    """The status that the backend's reason gives."""
    match output.finish_reason:
        case None:
            return sequence.status
        case FinishReason.LENGTH:
            return SequenceStatus.LENGTH_CAPPED
        case _:
            return SequenceStatus.STOPPED
