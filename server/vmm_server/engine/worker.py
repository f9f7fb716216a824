"""The one thread that touches the runner: it reads its mailbox, takes a step, and begins again.

What happens to one generation: `Submit` → `Scheduler.add` → in some steps `Scheduler.schedule`, `runner.execute`,
`sample`, `Scheduler.update`, `AnswerText.push` → one `Delta` a step through the `Outbox` → a last one with the reason.
An `Abort` is a message like any other, read before the next step.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.errors import AdapterError
from vmm_server.engine.sampler import Sampled, SamplingState, sample
from vmm_server.engine.scheduler import Scheduler, Step
from vmm_server.engine.scoring import score
from vmm_server.engine.sequence import FINISH_REASONS, Sequence, SequenceStatus
from vmm_server.engine.stopping import AnswerText
from vmm_server.engine.stream import Delta, Outbox, TokenStream
from vmm_server.errors import GenerationFailed, InvalidRequest, VMMError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of a sequence besides its tokens: how they are drawn, shown and sent."""

    sampling: SamplingState
    text: AnswerText
    stream: TokenStream
    outbox: Outbox


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate."""

    sequence: Sequence
    answer: Answer


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
    """Owns the runner and the scheduler from `start` on. Sleeps when there is nothing to do.

    A step that raises fails the sequences in it, and no others. `post` is safe from any thread and from
    finalisers; the public counters are written by the worker only and may be read from anywhere.
    """

    def __init__(
        self, runner: CausalLMRunner, scheduler: Scheduler, clock: Callable[[], float], gather_s: float
    ) -> None:
        super().__init__(name="vmm-engine", daemon=True)
        self.num_received = 0
        """`Submit` messages read so far."""
        self.num_finished = 0
        """Of those, generations that are over."""
        self.num_expected = 0
        """Requests that are being prepared and will be posted in a moment. Written by the event loop only."""
        self.mean_answer_s = 0.0
        """Running mean of the time from a generation's first step to its end."""
        self._runner = runner
        self._scheduler = scheduler
        self._clock = clock
        self._gather_s = gather_s
        self._mailbox: SimpleQueue[Message] = SimpleQueue()
        self._answers: dict[Sequence, Answer] = {}
        self._is_closing = False

    def post(self, message: Message) -> None:
        """Leave a message; it is read before the next step."""
        self._mailbox.put(message)

    def run(self) -> None:
        """The thread's body; ends after `Close`."""
        try:
            while not self._is_closing:
                self._turn()
        finally:
            try:
                self._abort_all()
            finally:
                self._runner.close()

    def _turn(self) -> None:
        involved: Iterable[Sequence] = self._answers
        try:
            self._read_mailbox()
            if self._scheduler.has_work and not self._is_closing:
                step = self._scheduler.schedule()
                involved = step.sequences
                self._compute(step)
        except Exception as error:
            logger.exception("an engine step failed")
            self._fail(list(involved), _generation_failed(error))

    def _read_mailbox(self) -> None:
        """Read all there is; wait for a message only when there is nothing else to do."""
        wait = not self._scheduler.has_work
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
                case Submit(sequence, answer):
                    self.num_received += 1
                    self._answers[sequence] = answer
                    self._scheduler.add(sequence)
                case Abort(sequence):
                    self._close(sequence, SequenceStatus.ABORTED)
                case Prepared():
                    continue
                case Close():
                    self._is_closing = True

    def _compute(self, step: Step) -> None:
        now = self._clock()
        for sequence in step.sequences:
            if sequence.started_at is None:
                sequence.started_at = now
        if step.block_copies:
            self._runner.copy_blocks(step.block_copies)
        answers = [self._answers[sequence] for sequence in step.sequences]
        logits = self._runner.execute(step.batch)
        scores = {rows.sequence: score(logits, rows) for rows in step.scored}
        if step.scored:
            logits = logits[list(step.sampled_rows)]
        tokens = sample(logits, [self._answers[sequence].sampling for sequence in step.sampled])
        self._scheduler.update(step, [None if token is None else token.token_id for token in tokens])
        now, drawn = self._clock(), dict(zip(step.sampled, tokens, strict=True))
        says: list[tuple[Answer, Delta | VMMError]] = []
        for sequence, answer in zip(step.sequences, answers, strict=True):
            if (scored := scores.get(sequence, ())) is None:
                says.append((answer, self._no_number(sequence)))
                continue
            if scored:
                says.append((answer, Delta("", prompt_logprobs=scored)))
            if sequence in drawn:
                says.append((answer, self._say(sequence, drawn[sequence], now)))
            elif sequence.is_finished:
                says.append((answer, self._last_words(sequence, "", now)))
        self._send(says)

    def _say(self, sequence: Sequence, drawn: Sampled | None, now: float) -> Delta | VMMError:
        """What to send for a drawn token; an error that is this sequence's own ends no other."""
        if drawn is None:
            return self._no_number(sequence)
        try:
            return self._delta(sequence, drawn, now)
        except Exception as error:
            logger.exception("a token could not be shown")
            self._close(sequence, SequenceStatus.FAILED)
            return _generation_failed(error)

    def _no_number(self, sequence: Sequence) -> VMMError:
        """A grammar that turns out too complex is the request's own fault, and would be again."""
        failure = self._answers[sequence].sampling.failure
        self._close(sequence, SequenceStatus.FAILED)
        if failure is not None:
            return InvalidRequest(failure, hint="ask for a simpler form")
        return GenerationFailed("the model's output is not a number, or every token is forbidden")

    def _delta(self, sequence: Sequence, drawn: Sampled, now: float) -> Delta:
        """What a drawn token adds to the answer. Ends the sequence on a stop string or with its grammar."""
        answer = self._answers[sequence]
        sequence.stamp(now)
        if sequence.status is SequenceStatus.STOPPED:
            return self._last_words(sequence, "", now)
        may_stop = sequence.num_generated_tokens >= sequence.sampling.min_tokens
        text = answer.text.push(drawn.token_id, may_stop=may_stop)
        if answer.text.is_stopped or answer.sampling.is_complete:
            self._scheduler.finish(sequence, SequenceStatus.STOPPED)
        delta = self._last_words(sequence, text, now) if sequence.is_finished else Delta(text)
        logprobs = () if drawn.logprob is None else (drawn.logprob,)
        return Delta(delta.text, (drawn.token_id,), logprobs, delta.finish_reason, delta.usage)

    def _last_words(self, sequence: Sequence, text: str, now: float) -> Delta:
        answer = self._answers[sequence]
        text += answer.text.flush()
        usage = replace(sequence.usage(now), stop_string=answer.text.stop_string)
        self.mean_answer_s += 0.2 * (usage.prefill_s + usage.decode_s - self.mean_answer_s)
        self._close(sequence, sequence.status)
        return Delta(text, finish_reason=FINISH_REASONS[sequence.status], usage=usage)

    def _close(self, sequence: Sequence, status: SequenceStatus) -> None:
        """Forget a sequence; its blocks are free afterwards."""
        if self._answers.pop(sequence, None) is not None:
            self._scheduler.finish(sequence, status)
            self.num_finished += 1

    def _fail(self, sequences: list[Sequence], error: VMMError) -> None:
        answers = [self._answers[sequence] for sequence in sequences if sequence in self._answers]
        for sequence in sequences:
            self._close(sequence, SequenceStatus.FAILED)
        self._send((answer, error) for answer in answers)

    def _abort_all(self) -> None:
        """Tell everybody who still listens that it is over."""
        now = self._clock()
        items = []
        for sequence, answer in list(self._answers.items()):
            self._scheduler.finish(sequence, SequenceStatus.ABORTED)
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
        return GenerationFailed(f"the runtime failed: {error.message}", hint=error.hint)
    return GenerationFailed(f"the engine failed: {type(error).__name__}: {error}", hint="see the server's log")
