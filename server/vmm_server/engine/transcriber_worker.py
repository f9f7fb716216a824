"""The one thread that owns a transcriber's sessions: windows of all transcripts share its encoder batches and steps.

Windows join between steps, while there are rows for them, and leave when they are over. A transcript has one window
under way at a time, and its next one waits for its turn (`batch_queue`: the best priority, the tenant that got least),
so that a long sound is no longer in a short one's way than that. An attempt that is not good enough begins anew in its
row: the sound need not be looked at again.

A step that fails fails the windows in it. When the device is lost, or two steps fail and no window is finished between
them, the transcriber is given up.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import ceil

from vmm_adapters.errors import AdapterError, DeviceLost
from vmm_server.audio.alignment import Attention
from vmm_server.audio.features import FRAMES_PER_S, WINDOW_FRAMES
from vmm_server.audio.timestamps import TimestampRules
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.callers import Caller
from vmm_server.engine.batch_queue import BatchLimits, BatchQueue
from vmm_server.engine.forecast import Claim, Pace, ahead
from vmm_server.engine.histogram import BatcherHistograms
from vmm_server.engine.telling import tell
from vmm_server.engine.transcriber_rows import Rows
from vmm_server.engine.transcriber_window import (
    Attempt,
    Floats,
    WindowRequest,
    WindowText,
    attempted,
    begin_attempt,
    best,
    is_good,
    is_silence,
    probability,
)
from vmm_server.errors import GenerationFailed, PlacementFailed, ShuttingDown, VMMError

logger = logging.getLogger(__name__)

_MAX_FAILED_STEPS = 2
"""Without a window finished between them."""
_NO_NUMBER = "the weights are damaged, or too large for what the device computes in: pull them, or use the CPU"


@dataclass(slots=True, eq=False)
class Job:
    """A window that is waited for. Its thread's, but for what is said to be safe."""

    request: WindowRequest
    done: "asyncio.Future[WindowText]"
    loop: asyncio.AbstractEventLoop
    submitted_at: float
    started_at: float | None = None
    """Safe from any thread."""
    num_drawn: int = 0
    """Tokens so far. Safe from any thread."""
    context: Context = field(default_factory=copy_context)
    """Of the task that asked."""
    is_cancelled: bool = False
    language: str | None = None
    attempt: Attempt | None = None
    """`None` while its language is not known, and between two."""
    texts: list[WindowText] = field(default_factory=list)
    """What attempts came to so far."""


