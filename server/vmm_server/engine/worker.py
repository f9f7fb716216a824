"""The one thread that touches the runtime: it reads its mailbox, takes a step, and begins again.

What happens to one generation: `Submit` → `Executor.add` → in some steps a token from `Executor.step`,
`AnswerText.push` → one `Delta` a step through the `Outbox` → a last one with the reason.
An `Abort` is a message like any other, read before the next step.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread

from vmm_adapters.errors import AdapterError, DeviceLost
from vmm_server.engine.executor import Executor, runtime_failed
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.histogram import EngineHistograms
from vmm_server.engine.sampler import Sampled
from vmm_server.engine.sequence import FINISH_REASONS, Sequence, SequenceStatus
from vmm_server.engine.stopping import AnswerText
from vmm_server.engine.stream import Delta, Outbox, TokenStream
from vmm_server.engine.telling import tell
from vmm_server.errors import DeadlineExceeded, GenerationFailed, PlacementFailed, VMMError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of a sequence besides its tokens: how they are shown and sent."""

    text: AnswerText
    stream: TokenStream
    outbox: Outbox
    context: Context = field(default_factory=copy_context)
    """Of the task that asked."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate."""

    sequence: Sequence
    answer: Answer
    grammar: CompiledGrammar | None


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody wants this sequence any more."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Prepared:
    """No request is being prepared any more: there is nothing to gather."""


@dataclass(frozen=True, slots=True)
class Close:
    """Abort what is left, close the runner, end the thread."""


Message = Submit | Abort | Prepared | Close


