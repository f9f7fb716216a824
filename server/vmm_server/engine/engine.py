"""The async face of one loaded text model."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import TypeGuard, cast

from tokenizers import Tokenizer

from vmm_adapters.base import CausalLMRunner, TextBackend
from vmm_adapters.types import SamplingParams
from vmm_server.callers import Caller
from vmm_server.engine.backend_executor import BackendExecutor
from vmm_server.engine.draft_model import DraftModel
from vmm_server.engine.drafting import StepCosts
from vmm_server.engine.executor import EngineLoad, EngineStats, Executor
from vmm_server.engine.forecast import Claim, check_deadline, first_token_s, retry_after_s
from vmm_server.engine.generation import Generation
from vmm_server.engine.grammar import CompiledGrammar, GrammarCompiler
from vmm_server.engine.histogram import EngineHistograms
from vmm_server.engine.lacking import lacking
from vmm_server.engine.paged_executor import PagedExecutor
from vmm_server.engine.sequence import SeenPrompt, Sequence, SequenceStatus
from vmm_server.engine.speculation import Speculator
from vmm_server.engine.stopping import AnswerText, Detokenizer, special_token_ids
from vmm_server.engine.stream import Outbox, TokenStream
from vmm_server.engine.worker import Answer, Close, Prepared, Submit, Worker
from vmm_server.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    Overloaded,
    PlacementFailed,
    ShuttingDown,
    UnsupportedParameter,
)
from vmm_server.requests import Composite, Constraint

logger = logging.getLogger(__name__)

_ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of one engine."""

    max_batched_tokens: int = 512
    """New tokens in a step."""
    max_sequences: int = 64
    """Generations that run at the same time; in a step each takes at least one of `max_batched_tokens`."""
    max_queue: int = 512
    """Generations that may wait beyond those that run."""
    background_tokens: int = 16
    """Of a prompt in a step for priorities above 0, or half as many that decode: an urgent request waits for them, and
    should wait little even where its own prompt is cached."""
    max_score_bytes: int = 64 * 1024**2
    """Float32 logits of scored prompt positions in a step."""
    gather_s: float = 0.02
    """How long an idle engine waits for requests that are being prepared: a step with one prompt takes half as long
    as one with sixteen, and those that just miss it wait for two."""
    speculation: bool = False
    """Whether tokens are guessed and checked several at a time, where that pays (`speculation`)."""


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """Tokens since an engine's start, a step old at most. They only grow."""

    num_prompt_tokens: int
    """Of generations that are over, cached ones included."""
    num_cached_tokens: int
    """Of them, found in the prefix cache and not computed again."""
    num_generated_tokens: int
    """Drawn, also of generations under way."""