class TranscriberWorker:
    """Takes jobs from any thread; computes in its own, which ends with `close`."""

    def __init__(
        self,
        rows: Rows,
        tokens: WhisperTokens,
        *,
        max_rows: int,
        max_encoded: int,
        clock: Callable[[], float] = time.perf_counter,
        name: str = "vmm-transcriber",
    ) -> None:
        """`max_encoded`: windows in one run of the encoder."""
        self._rows = rows
        self._tokens = tokens
        self._rules = TimestampRules(tokens)
        self._max_rows = max_rows
        self._max_encoded = max_encoded
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: BatchQueue[Job] = BatchQueue(BatchLimits(max_items=1))
        self._is_closing = False
        self._running: list[Job] = []
        """In the order of their rows."""
        self._num_failed = 0
        self._pace = Pace()
        self.failure: str | None = None
        """Why it was given up. Safe from any thread."""
        self.computed_s = 0.0
        """Seconds of sound taken up since the start. Safe from any thread."""
        self.num_drawn = 0
        """Tokens since the start. Safe from any thread."""
        self.histograms = BatcherHistograms()
        """Of windows: what they waited, and how many were in a step."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, request: WindowRequest, caller: Caller) -> Job:
        """Queue a window; call on the event loop that awaits its `done`.

        That raises `GenerationFailed`, `PlacementFailed` if the transcriber is given up, or `ShuttingDown`. Raises
        the last two at once as well.
        """
        loop = asyncio.get_running_loop()
        job = Job(request, loop.create_future(), loop, self._clock(), language=request.language)
        with self._changed:
            self.check()
            self._waiting.add(job, [max(1, request.num_frames)], caller)
            self._changed.notify()
        return job

    def check(self) -> None:
        """Raises `PlacementFailed`, `ShuttingDown` where nothing can be submitted."""
        if self.failure is not None:
            raise PlacementFailed(self.failure)
        if self._is_closing or not self._thread.is_alive():
            raise ShuttingDown

    def cancel(self, job: Job) -> None:
        """Forget a job: before the next step, if it is under way. Its future is the caller's."""
        with self._changed:
            job.is_cancelled = True
            self._waiting.discard(job)

    def expected_s(self, caller: Caller) -> float:
        """Seconds until the first window of a new transcript would be heard. Safe from any thread."""
        mine = Claim(caller.priority, caller.tenant, caller.weight, WINDOW_FRAMES)
        with self._changed:
            num_windows = ceil(ahead(mine, self._waiting.claims, lambda each: each.work) / WINDOW_FRAMES)
            num_leaving = max(0, num_windows - (self._max_rows - len(self._running)))
        return num_leaving * self._pace.place_s(self._max_rows) + self._pace.answer_s

    def close(self) -> None:
        """End the thread after the step under way, and close the sessions; blocks. Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    # In the thread

    def _run(self) -> None:
        try:
            while self.failure is None and self._admit():
                self._turn()
        except BaseException as error:
            logger.critical("the transcriber's thread ends", exc_info=True)
            self.failure = _failure(error).message
        finally:
            with self._changed:
                self._is_closing = True
                left = [*self._running, *self._taken(len(self._waiting))]
            over = ShuttingDown() if self.failure is None else PlacementFailed(self.failure)
            for job in left:
                _deliver(job, over)
            self._rows.close()

    def _admit(self) -> bool:
        """Wait for something to do, and encode some of what waits; False when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closing)
            if self._is_closing:
                return False
            room = min(self._max_encoded, self._max_rows - len(self._running))
            new = self._taken(min(room, len(self._waiting)))
        if new:
            with self._failing(new):
                self._encode(new)
        return True

    def _taken(self, count: int) -> list[Job]:
        return [waiting.call for _ in range(count) for waiting in self._waiting.take()]

    def _encode(self, new: Sequence[Job]) -> None:
        for job in new:
            job.started_at = self._clock()
            self.histograms.queue_s.add(job.started_at - job.submitted_at)
        self._rows.encode([job.request.features for job in new])
        self._running += new
        self.computed_s += sum(job.request.num_frames for job in new) / FRAMES_PER_S

    def _turn(self) -> None:
        """One step of every row."""
        self._drop_cancelled()
        while jobs := self._neighbours(lambda job: job.attempt is None and job.language is None):
            with self._failing(jobs):
                self._hear_language(jobs)
        while jobs := self._neighbours(lambda job: job.attempt is None):
            with self._failing(jobs):
                self._begin(jobs)
        self._drop_cancelled()
        drawing = [(job, job.attempt) for job in self._running if job.attempt is not None]
        if not drawing:
            return
        self.histograms.batch_items.add(len(drawing))
        with self._failing([job for job, _ in drawing]):
            self._draw(drawing, self._rows.step([attempt.sampled[-1] for _, attempt in drawing]))
        for job, attempt in drawing:
            if attempt.is_over and job in self._running:
                with self._failing([job]):
                    self._finish(job, attempt)

    def _neighbours(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """The first of those that are wanted, with the ones whose rows are next to it; empty if there are none."""
        start = next((index for index, job in enumerate(self._running) if wanted(job)), len(self._running))
        return list(takewhile(wanted, self._running[start:]))

    def _hear_language(self, jobs: Sequence[Job]) -> None:
        """By what follows `<|startoftranscript|>` alone."""
        first = self._running.index(jobs[0])
        start = (self._tokens.start_of_transcript,)
        logits = self._rows.prefill(first, [start] * len(jobs), [(0,)] * len(jobs))[:, 0]
        codes, ids = zip(*self._tokens.languages.items(), strict=True)
        for job, found in zip(jobs, logits[:, ids].argmax(axis=1), strict=True):
            job.language = codes[int(found)]

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Begin the next attempts of neighbours, and draw their first tokens."""
        attempts = [begin_attempt(job.request, len(job.texts), job.language, self._tokens) for job in jobs]
        lengths = [(len(each.prompt), each.num_start) for each in attempts]
        logits = self._rows.prefill(
            self._running.index(jobs[0]),
            [each.prompt for each in attempts],
            [(length - num_start, length - 1) for length, num_start in lengths],
        )
        for job, attempt, start in zip(jobs, attempts, logits[:, 0], strict=True):
            job.attempt = attempt
            attempt.no_speech_prob = probability(start, self._tokens.no_speech)
        self._draw(list(zip(jobs, attempts, strict=True)), logits[:, 1])

    def _draw(self, drawing: Sequence[tuple[Job, Attempt]], logits: Floats) -> None:
        """The next token of some rows, whose logits `[rows, vocab]` are."""
        self._rules.apply(logits, [attempt.sampled for _, attempt in drawing])
        for (job, attempt), row in zip(drawing, logits, strict=True):
            try:
                attempt.draw(row, self._tokens)
            except FloatingPointError as error:
                self._leave(job)
                _deliver(job, GenerationFailed(str(error), hint=_NO_NUMBER))
                continue
            job.num_drawn += 1
            self.num_drawn += 1

    def _finish(self, job: Job, attempt: Attempt) -> None:
        """An attempt is over: go on to the next one, or say what was heard."""
        options = job.request.options
        text = attempted(attempt, job.language, self._tokens)
        job.texts.append(text)
        if not is_good(job.texts, options) and len(job.texts) < len(options.temperatures):
            job.attempt = None
            return
        text = best(job.texts, options)
        if options.word_timestamps and not is_silence(text, options):
            text = replace(text, attention=self._attention(job, attempt, text))
        self._leave(job)
        self._num_failed = 0
        if job.started_at is not None:
            self._pace.note_answer(self._clock() - job.started_at)
        _deliver(job, text)

    def _attention(self, job: Job, attempt: Attempt, text: WindowText) -> Attention | None:
        """What the text is looked up in the sound with, computed once more without its timestamps."""
        written = tuple(token for token in text.tokens if token < self._tokens.end_of_text)
        if not written:
            return None
        given = (*attempt.prompt[-attempt.num_start :], self._tokens.no_timestamps)
        row = self._running.index(job)
        all_tokens = (*given, *written)
        weights, logits = self._rows.attend(row, all_tokens, len(given) - 1)
        probabilities = [
            probability(each[: self._tokens.end_of_text], token) for each, token in zip(logits, written, strict=False)
        ]
        num_frames = -(-job.request.num_frames // 2)
        return Attention(written, tuple(probabilities), weights[:, :, :num_frames], len(given) - 1)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._running if job.is_cancelled]:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        row = self._running.index(job)
        self._rows.remove(row)
        last = self._running.pop()
        if last is not job:
            self._running[row] = last

    @contextmanager
    def _failing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Around what some jobs fail with."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - told in the log
            tell(logger, "transcribing failed", [job.context for job in jobs])
            over = self._failed(error)
            for job in jobs:
                if job in self._running:
                    self._leave(job)
                _deliver(job, over)
        except BaseException as error:
            for job in jobs:  # some are in nobody's list yet
                _deliver(job, PlacementFailed(_failure(error).message))
            raise

    def _failed(self, error: Exception) -> GenerationFailed:
        self._num_failed += 1
        failed = _failure(error)
        if self._num_failed < _MAX_FAILED_STEPS and not isinstance(error, DeviceLost):
            return failed
        self.failure = failed.message
        return PlacementFailed(self.failure)


def _failure(error: BaseException) -> GenerationFailed:
    if isinstance(error, AdapterError):
        return GenerationFailed(f"the runtime failed: {error.message}", hint=error.hint)
    return GenerationFailed(f"the engine failed: {type(error).__name__}: {error}", hint="see the server's log")


def _deliver(job: Job, result: WindowText | VMMError) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        job.loop.call_soon_threadsafe(_settle, job, result)


def _settle(job: Job, result: WindowText | VMMError) -> None:
    if job.done.done():  # whoever waited has left
        return
    if isinstance(result, VMMError):
        job.done.set_exception(result)
    else:
        job.done.set_result(result)
