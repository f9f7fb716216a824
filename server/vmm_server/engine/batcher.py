"""Dynamic batching for one-shot models: items of all calls that wait are stacked, computed together, and split again.

One thread owns the runtime. It takes the next batch as soon as the last one is done, so under load batches fill by
themselves; only an idle one waits, a few milliseconds at most, and only while other requests are being prepared. It
can also make an item itself, rather than be sent what another thread has made: a trip less, where nobody else waits.
Results go back to the event loop with one wake-up a batch. What an item is, and how it is computed, is the caller's.
Whose items go first is told by the task that calls (`callers.caller`); nothing is computed past its deadline.

A batch that fails fails the calls in it. When the device is lost, or two batches fail in a row, it is given up: nothing
of a call has been said before all of it is there, so the calls in that batch, those that wait and those that come get
`PlacementFailed`, and can be made elsewhere.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vmm_adapters.errors import AdapterError, DeviceLost
from vmm_server.callers import Caller, caller
from vmm_server.engine.batch_queue import BatchLimits, BatchQueue, Waiting
from vmm_server.engine.forecast import Claim, ahead, check_deadline, retry_after_s
from vmm_server.engine.histogram import BatcherHistograms
from vmm_server.engine.telling import tell
from vmm_server.errors import (
    DeadlineExceeded,
    GenerationFailed,
    Overloaded,
    PlacementFailed,
    ShuttingDown,
)

logger = logging.getLogger(__name__)

_MAX_FAILED_BATCHES = 2
"""In a row."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatcherOptions:
    """Limits of one batcher."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    max_calls: int = 576
    """Unfinished calls; more are refused."""
    max_waiting_size: int = 1 << 22
    """What may wait in all, in the items' unit, so that memory is bounded. One call always may."""
    gather_s: float = 0.004
    """How long an idle batcher waits for calls that are being prepared."""


@dataclass(slots=True, eq=False)
class _Call(Generic[Item, Result]):
    items: Sequence[Item]
    done: "asyncio.Future[list[Result]]"
    loop: asyncio.AbstractEventLoop
    submitted_at: float
    deadline_at: float | None = None
    """On `time.monotonic`'s clock."""
    make: Callable[[], Item] | None = None
    """Of a call whose one item is yet to be made."""
    prepared_s: float = 0.0
    """That took."""
    started_at: float | None = None
    """When the batch with its first item was."""
    computed_s: float = 0.0
    """Of all batches with items of it, so far."""
    results: dict[int, Result] = field(default_factory=dict)
    context: Context = field(default_factory=copy_context)
    """Of the task that asked."""


@dataclass(frozen=True, slots=True)
class Computed(Generic[Result]):
    """What a call comes to."""

    results: list[Result]
    """In the order of its items."""
    queued_s: float
    """Seconds until the first of its items was taken up."""
    computed_s: float = 0.0
    """Seconds that the batches with its items took, whatever else was in them."""
    prepared_s: float = 0.0
    """Seconds until its first items were there to be sent; 0 where they came as they are."""


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """A look at a batcher."""

    num_waiting: int
    """Calls of which nothing was taken up."""
    num_running: int
    computed_size: int
    """Of all items taken up since the start, in their unit."""
    histograms: tuple[BatcherHistograms, ...] = field(default=(), kw_only=True, compare=False, repr=False)
    """Of each thread."""


