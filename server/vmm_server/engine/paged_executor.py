"""A `CausalLMRunner` under our own scheduler: it computes batches, and tokens are drawn from its logits."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from vmm_adapters.base import CausalLMRunner
from vmm_server.engine.block_pool import BlockPool
from vmm_server.engine.executor import EngineStats, Outcome
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.sampler import SamplingState, sample
from vmm_server.engine.scheduler import Scheduler
from vmm_server.engine.scoring import score
from vmm_server.engine.sequence import Sequence, SequenceStatus
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
    ) -> None:
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self._scheduler = Scheduler(
            self._pool,
            max_batched_tokens=max_batched_tokens,
            max_sequences=max_sequences,
            max_scores=max_score_bytes // (4 * runner.vocab_size),
        )
        self.device = runner.device
        self.vocab_size = runner.vocab_size
        self.context_length = self.max_prompt_tokens = min(runner.context_length, self._pool.num_positions)
        self.max_sequences = self._scheduler.max_sequences
        self.waiting = self._scheduler.waiting
        self.running = self._scheduler.running
        self.involved: Collection[Sequence] | None = None
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._states: dict[Sequence, SamplingState] = {}

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
        )

    def add(self, sequence: Sequence, grammar: CompiledGrammar | None) -> None:
        """See `Executor.add`."""
        self._states[sequence] = SamplingState(sequence.sampling, sequence.token_ids, self._eos_token_ids, grammar)
        self._scheduler.add(sequence)

    def step(self) -> list[Outcome]:
        """See `Executor.step`."""
        self.involved = None
        step = self._scheduler.schedule()
        self.involved = step.sequences
        now = self._clock()
        for sequence in step.sequences:
            if sequence.started_at is None:
                sequence.started_at = now
        if step.block_copies:
            self._runner.copy_blocks(step.block_copies)
        logits = self._runner.execute(step.batch)
        scores = {rows.sequence: score(logits, rows) for rows in step.scored}
        if step.scored:
            logits = logits[list(step.sampled_rows)]
        states = [self._states[sequence] for sequence in step.sampled]
        tokens = sample(logits, states)
        self._scheduler.update(step, [None if token is None else token.token_id for token in tokens])
        for sequence, state in zip(step.sampled, states, strict=True):
            if state.is_complete:
                self._scheduler.finish(sequence, SequenceStatus.STOPPED)
        drawn = dict(zip(step.sampled, tokens, strict=True))
        outcomes: list[Outcome] = []
        for sequence in step.sequences:
            scored, token = scores.get(sequence, ()), drawn.get(sequence)
            if scored is None or (token is None and sequence in drawn):
                outcomes.append(Outcome(sequence, scored=scored or (), error=self._no_number(sequence)))
            elif token is not None or scored or sequence.is_finished:
                outcomes.append(Outcome(sequence, token, scored))
        return outcomes

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """See `Executor.finish`."""
        self._states.pop(sequence, None)
        self._scheduler.finish(sequence, status)

    def close(self) -> None:
        """See `Executor.close`."""
        self._runner.close()

    def _no_number(self, sequence: Sequence) -> VMMError:
        """A grammar that turns out too complex is the request's own fault, and would be again."""
        if (failure := self._states[sequence].failure) is not None:
            return InvalidRequest(failure, hint="ask for a simpler form")
        return GenerationFailed("the model's output is not a number, or every token is forbidden")
