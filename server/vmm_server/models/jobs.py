"""Long work as streams of events: one job a key however many want it, each in a thread of its own.

A job's history keeps one event a step, the last progress of each, so a reader who joins late or reads slowly sees
every step and never more than the newest figures. When the last reader has gone the job is told to stop at its next
chunk.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

_MIN_INTERVAL_S = 0.08
"""Between two progress events of one step; Ollama's is 60 ms."""
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PullEvent:
    """One line of `/api/pull`, `/api/create` and `/api/push`."""

    status: str
    digest: str | None = None
    """`sha256:<hex>` of the file that is being fetched, where it is known beforehand."""
    total: int | None = None
    completed: int | None = None


class Report(Protocol):
    """Told of every step and, for long ones, of progress."""

    def __call__(
        self, status: str, *, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None: ...


Work = Callable[[Report, threading.Event], None]
"""Blocking; runs in a thread. Told where to report, and what is set when nobody waits for the result any more."""


class Jobs:
    """Work under way. Belongs to one event loop."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, Job] = {}

    async def follow(self, key: Hashable, name: str, work: Work) -> AsyncGenerator[PullEvent]:
        """The events of `work`, or of what is under way with this key. Raises what the work raises."""
        job = self._jobs.get(key)
        if job is None or job.cancelled.is_set():
            job = self._jobs[key] = self._start(key, name, work)
        job.num_readers += 1
        try:
            async for event in job.events():
                yield event
        finally:
            job.num_readers -= 1
            if not job.num_readers:
                job.cancelled.set()

    async def aclose(self) -> None:
        """Stop them all."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancelled.set()
        # a thread that waits for a silent server longer than this is left behind: it is a daemon
        waits = [asyncio.ensure_future(job.finished.wait()) for job in jobs]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_CLOSE_TIMEOUT_S)
            for wait in late:
                wait.cancel()

    def _start(self, key: Hashable, name: str, work: Work) -> "Job":
        loop = asyncio.get_running_loop()
        job = Job()

        def finish(error: Exception | None) -> None:
            if self._jobs.get(key) is job:
                del self._jobs[key]
            job.finish(error)

        def post(callback: Callable[..., None], argument: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback, argument)

        def run() -> None:
            try:
                work(Throttle(lambda event: post(job.add, event)), job.cancelled)
            except Exception as error:  # noqa: BLE001 - raised again in every reader
                post(finish, error)
            else:
                post(finish, None)

        threading.Thread(target=run, name=name, daemon=True).start()
        return job


class Job:
    """One piece of work. All but `cancelled` is touched on the event loop only."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.finished = asyncio.Event()
        self.num_readers = 0
        self._history: list[PullEvent] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def add(self, event: PullEvent) -> None:
        """Append a step, or bring the figures of the last one up to date."""
        last = self._history[-1] if self._history else None
        if last and (last.status, last.digest) == (event.status, event.digest):
            self._history[-1] = event
        else:
            self._history.append(event)
        self._wake()

    def finish(self, error: Exception | None) -> None:
        """No more events."""
        self._error = error
        self.finished.set()
        self._wake()

    async def events(self) -> AsyncGenerator[PullEvent]:
        """The history from its start, then what is added, until the end. Raises what the work raised."""
        position, seen = 0, None
        while True:
            changed = self._changed
            while position < len(self._history):
                event = self._history[position]
                if event is not seen:
                    seen = event
                    yield event
                    continue  # while the reader was busy this step may have got new figures
                if position + 1 == len(self._history):
                    break
                position += 1
            if self._changed is not changed:
                continue
            if self.finished.is_set():
                break
            await changed.wait()
        if self._error:
            raise self._error

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Throttle:
    """Passes on each step, and of its progress what is new, monotonic and not too often."""

    def __init__(self, emit: Callable[[PullEvent], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._last = PullEvent("")
        self._due_at = 0.0
        self._held: PullEvent | None = None

    def __call__(
        self, status: str, *, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None:
        event = PullEvent(status, digest, total, completed)
        last = self._held or self._last
        if (status, digest) != (last.status, last.digest):
            self._flush()
        elif event == last or (completed or 0) < (last.completed or 0):
            return
        elif last.completed is not None and completed != total and self._clock() < self._due_at:
            self._held = event
            return
        self._send(event)

    def _flush(self) -> None:
        if self._held:
            self._send(self._held)

    def _send(self, event: PullEvent) -> None:
        self._held = None
        self._last, self._due_at = event, self._clock() + _MIN_INTERVAL_S
        self._emit(event)
