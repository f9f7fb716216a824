"""Pulls as streams of events: one job a model however many want it, each in a thread of its own.

A job's history keeps one event a step, the last progress of each, so a reader who joins late or reads slowly sees
every step and never more than the newest figures. When the last reader has gone the job is told to stop at its next
chunk; what it has fetched stays for a resume.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from vmm_server.models.building import Importer
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.encoder import check_encoder, import_encoder
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.installer import Installer
from vmm_server.models.plan import Plan, make_plan
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy, make_client
from vmm_server.models.store import Store

IMPORTER_VERSION = "1"
"""To be raised when a converter writes other files for the same source."""
_IMPORTER = Importer(
    detect_format,
    describe_folder,
    converters={"gguf": import_gguf, "safetensors": import_encoder},
    check_config=check_encoder,
    version=IMPORTER_VERSION,
)
_MIN_INTERVAL_S = 0.08
"""Between two progress events of one step; Ollama's is 60 ms."""
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PullEvent:
    """One line of `/api/pull`."""

    status: str
    digest: str | None = None
    """`sha256:<hex>` of the file that is being fetched, where it is known beforehand."""
    total: int | None = None
    completed: int | None = None


class Puller:
    """Pulls models into a store. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        importer: Importer | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._importer = importer or _IMPORTER
        self._retry = retry or RetryPolicy()
        self._jobs: dict[tuple[str, str], _Job] = {}

    def pull(self, reference: str, *, name: str | None = None) -> AsyncIterator[PullEvent]:
        """Pull a card's name or a source's URI; events until `success`. Joins a pull already under way.

        Raises `InvalidRequest`, `InvalidModelName` and `ModelNotFound` at once; while reading, `SourceError`,
        `ImportFailed` and their kinds, `StoreError`.
        """
        return self._follow(make_plan(reference, name, self._registry, self._retry))

    async def aclose(self) -> None:
        """Stop all pulls; what they fetched stays for a resume."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancelled.set()
        # a thread that waits for a silent server longer than this is left behind: it is a daemon
        waits = [asyncio.ensure_future(job.finished.wait()) for job in jobs]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_CLOSE_TIMEOUT_S)
            for wait in late:
                wait.cancel()

    async def _follow(self, plan: Plan) -> AsyncIterator[PullEvent]:
        job = self._jobs.get(plan.key)
        if job is None or job.cancelled.is_set():
            job = self._jobs[plan.key] = self._start(plan)
        job.num_readers += 1
        try:
            async for event in job.events():
                yield event
        finally:
            job.num_readers -= 1
            if not job.num_readers:
                job.cancelled.set()

    def _start(self, plan: Plan) -> "_Job":
        loop = asyncio.get_running_loop()
        job = _Job()

        def finish(error: Exception | None) -> None:
            if self._jobs.get(plan.key) is job:
                del self._jobs[plan.key]
            job.finish(error)

        def post(callback: Callable[..., None], argument: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback, argument)

        def work() -> None:
            report = _Throttle(lambda event: post(job.add, event))
            try:
                with make_client() as client:
                    Installer(plan, self._store, self._importer, client, report, job.cancelled).run()
            except Exception as error:  # noqa: BLE001 - raised again in every reader
                post(finish, error)
            else:
                post(finish, None)

        threading.Thread(target=work, name=f"pull {plan.source.uri}", daemon=True).start()
        return job


class _Job:
    """One pull under way. All but `cancelled` is touched on the event loop only."""

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

    async def events(self) -> AsyncIterator[PullEvent]:
        """The history from its start, then what is added, until the end. Raises what the pull raised."""
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


class _Throttle:
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