class Engine:
    """Takes prompts, gives generations. Used from one event loop; the work is done by a `Worker`.

    `draft_runner` is of a smaller model with the same vocabulary, which guesses where `speculation` is on; the engine
    closes it. `step_costs`: what is known already of the steps that guesses take.
    """

    def __init__(
        self,
        runtime: CausalLMRunner | TextBackend,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: frozenset[int],
        options: EngineOptions,
        context_length: int,
        clock: Callable[[], float] = time.perf_counter,
        draft_runner: CausalLMRunner | None = None,
        step_costs: StepCosts | None = None,
    ) -> None:
        known = frozenset(i for i in eos_token_ids if i < runtime.vocab_size)
        self._executor = _executor(runtime, known, options, clock, draft_runner, step_costs)
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)
        self.grammars = GrammarCompiler(tokenizer, eos_token_ids, runtime.vocab_size)
        """Compiles what `submit` takes as `grammar`."""
        self._eos_token_ids = known
        self.context_length = min(context_length, self._executor.context_length)
        """Prompt and answer together; also bounded by the KV blocks there are."""
        self._max_unfinished = self._executor.max_sequences + options.max_queue
        self._clock = clock
        self._num_submitted = 0
        self._unread: deque[Sequence] = deque()
        """Submitted, and for all that is known on the event loop still in the mailbox."""
        self._outbox: Outbox | None = None
        self._is_closing = False
        self._worker = Worker(self._executor, clock, options.gather_s)
        self._worker.start()

    @property
    def stats(self) -> EngineStats:
        """Counts of sequences and blocks."""
        stats = self._executor.stats
        return replace(stats, num_waiting=stats.num_waiting + self._num_submitted - self._worker.num_received)

    @property
    def histograms(self) -> EngineHistograms:
        """How long requests waited, tokens followed each other, and how much went into a step."""
        return self._worker.histograms

    @property
    def totals(self) -> EngineTotals:
        """Tokens since the start."""
        worker = self._worker
        return EngineTotals(worker.num_prompt_tokens, worker.num_cached_tokens, worker.num_generated_tokens)

    @property
    def load(self) -> EngineLoad:
        """How much there is to do. Call on the event loop."""
        self._forget_read()
        running, waiting = tuple(self._executor.running), (*self._executor.waiting, *self._unread)
        left = (*running, *waiting)
        return EngineLoad(
            num_waiting=len(waiting),
            num_running=len(running),
            num_pending_prompt_tokens=sum(max(0, each.num_prompt_tokens - each.num_computed_tokens) for each in left),
            num_pending_output_tokens=sum(max(0, each.max_length - len(each.token_ids)) for each in left),
        )

    @property
    def failure(self) -> str | None:
        """Which device failed, and its words, if that ended the engine: nothing will run here any more."""
        return self._worker.failure

    def lacks(
        self, sampling: SamplingParams, guidance: CompiledGrammar | Constraint | Composite | None = None
    ) -> dict[str, str]:
        """Fields that the runtime cannot honour, or `guidance` → why. One that changes nothing does not count."""
        return lacking(sampling, self._executor.lacks, is_guided=guidance is not None)

    def submit(
        self,
        prompt: Tokens[int],
        sampling: SamplingParams,
        *,
        grammar: CompiledGrammar | None = None,
        shown_tokens: frozenset[int] = frozenset(),
        caller: Caller = _ANYBODY,
        context_length: int | None = None,
        param: str = "prompt",
        seen: SeenPrompt | None = None,
        prediction: Tokens[int] = (),
        may_draft: bool = True,
    ) -> Generation:
        """Queue a generation for a caller, who says how urgent it is. Call on the event loop.

        An answer under a `grammar` ends where that says, `min_tokens` or not. `shown_tokens` are special tokens that
        its text shows all the same. `context_length` can lower the engine's own. `seen` stands for a prompt with
        images, which is then empty; how many tokens it has is in `usage` alone. `prediction` is what the answer may
        say, `may_draft` whether its tokens may be guessed. Raises at once: `InvalidRequest` (`param` names the prompt's
        field), `UnsupportedParameter` for what the runtime `lacks`, `ContextLengthExceeded`, `Overloaded`,
        `DeadlineUnreachable` when there is too much before it, `DeadlineExceeded`, `ShuttingDown`, `PlacementFailed`
        after a `failure`. Past its deadline the generation fails with `DeadlineExceeded`.
        """
        if self.failure is not None:  # and then it is being closed, but nobody shuts down
            raise PlacementFailed(self.failure)
        if self._is_closing or not self._worker.is_alive():
            raise ShuttingDown
        limit = self.context_length if context_length is None else min(context_length, self.context_length)
        if seen is None:
            self._check_prompt(prompt, limit, param)
        elif not self._executor.takes_images:
            raise UnsupportedParameter(f"{param}: images cannot be seen on {self._executor.device}", param=param)
        elif seen.num_text_tokens > (most := min(limit, self._executor.max_prompt_tokens)):
            raise ContextLengthExceeded(limit=most, asked=seen.num_text_tokens, param=param)
        self._check_sampling(sampling)
        self._check_lacks(sampling, grammar)
        if self._num_submitted - self._worker.num_finished >= self._max_unfinished:
            raise Overloaded(retry_after_s=retry_after_s(self._executor.pace.place_s(len(self._executor.running))))
        sequence = Sequence(
            list(prompt),
            sampling,
            max_length=limit,
            eos_token_ids=self._eos_token_ids,
            caller=caller,
            submitted_at=self._clock(),
            seen=seen,
            prediction=tuple(prediction),
            may_draft=may_draft,
        )
        if caller.deadline_at is not None:
            sequence.deadline_at = self._deadline(caller.deadline_at - time.monotonic(), sequence)
        answer = Answer(
            AnswerText(Detokenizer(self._tokenizer, self._special - shown_tokens, prompt), sampling.stop),
            TokenStream(),
            self._outbox_of(asyncio.get_running_loop()),
        )
        self._num_submitted += 1
        self._unread.append(sequence)
        self._forget_read()
        self._worker.post(Submit(sequence, answer, grammar))
        return Generation(self._worker, sequence, answer.stream)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around what comes before `submit`: an idle engine that gets another request waits a moment for this one."""
        self._worker.num_expected += 1
        try:
            yield
        finally:
            self._worker.num_expected -= 1
            if not self._worker.num_expected:
                self._worker.post(Prepared())  # whether or not it was submitted, nobody need wait for it

    async def aclose(self) -> None:
        """Abort what is left, end the thread and close the runner. Idempotent; waits for the step under way."""
        if not self._is_closing:
            self._is_closing = True
            self._worker.post(Close())
            self.grammars.close()
        await asyncio.to_thread(self._worker.join)

    def _check_prompt(self, prompt: Tokens[int], limit: int, param: str) -> None:
        if not prompt:
            raise InvalidRequest(f"{param} is empty: there is no token to continue", param=param)
        if len(prompt) > (limit := min(limit, self._executor.max_prompt_tokens)):
            raise ContextLengthExceeded(limit=limit, asked=len(prompt), param=param)
        self._check_ids(prompt, param)

    def _check_sampling(self, sampling: SamplingParams) -> None:
        """Refuse what could only fail later."""
        if sampling.max_tokens is not None and sampling.max_tokens < 0:
            raise InvalidRequest(f"max_tokens must be at least 0, not {sampling.max_tokens}", param="max_tokens")
        self._check_ids(sampling.logit_bias, "logit_bias")
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")

    def _check_ids(self, token_ids: Collection[int], param: str) -> None:
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self._executor.vocab_size):
            last = self._executor.vocab_size - 1
            raise InvalidRequest(
                f"{param} names a token that the model does not have: ids are 0 to {last}", param=param
            )

    def _check_lacks(self, sampling: SamplingParams, grammar: CompiledGrammar | None) -> None:
        for field, reason in self.lacks(sampling, grammar).items():
            param = grammar.constraint.param if grammar is not None and field == "guidance" else field
            message = f"{param} cannot be honoured on {self._executor.device}: {reason}"
            raise UnsupportedParameter(message, param=param)

    def _forget_read(self) -> None:
        while len(self._unread) > self._num_submitted - self._worker.num_received:
            self._unread.popleft()

    def _deadline(self, left_s: float, sequence: Sequence) -> float:
        """On our clock. Raises `DeadlineExceeded`, and `DeadlineUnreachable` where the first token would be late."""
        self._forget_read()
        others = [*self._executor.running, *self._executor.waiting, *self._unread]
        expected_s = first_token_s(
            self._claim(sequence),
            [self._claim(each) for each in others],
            self._executor.pace,
            max_sequences=self._executor.max_sequences,
            step_tokens=self._executor.step_tokens,
        )
        check_deadline(left_s, expected_s)
        return sequence.submitted_at + left_s

    def _claim(self, sequence: Sequence) -> Claim:
        """What a sequence needs; of a prompt that has not begun, as much is cached as of those that are over."""
        num_left = max(0, sequence.num_prompt_tokens - sequence.num_computed_tokens)
        is_running = sequence.status is SequenceStatus.RUNNING
        if not is_running:
            totals = self.totals
            num_left = ceil(num_left * (1 - totals.num_cached_tokens / max(1, totals.num_prompt_tokens)))
        return Claim(sequence.priority, sequence.account.tenant, sequence.weight, num_left, is_running)

    def _outbox_of(self, loop: asyncio.AbstractEventLoop) -> Outbox:
        if self._outbox is None or self._outbox.loop is not loop:
            self._outbox = Outbox(loop)
        return self._outbox


def _executor(
    runtime: CausalLMRunner | TextBackend,
    eos_token_ids: frozenset[int],
    options: EngineOptions,
    clock: Callable[[], float],
    draft_runner: CausalLMRunner | None,
    step_costs: StepCosts | None,
) -> Executor:
    if _is_runner(runtime):
        return PagedExecutor(
            runtime,
            eos_token_ids=eos_token_ids,
            max_batched_tokens=options.max_batched_tokens,
            max_sequences=options.max_sequences,
            max_score_bytes=options.max_score_bytes,
            background_tokens=options.background_tokens,
            clock=clock,
            speculator=_speculator(runtime, draft_runner, options, clock, step_costs) if options.speculation else None,
        )
    return BackendExecutor(cast(TextBackend, runtime), max_sequences=options.max_sequences, clock=clock)


def _speculator(
    runner: CausalLMRunner,
    draft_runner: CausalLMRunner | None,
    options: EngineOptions,
    clock: Callable[[], float],
    step_costs: StepCosts | None,
) -> Speculator:
    if draft_runner is None:
        return Speculator(runner.vocab_size, costs=step_costs)
    draft_model = DraftModel(draft_runner, clock, max_batched_tokens=options.max_batched_tokens)
    return Speculator(runner.vocab_size, draft_model, step_costs)


def _is_runner(runtime: CausalLMRunner | TextBackend) -> TypeGuard[CausalLMRunner]:
    return hasattr(runtime, "execute")