class Worker(Thread):
    """Owns the executor from `start` on. Sleeps when there is nothing to do.

    A step that raises fails the sequences in it, and no others. When the device is lost, or two steps fail in a row, it
    is given up: all sequences end, those that had not started with `PlacementFailed`, and so does whatever comes later.
    So it is when something is raised that no step may raise: the thread goes on, for those who still write to it.
    `post` is safe from any thread and from finalisers; the public counters are written by the worker only and may be
    read from anywhere.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float], gather_s: float) -> None:
        super().__init__(name="vmm-engine", daemon=True)
        self.num_received = 0
        """`Submit` messages read so far."""
        self.num_finished = 0
        """Of those, generations that are over."""
        self.num_expected = 0
        """Requests that are being prepared and will be posted in a moment. Written by the event loop only."""
        self.num_prompt_tokens = 0
        """Of sequences that are over and had begun; those found in the prefix cache included."""
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        """Tokens drawn so far."""
        self.failure: str | None = None
        """Which device was given up, and its words."""
        self.histograms = EngineHistograms()
        self._executor = executor
        self._num_failed_steps = 0
        self._clock = clock
        self._gather_s = gather_s
        self._mailbox: SimpleQueue[Message] = SimpleQueue()
        self._answers: dict[Sequence, Answer] = {}
        self._deadlines: dict[Sequence, float] = {}
        self._next_deadline = inf
        """No deadline is before it."""
        self._is_closing = False

    def post(self, message: Message) -> None:
        """Leave a message; it is read before the next step."""
        self._mailbox.put(message)

    def run(self) -> None:
        """The thread's body; ends after `Close`."""
        try:
            while not self._is_closing:
                try:
                    self._turn()
                except BaseException as error:
                    logger.critical("the engine's thread was to end", exc_info=True)
                    self._give_up(error)
        finally:
            try:
                self._abort_all()
            finally:
                self._executor.close()

    def _turn(self) -> None:
        try:
            self._read_mailbox()
            if self._deadlines and self._clock() >= self._next_deadline:
                self._fail_late()
        except Exception as error:
            logger.exception("the engine's mailbox could not be read")
            self._fail(list(self._answers), _generation_failed(error))
        if self._is_closing or not self._executor.has_work:
            return
        try:
            self._step()
        except Exception as error:  # noqa: BLE001 - told in the log
            tell(logger, "an engine step failed", [self._answers[each].context for each in self._involved])
            self._num_failed_steps += 1
            if self._num_failed_steps > 1 or isinstance(error, DeviceLost):
                self._give_up(error)
            else:
                self._fail(self._involved, _generation_failed(error))
        else:
            self._num_failed_steps = 0

    @property
    def _involved(self) -> list[Sequence]:
        """Whom it concerns if a step fails."""
        involved = self._executor.involved
        return [each for each in (self._answers if involved is None else involved) if each in self._answers]

    def _read_mailbox(self) -> None:
        """Read all there is; wait for a message only when there is nothing else to do."""
        wait = not self._executor.has_work
        gather_until = 0.0
        while not self._is_closing:
            try:
                if wait:
                    message = self._mailbox.get()
                    if isinstance(message, Prepared):
                        continue
                    gather_until = time.monotonic() + self._gather_s
                    wait = False
                elif self.num_expected > 0 and (left := gather_until - time.monotonic()) > 0:
                    message = self._mailbox.get(timeout=left)
                else:
                    message = self._mailbox.get_nowait()
            except Empty:
                return
            match message:
                case Submit(sequence, answer, grammar):
                    self.num_received += 1
                    self._answers[sequence] = answer
                    if self.failure is None:
                        self._executor.add(sequence, grammar)
                        self._watch(sequence)
                    else:
                        self._fail([sequence], PlacementFailed(self.failure))
                case Abort(sequence):
                    self._close(sequence, SequenceStatus.ABORTED)
                case Prepared():
                    continue
                case Close():
                    self._is_closing = True

    def _watch(self, sequence: Sequence) -> None:
        if sequence.deadline_at is not None:
            self._deadlines[sequence] = sequence.deadline_at
            self._next_deadline = min(self._next_deadline, sequence.deadline_at)

    def _fail_late(self) -> None:
        """End what is past its deadline, before anything more is computed for it."""
        now = self._clock()
        late = [sequence for sequence, deadline_at in self._deadlines.items() if deadline_at <= now]
        self._fail(late, DeadlineExceeded())
        self._next_deadline = min(self._deadlines.values(), default=inf)

    def _step(self) -> None:
        outcomes = self._executor.step()
        now = self._clock()
        self._count_step()
        says: list[tuple[Answer, Delta | VMMError]] = []
        for outcome in outcomes:
            sequence = outcome.sequence
            answer = self._answers[sequence]
            if outcome.scored:
                says.append((answer, Delta("", prompt_logprobs=outcome.scored)))
            if outcome.error is not None:
                self._close(sequence, SequenceStatus.FAILED)
                says.append((answer, outcome.error))
            elif outcome.drawn is not None:
                says.append((answer, self._say(sequence, outcome.drawn, now)))
            elif sequence.is_finished:
                says.append((answer, self._last_words(sequence, "", now)))
        self._send(says)

    def _count_step(self) -> None:
        if involved := self._executor.involved:
            self.histograms.step_sequences.add(len(involved))
        if num_tokens := self._executor.num_step_tokens:
            self.histograms.step_tokens.add(num_tokens)

    def _say(self, sequence: Sequence, drawn: Sampled, now: float) -> Delta | VMMError:
        """What to send for a drawn token; an error that is this sequence's own ends no other."""
        try:
            return self._delta(sequence, drawn, now)
        except Exception as error:  # noqa: BLE001 - told in the log
            tell(logger, "a token could not be shown", [self._answers[sequence].context])
            self._close(sequence, SequenceStatus.FAILED)
            return _generation_failed(error)

    def _delta(self, sequence: Sequence, drawn: Sampled, now: float) -> Delta:
        """What a drawn token adds to the answer. Ends the sequence on a stop string."""
        answer = self._answers[sequence]
        if sequence.last_token_at is not None:
            self.histograms.inter_token_s.add(now - sequence.last_token_at)
        sequence.stamp(now)
        self.num_generated_tokens += 1
        if sequence.ends_with(drawn.token_id):
            return self._last_words(sequence, "", now)
        may_stop = sequence.num_generated_tokens >= sequence.sampling.min_tokens
        text = answer.text.push(drawn.token_id, may_stop=may_stop)
        if answer.text.is_stopped:
            self._executor.finish(sequence, SequenceStatus.STOPPED)
        delta = self._last_words(sequence, text, now) if sequence.is_finished else Delta(text)
        logprobs = () if drawn.logprob is None else (drawn.logprob,)
        return Delta(delta.text, (drawn.token_id,), logprobs, delta.finish_reason, delta.usage)

    def _last_words(self, sequence: Sequence, text: str, now: float) -> Delta:
        answer = self._answers[sequence]
        text += answer.text.flush()
        usage = replace(sequence.usage(now), stop_string=answer.text.stop_string)
        self._executor.pace.note_answer(usage.prefill_s + usage.decode_s)
        self._close(sequence, sequence.status)
        return Delta(text, finish_reason=FINISH_REASONS[sequence.status], usage=usage)

    def _close(self, sequence: Sequence, status: SequenceStatus) -> None:
        """Forget a sequence; its blocks are free afterwards."""
        if self._answers.pop(sequence, None) is not None:
            self._deadlines.pop(sequence, None)
            self._executor.finish(sequence, status)
            self.num_finished += 1
            started = self._clock() if sequence.started_at is None else sequence.started_at
            self.histograms.queue_s.add(started - sequence.submitted_at)
            if sequence.started_at is not None:
                self.num_prompt_tokens += sequence.num_prompt_tokens + sequence.num_seen_tokens
                self.num_cached_tokens += sequence.num_cached_tokens

    def _fail(self, sequences: list[Sequence], error: VMMError) -> None:
        answers = [self._answers[sequence] for sequence in sequences if sequence in self._answers]
        for sequence in sequences:
            self._close(sequence, SequenceStatus.FAILED)
        self._send((answer, error) for answer in answers)

    def _give_up(self, error: BaseException) -> None:
        """End all: the device is gone."""
        words = error.message if isinstance(error, AdapterError) else f"{type(error).__name__}: {error}"
        self.failure = f"the device {self._executor.device} failed: {words}"
        hint = getattr(error, "hint", None) or "load the model again, on another device if there is one"
        self._fail([each for each in self._answers if each.has_started], GenerationFailed(self.failure, hint=hint))
        self._fail(list(self._answers), PlacementFailed(self.failure))

    def _abort_all(self) -> None:
        """Tell everybody who still listens that it is over."""
        now = self._clock()
        items = []
        for sequence, answer in list(self._answers.items()):
            self._executor.finish(sequence, SequenceStatus.ABORTED)
            items.append((answer, self._last_words(sequence, "", now)))
        self._send(items)

    def _send(self, items: Iterable[tuple[Answer, Delta | VMMError]]) -> None:
        """Post to the event loop, all at once."""
        by_loop: dict[Outbox, list[tuple[TokenStream, Delta | VMMError]]] = {}
        for answer, item in items:
            by_loop.setdefault(answer.outbox, []).append((answer.stream, item))
        for outbox, posts in by_loop.items():
            if not outbox.post(posts):
                for sequence in [s for s, answer in self._answers.items() if answer.outbox is outbox]:
                    self._close(sequence, SequenceStatus.ABORTED)


def _generation_failed(error: Exception) -> GenerationFailed:
    if isinstance(error, AdapterError):
        return runtime_failed(error)
    return GenerationFailed(f"the engine failed: {type(error).__name__}: {error}", hint="see the server's log")
