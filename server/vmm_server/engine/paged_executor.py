"""A `CausalLMRunner` under our own scheduler: it computes batches, and tokens are drawn from its logits."""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.types import TokenLogprob
from vmm_server.engine.block_pool import BlockPool
from vmm_server.engine.executor import EngineStats, Outcome
from vmm_server.engine.forecast import Pace
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.sampler import SamplingState, draw
from vmm_server.engine.scheduler import Scheduler
from vmm_server.engine.scoring import score
from vmm_server.engine.sequence import Sequence, SequenceStatus
from vmm_server.engine.speculation import Speculator
from vmm_server.engine.step import DrawRows, Step
from vmm_server.errors import GenerationFailed, InvalidRequest, VMMError


class PagedExecutor:
    """See `Executor`. Owns the runner and the scheduler."""

    lacks: Mapping[str, str] = MappingProxyType({})
    takes_images = False

    def __init__(
        self,
        runner: CausalLMRunner,
        *,
        eos_token_ids: frozenset[int],
        max_batched_tokens: int,
        max_sequences: int,
        max_score_bytes: int,
        clock: Callable[[], float],
        background_tokens: int | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self._scheduler = Scheduler(
            self._pool,
            max_batched_tokens=max_batched_tokens,
            max_sequences=max_sequences,
            max_scores=max_score_bytes // (4 * runner.vocab_size),
            background_tokens=background_tokens,
        )
        self.device = runner.device
        self.vocab_size = runner.vocab_size
        self.context_length = self.max_prompt_tokens = min(runner.context_length, self._pool.num_positions)
        self.max_sequences = self._scheduler.max_sequences
        self.step_tokens = max_batched_tokens
        self.pace = Pace()
        self.waiting = self._scheduler.waiting
        self.running = self._scheduler.running
        self.involved: Collection[Sequence] | None = None
        self.num_step_tokens = 0
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._states: dict[Sequence, SamplingState] = {}
        self._speculator = speculator
        self._num_drafted_tokens = self._num_accepted_tokens = 0

    @property
    def has_work(self) -> bool:
        """See `Executor.has_work`."""
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        """See `Executor.stats`."""
        return EngineStats(
            num_waiting=len(self.waiting),
            num_running=len(self.running),
            num_blocks=self._pool.num_blocks,
            num_free_blocks=self._pool.num_free,
            num_preempted=self._scheduler.num_preempted,
            num_drafted_tokens=self._num_drafted_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
        )

    def add(self, sequence: Sequence, grammar: CompiledGrammar | None) -> None:
        """See `Executor.add`."""
        state = SamplingState(sequence.sampling, sequence.token_ids, self._eos_token_ids, grammar)
        self._states[sequence] = state
        if self._speculator is not None:
            self._speculator.add(sequence, state)
        self._scheduler.add(sequence)

    def step(self) -> Iterator[Outcome]:
        """See `Executor.step`. What is drawn is drawn as it is read, since the text so far may end the answer."""
        self.involved = None
        speculator = self._speculator
        step = self._scheduler.schedule(None if speculator is None else speculator.draft)
        self.involved = step.sequences
        self.num_step_tokens = step.batch.num_tokens
        now = self._clock()
        for sequence in step.sequences:
            if sequence.started_at is None:
                sequence.started_at = now
        if step.block_copies:
            self._runner.copy_blocks(step.block_copies)
        logits = self._runner.execute(step.batch)
        spent = self._clock() - now
        num_drafts = step.num_drafts
        if not num_drafts:
            self.pace.note_step(step.batch.num_tokens - len(step.sequences), spent)
        if speculator is not None and step.only_decodes:
            speculator.note_step(len(step.sequences), num_drafts, spent)
        return self._outcomes(step, logits)

    def _outcomes(self, step: Step, logits: NDArray[np.float32]) -> Iterator[Outcome]:
        scores = {rows.sequence: score(logits, rows) for rows in step.scored}
        draws = {rows.sequence: rows for rows in step.draws}
        self._scheduler.update(step)
        for sequence in step.sequences:
            scored, rows = scores.get(sequence, ()), draws.get(sequence)
            if scored is None:
                yield Outcome(sequence, error=self._no_number(sequence))
            elif rows is not None:
                yield from self._drawn(rows, logits, scored)
            elif scored or sequence.is_finished:
                yield Outcome(sequence, None, scored)

    def _drawn(
        self, rows: DrawRows, logits: NDArray[np.float32], scored: tuple[TokenLogprob, ...]
    ) -> Iterator[Outcome]:
        """Draw until a token is not the one that was drafted, or ends the answer."""
        sequence, drafts = rows.sequence, rows.draft_ids
        state = self._states[sequence]
        is_predicted = bool(drafts) and self._speculator is not None and self._speculator.is_predicted(sequence)
        first_drawn = len(sequence.token_ids)
        self._num_drafted_tokens += len(drafts)
        sequence.num_drafted_tokens += len(drafts)
        sequence.num_drafted_predictions += len(drafts) * is_predicted
        for index in range(len(drafts) + 1):
            token = draw(logits[rows.first_row + index], state)
            if token is None:
                yield Outcome(sequence, scored=scored, error=self._no_number(sequence))
                return
            is_drafted = index < len(drafts) and token.token_id == drafts[index]
            self._num_accepted_tokens += is_drafted
            sequence.num_accepted_tokens += is_drafted
            sequence.num_accepted_predictions += is_drafted and is_predicted
            self._scheduler.append(sequence, token.token_id, is_drafted=is_drafted)
            if state.is_complete:
                self._scheduler.finish(sequence, SequenceStatus.STOPPED)
            is_last = not is_drafted or sequence.is_finished
            if is_last:
                self._settle(sequence, len(drafts), sequence.token_ids[first_drawn:])
            yield Outcome(sequence, token, scored)
            if is_last or sequence.is_finished:  # with this token, or with the text that it made
                return
            scored = ()

    def _settle(self, sequence: Sequence, num_drafts: int, drawn: list[int]) -> None:
        if num_drafts and not sequence.is_finished:
            self._scheduler.settle(sequence)
        if self._speculator is not None:
            self._speculator.settle(sequence, num_drafts, drawn)

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """See `Executor.finish`."""
        self._states.pop(sequence, None)
        if self._speculator is not None:
            self._speculator.forget(sequence)
        self._scheduler.finish(sequence, status)

    def close(self) -> None:
        """See `Executor.close`."""
        self._runner.close()
        if self._speculator is not None:
            self._speculator.close()

    def _no_number(self, sequence: Sequence) -> VMMError:
        """A grammar that turns out too complex is the request's own fault, and would be again."""
        if (failure := self._states[sequence].failure) is not None:
            return InvalidRequest(failure, hint="ask for a simpler form")
        return GenerationFailed("the model's output is not a number, or every token is forbidden")
