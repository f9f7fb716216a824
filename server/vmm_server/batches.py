"""Batch jobs: files of requests, computed when nobody else needs the machine.

Every batch that is not over has a task here, which takes it from state to state (`batch_worker`). All that counts is in
the `JobStore`, so a task may end at any moment, with the process or without, and another one goes on from there.

One process works for a home; others that share it wait, and only keep what they are told.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as LockTimeout

from vmm_server.batch_store import Batch, JobStore, new_batch_id
from vmm_server.batch_worker import BatchWorker, CallerOf, Post, Shared, persistently
from vmm_server.errors import InvalidRequest, RateLimited, StoreError
from vmm_server.file_store import FileStore, LateClock

logger = logging.getLogger(__name__)

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/vision/classify",
    "/v1/vision/detect",
)
"""Routes that lines may ask: JSON in, JSON out."""
WINDOW_S = {"24h": 24 * 3600}
"""`completion_window`s."""
MAX_INPUT_BYTES = 200 * 1024 * 1024
MAX_LIVE = 100
"""Batches of one tenant that are not over."""
POLL_S = 10.0
"""Between two looks at what other processes were told."""
SWEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a client asks for."""

    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: bytes | None = None
    output_expires_after_s: int | None = None


class Batches:
    """See the module."""

    def __init__(
        self,
        jobs: JobStore,
        files: FileStore,
        *,
        caller_of: CallerOf,
        num_slots: int,
        lock_path: Path,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
        pause_s: float = 1.0,
    ) -> None:
        """`clock` is what batches expire by, `wall` what they are dated by; `pause_s` is before a line's second try."""
        self._jobs = jobs
        self._files = files
        self._lock = FileLock(lock_path, timeout=0, thread_local=False)
        self._wall = wall
        self._shared = Shared(jobs, files, caller_of, asyncio.Semaphore(num_slots), clock or LateClock(), wall, pause_s)
        self._workers: dict[str, tuple[BatchWorker, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()

    async def create(self, new: NewBatch) -> Batch:
        """A new batch; its lines are checked later. Raises `InvalidRequest`, `FileNotFound`, `RateLimited`."""
        if not self._files.is_enabled:
            raise InvalidRequest("this server keeps no batches (file_store_size is 0)")
        file = await self._files.get(new.input_file_id, new.tenant, param="input_file_id")
        if file.purpose != "batch":
            raise InvalidRequest(
                f"input_file_id: the file's purpose is {file.purpose}, and has to be batch", param="input_file_id"
            )
        if file.num_bytes > MAX_INPUT_BYTES:
            raise InvalidRequest(
                f"input_file_id: a batch of {file.num_bytes} bytes; the limit is {MAX_INPUT_BYTES}",
                param="input_file_id",
                hint="split it into several",
            )
        now = int(self._wall())
        batch = Batch(
            new_batch_id(),
            new.tenant,
            "validating",
            new.endpoint,
            new.input_file_id,
            new.completion_window,
            new.metadata,
            new.output_expires_after_s,
            created_at=now,
            expires_at=now + WINDOW_S[new.completion_window],
        )
        if not await self._jobs.add(batch, max_live=MAX_LIVE):
            raise RateLimited(
                f"{MAX_LIVE} batches of yours are not over yet", retry_after_s=60, hint="wait for one, or cancel one"
            )
        self._woken.set()
        return batch

    async def cancel(self, batch_id: str, tenant: str) -> Batch:
        """Stop a batch; what is done stays. Raises `BatchNotFound`, `InvalidRequest` for one that is over."""
        batch = await self._jobs.get(batch_id, tenant)
        changes = {"status": "cancelling", "cancelling_at": int(self._wall())}
        if not await self._jobs.move(batch_id, ("validating", "in_progress"), **changes):
            batch = await self._jobs.get(batch_id, tenant)
            if batch.status != "cancelling":
                raise InvalidRequest(f"Cannot cancel a batch with status '{batch.status}'.", param="batch_id")
        if batch_id in self._workers:
            self._workers[batch_id][0].tell()
        self._woken.set()
        return await self._jobs.get(batch_id, tenant)

    async def run(self, post: Post) -> None:
        """Work on all batches, until `stop`. Where another process does, wait for its end."""
        if not self._files.is_enabled:
            return
        try:
            await persistently("waiting for other processes", self._wait_for_lock)
            await persistently("resuming batches", self._jobs.put_back_all)
            next_sweep = time.monotonic()
            while not self._shared.is_stopping.is_set():
                self._woken.clear()
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + SWEEP_S
                    await self._sweep()
                for batch in await persistently("reading batches", self._jobs.live):
                    self._take_up(batch, post)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):  # `wait_for` may swallow that it is cancelled
                        await self._woken.wait()
            await self._wait_for_workers()
        finally:
            for _, task in self._workers.values():
                task.cancel()
            await self._wait_for_workers()
            self._lock.release()

    def wake(self) -> None:
        """Look at the batches now, not after a while."""
        self._woken.set()

    def stop(self) -> None:
        """Begin no more lines."""
        self._shared.is_stopping.set()
        self._woken.set()

    async def drain(self, timeout_s: float) -> bool:
        """Begin no more lines, and wait for those under way; True when they are done in time."""
        self.stop()
        tasks = [task for _, task in self._workers.values()]
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        return not pending

    async def _wait_for_workers(self) -> None:
        await asyncio.gather(*(task for _, task in self._workers.values()), return_exceptions=True)

    async def _sweep(self) -> None:
        """What cannot be swept is no reason to hold up batches."""
        try:
            await self._files.sweep()
        except StoreError as error:
            logger.warning("sweeping files: %s; trying again in %g s", error.message, SWEEP_S)

    async def _wait_for_lock(self) -> None:
        is_told = False
        while not self._shared.is_stopping.is_set():
            try:
                self._lock.acquire()
                return
            except LockTimeout:
                if not is_told:
                    logger.info("another process works on the batches of this home")
                is_told = True
            except OSError as error:
                raise StoreError(f"{self._lock.lock_file} cannot be locked: {error.strerror}") from error
            await asyncio.sleep(POLL_S)

    def _take_up(self, batch: Batch, post: Post) -> None:
        """A worker for a batch that has none; word for one that has, if somebody else cancelled it."""
        if batch.id in self._workers:
            if batch.status == "cancelling":
                self._workers[batch.id][0].tell()
            return
        worker = BatchWorker(batch.id, post, self._shared)
        task = asyncio.create_task(worker.run(), name=f"batch {batch.id}")
        self._workers[batch.id] = worker, task
        task.add_done_callback(lambda done: self._put_down(batch.id, done))

    def _put_down(self, batch_id: str, task: asyncio.Task[None]) -> None:
        del self._workers[batch_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed; it is taken up again in %g s", batch_id, POLL_S, exc_info=error)