class Batcher(Generic[Item, Result]):
    """Takes calls on an event loop; computes in its own thread, which ends with `aclose`."""

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        size: Callable[[Item], int],
        close: Callable[[], None],
        options: BatcherOptions | None = None,
        name: str = "vmm-batcher",
    ) -> None:
        """`compute` gives one result an item, in order, and may raise `AdapterError`; `size` measures an item, at
        least 1; `close` gives the runtime back. `compute` and `close` are called in the thread alone."""
        self._compute = compute
        self._size = size
        self._close = close
        self._options = options or BatcherOptions()
        self._queue: BatchQueue[_Call[Item, Result]] = BatchQueue(self._options.batch)
        self._changed = threading.Condition()
        self._calls: set[_Call[Item, Result]] = set()
        """Unfinished ones."""
        self._computed_size = 0
        self._histograms = BatcherHistograms()
        self._num_expected = 0
        self._was_shared = False
        """The last batch, by several calls."""
        self._is_closing = False
        self._num_failed = 0
        """Batches, since the last one that did not fail."""
        self.failure: str | None = None
        """Why it was given up. Safe from any thread."""
        self._seconds_per_size = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def stats(self) -> BatcherStats:
        """Counts of calls. Safe from any thread."""
        with self._changed:
            num_running = sum(call.started_at is not None for call in self._calls)
            num_waiting = len(self._calls) - num_running
            return BatcherStats(num_waiting, num_running, self._computed_size, histograms=(self._histograms,))

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around what comes before `call`: an idle batcher that gets another call waits a moment for this one."""
        with self._changed:
            self._num_expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_expected -= 1  # wakes nobody: the call that follows does

    async def call(self, items: Sequence[Item]) -> list[Result]:
        """The results of `timed_call`."""
        return (await self.timed_call(items)).results

    async def timed_call(self, items: Sequence[Item]) -> Computed[Result]:
        """Results of `items`, in their order. Cancelling it takes back what has not begun.

        Raises `Overloaded`, `DeadlineUnreachable`, `ShuttingDown` at once; `DeadlineExceeded`; `GenerationFailed` when
        the runtime fails, `PlacementFailed` when it is given up.
        """
        if not items:
            return Computed([], 0.0)
        return await self._called(items, [self._size(item) for item in items], None)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is computed, waits, or is being prepared, and calls have not come together lately."""
        return not self._calls and not self._num_expected and not self._was_shared

    async def made_call(self, make: Callable[[], Item], *, size: int = 1) -> Computed[Result]:
        """`timed_call` of one item of that `size`, which the thread makes itself before it computes it: one trip less,
        where nobody else would wait for that (`is_quiet`). Raises what `make` raises besides."""
        return await self._called([], [size], make)

    async def _called(
        self, items: Sequence[Item], sizes: Sequence[int], make: Callable[[], Item] | None
    ) -> Computed[Result]:
        loop = asyncio.get_running_loop()
        asking = caller.get()
        call: _Call[Item, Result] = _Call(
            items, loop.create_future(), loop, time.perf_counter(), deadline_at=asking.deadline_at, make=make
        )
        with self._changed:
            if self.failure is not None:
                raise PlacementFailed(self.failure)
            if self._is_closing or not self._thread.is_alive():
                raise ShuttingDown
            waits = self._queue.total_size
            if len(self._calls) >= self._options.max_calls or (
                waits and waits + sum(sizes) > self._options.max_waiting_size
            ):
                raise Overloaded(retry_after_s=retry_after_s(waits * self._seconds_per_size))
            self._check_deadline(asking, sum(sizes))
            self._calls.add(call)
            self._queue.add(call, sizes, asking)
            self._changed.notify()
        try:
            results = await call.done
            waited_s = (call.started_at or call.submitted_at) - call.submitted_at
            return Computed(results, waited_s - call.prepared_s, call.computed_s, call.prepared_s)
        finally:
            with self._changed:
                self._calls.discard(call)
                self._queue.discard(call)

    def _check_deadline(self, asking: Caller, size: int) -> None:
        """Raises `DeadlineExceeded`, and `DeadlineUnreachable` when what is before a call takes too long."""
        if asking.deadline_at is None:
            return
        claim = Claim(asking.priority, asking.tenant, asking.weight, size)
        before = ahead(claim, self._queue.claims, lambda each: each.work)
        check_deadline(asking.deadline_at - time.monotonic(), before * self._seconds_per_size)

    async def aclose(self) -> None:
        """End the thread after the batch under way and close the runtime. Open calls get `ShuttingDown`. Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    # In the thread

    def _run(self) -> None:
        try:
            while self.failure is None and (batch := self._next_batch()):
                if batch := self._made(batch):
                    self._process(batch)
        except BaseException as error:
            logger.critical("the batcher's thread ends", exc_info=True)
            self.failure = _failed(error).message
        finally:
            with self._changed:
                self._is_closing = True
                left = set(self._calls)
            over = ShuttingDown() if self.failure is None else PlacementFailed(self.failure)
            self._deliver([(call, over) for call in left])
            self._close()

    def _next_batch(self) -> list[Waiting[_Call[Item, Result]]]:
        """Wait for one; empty when closing."""
        with self._changed:
            if not self._queue:
                self._changed.wait_for(lambda: self._queue or self._is_closing)
                self._changed.wait_for(lambda: not self._num_expected or self._is_closing, self._options.gather_s)
            while not self._is_closing:
                self._drop_late()
                if batch := self._queue.take():
                    return batch
                self._changed.wait()  # whoever was waited for has left
            return []

    def _drop_late(self) -> None:
        """Of calls past their deadline nothing more is computed."""
        now = time.monotonic()
        late = [call for call in self._calls if call.deadline_at is not None and call.deadline_at <= now]
        for call in late:
            self._queue.discard(call)
        self._deliver([(call, DeadlineExceeded()) for call in late])

    def _made(self, batch: list[Waiting[_Call[Item, Result]]]) -> list[Waiting[_Call[Item, Result]]]:
        """The same, but for those whose items could not be made: their calls get the reason."""
        failed: list[tuple[_Call[Item, Result], Exception]] = []
        for call in (waiting.call for waiting in batch):
            if call.make is None:
                continue
            started = time.perf_counter()
            try:
                call.items = [call.make()]
            except Exception as error:  # noqa: BLE001 - told to whoever wanted it made
                failed.append((call, error))
            call.prepared_s = time.perf_counter() - started
        if not failed:
            return batch
        self._deliver(failed)
        return [waiting for waiting in batch if waiting.call.items]

    def _process(self, batch: list[Waiting[_Call[Item, Result]]]) -> None:
        started = time.perf_counter()
        calls = {waiting.call for waiting in batch}
        self._was_shared = len(calls) > 1
        with self._changed:
            self._computed_size += sum(waiting.size for waiting in batch)
            for call in calls:
                if call.started_at is None:
                    call.started_at = started
                    self._histograms.queue_s.add(started - call.submitted_at - call.prepared_s)
        self._histograms.batch_items.add(len(batch))
        says: list[tuple[_Call[Item, Result], Exception | None]]
        try:
            results = self._compute([waiting.call.items[waiting.index] for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - told in the log
            tell(logger, "a batch failed", [call.context for call in calls])
            failed = self._failed(error)
            says = [(call, failed) for call in calls]
            with self._changed:
                for call, _ in says:
                    self._queue.discard(call)
        else:
            self._num_failed = 0
            for waiting, result in zip(batch, results, strict=True):
                waiting.call.results[waiting.index] = result
            says = [(call, None) for call in calls if len(call.results) == len(call.items)]
        spent_s = time.perf_counter() - started
        for call in calls:
            call.computed_s += spent_s
        self._seconds_per_size += 0.2 * (spent_s / sum(waiting.size for waiting in batch) - self._seconds_per_size)
        self._deliver(says)

    def _failed(self, error: Exception) -> GenerationFailed:
        """What to tell the calls of a batch that failed."""
        self._num_failed += 1
        failed = _failed(error)
        if self._num_failed < _MAX_FAILED_BATCHES and not isinstance(error, DeviceLost):
            return failed
        self.failure = failed.message
        return PlacementFailed(self.failure)

    def _deliver(self, says: Sequence[tuple[_Call[Item, Result], Exception | None]]) -> None:
        """Finish calls on their event loops, with one wake-up each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Call[Item, Result], Exception | None]]] = {}
        for call, error in says:
            by_loop.setdefault(call.loop, []).append((call, error))
        for loop, ended in by_loop.items():
            try:
                loop.call_soon_threadsafe(_finish, ended)
            except RuntimeError:  # the loop is closed: nobody waits any more
                continue


def _finish(ended: Sequence[tuple[_Call[Item, Result], Exception | None]]) -> None:
    for call, error in ended:
        if call.done.done():  # the client left
            continue
        if error is not None:
            call.done.set_exception(error)
        else:
            call.done.set_result([call.results[index] for index in range(len(call.items))])


def _failed(error: BaseException) -> GenerationFailed:
    if isinstance(error, AdapterError):
        return GenerationFailed(f"the runtime failed: {error.message}", hint=error.hint)
    return GenerationFailed(f"the engine failed: {type(error).__name__}: {error}", hint="see the server's log")
