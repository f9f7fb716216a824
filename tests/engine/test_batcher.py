"""Calls from an event loop, computed in a thread in batches."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_adapters.errors import DeviceLost, RuntimeFailed
from vmm_server.callers import Caller, caller
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions, BatcherStats
from vmm_server.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    GenerationFailed,
    Overloaded,
    PlacementFailed,
    ShuttingDown,
)

TIMEOUT_S = 10


class Runtime:
    """Doubles numbers; can be held, fails on 13, and is gone after 666."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.is_closed = False
        self.entered = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)
        self.is_held = False

    def compute(self, items: Sequence[int]) -> list[int]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(items))
        self.entered.release()
        if self.is_held:
            assert self.permits.acquire(timeout=TIMEOUT_S)
        if 13 in items:
            raise RuntimeFailed("no thirteen")
        if 666 in items:
            raise DeviceLost("gone")
        return [2 * item for item in items]

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True

    async def is_computing(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=TIMEOUT_S)


Body = Callable[[Batcher[int, int], Runtime], Coroutine[Any, Any, None]]


def run(body: Body, *, held: bool = False, **options: Any) -> Runtime:
    """Run `body` with a batcher of `Runtime`; one item has the size of its value."""
    runtime = Runtime()
    runtime.is_held = held

    async def bounded() -> None:
        batcher: Batcher[int, int] = Batcher(
            runtime.compute, size=lambda item: max(1, item), close=runtime.close, options=BatcherOptions(**options)
        )
        try:
            await asyncio.wait_for(body(batcher, runtime), TIMEOUT_S)
        finally:
            runtime.is_held = False
            runtime.permits.release(1000)
            await batcher.aclose()

    asyncio.run(bounded())
    assert runtime.is_closed
    return runtime


@given(st.lists(st.lists(st.integers(14, 60), max_size=9), max_size=6), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_every_call_gets_its_results_in_order(calls: list[list[int]], max_items: int) -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        results = await asyncio.gather(*(batcher.call(items) for items in calls))
        assert results == [[2 * item for item in items] for items in calls]

    runtime = run(body, batch=BatchLimits(max_items=max_items))
    assert all(len(batch) <= max_items for batch in runtime.batches)
    assert len(runtime.threads) == 1


def test_calls_that_wait_are_computed_together() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        others = [asyncio.create_task(batcher.call([item])) for item in (20, 21, 22)]
        await asyncio.sleep(0)
        runtime.permits.release(2)
        assert await asyncio.gather(first, *others) == [[10], [40], [42], [44]]
        assert runtime.batches == [[5], [20, 21, 22]]
        assert not batcher.is_quiet  # they came together, and may do so again
        runtime.permits.release()
        assert await batcher.call([5]) == [10]
        assert batcher.is_quiet

    run(body, held=True)


def test_a_call_knows_how_long_it_waited_and_the_batcher_who_does() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.timed_call([5]))
        await runtime.is_computing()
        second = asyncio.create_task(batcher.timed_call([20, 21]))
        await asyncio.sleep(0)
        assert batcher.stats == BatcherStats(num_waiting=1, num_running=1, computed_size=5)
        runtime.permits.release(1)
        await runtime.is_computing()
        assert batcher.stats == BatcherStats(num_waiting=0, num_running=1, computed_size=5 + 20 + 21)
        entered_at = time.perf_counter()
        while time.perf_counter() < entered_at + 0.01:
            pass
        runtime.permits.release(1)
        assert (await second).results == [40, 42]
        assert (await second).queued_s > (await first).queued_s
        assert (await second).computed_s >= 0.01
        assert batcher.stats == BatcherStats(num_waiting=0, num_running=0, computed_size=5 + 20 + 21)

    run(body, held=True, gather_s=0.0)


def test_a_call_in_several_batches_took_what_all_of_them_did() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        call = asyncio.create_task(batcher.timed_call([20, 21]))
        for _ in range(2):
            await runtime.is_computing()
            entered_at = time.perf_counter()
            while time.perf_counter() < entered_at + 0.01:
                pass
            runtime.permits.release(1)
        assert (await call).computed_s >= 0.02
        assert runtime.batches == [[20], [21]]

    run(body, held=True, batch=BatchLimits(max_items=1))


def test_an_item_can_be_made_by_the_thread_that_computes_it() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        made_in: list[int] = []

        def make() -> int:
            made_in.append(threading.get_ident())
            started = time.perf_counter()
            while time.perf_counter() < started + 0.01:
                pass
            return 21

        with batcher.preparing():
            assert not batcher.is_quiet
        assert batcher.is_quiet
        computed = await batcher.made_call(make, size=21)
        assert computed.results == [42]
        assert computed.prepared_s >= 0.01
        assert computed.queued_s >= 0
        assert {*made_in} == runtime.threads
        assert batcher.stats == BatcherStats(num_waiting=0, num_running=0, computed_size=21)
        (histograms,) = batcher.stats.histograms
        assert histograms.queue_s.distribution.total == pytest.approx(computed.queued_s)

    run(body)


def test_what_goes_wrong_with_an_item_is_told_to_who_wanted_it_made_and_no_sign_of_a_broken_runtime() -> None:
    class Damaged(Exception):
        pass

    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        def make() -> int:
            raise Damaged

        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        assert not batcher.is_quiet
        others = [asyncio.create_task(batcher.made_call(make)), asyncio.create_task(batcher.call([7]))]
        await asyncio.sleep(0)
        runtime.is_held = False
        runtime.permits.release()
        _, error, results = await asyncio.gather(first, *others, return_exceptions=True)
        assert isinstance(error, Damaged)
        assert results == [14]
        assert batcher.is_quiet
        for _ in range(3):
            with pytest.raises(Damaged):
                await batcher.made_call(make)
        assert batcher.failure is None
        assert await batcher.call([3]) == [6]
        assert runtime.batches == [[5], [7], [3]]
        assert batcher.stats == BatcherStats(num_waiting=0, num_running=0, computed_size=15)

    run(body, held=True)


def test_an_idle_batcher_waits_for_a_call_in_the_making() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        with batcher.preparing():
            first = asyncio.create_task(batcher.call([20]))
            assert not await asyncio.to_thread(runtime.entered.acquire, timeout=0.05)
        second = asyncio.create_task(batcher.call([21]))
        await asyncio.gather(first, second)
        assert runtime.batches == [[20, 21]]

    run(body, gather_s=TIMEOUT_S)


def test_a_call_in_the_making_that_never_comes_holds_nobody_up_for_long() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        with batcher.preparing():
            assert await batcher.call([20]) == [40]

    run(body, gather_s=0.001)


def test_what_a_client_left_behind_is_not_computed() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        leaving = asyncio.create_task(batcher.call([20, 40]))
        staying = asyncio.create_task(batcher.call([30]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        runtime.permits.release(2)
        assert await asyncio.gather(first, staying) == [[10], [60]]
        assert runtime.batches == [[5], [30]]

    run(body, held=True)


def test_a_client_that_leaves_while_it_is_computed_disturbs_nobody() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        leaving = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        runtime.permits.release(2)
        assert await batcher.call([20]) == [40]

    run(body, held=True)


def test_a_failure_is_that_of_its_batch_alone() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        bad, good = await asyncio.gather(batcher.call([13, 50]), batcher.call([30]), return_exceptions=True)
        assert isinstance(bad, GenerationFailed)
        assert "no thirteen" in bad.message
        assert good == [60]
        assert await batcher.call([14]) == [28]

    assert [50] not in run(body, batch=BatchLimits(max_items=1)).batches  # the rest of a failed call is let go


def test_a_full_queue_refuses() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        second = asyncio.create_task(batcher.call([20]))
        await runtime.is_computing()
        with pytest.raises(Overloaded):
            await batcher.call([30])
        runtime.permits.release(2)
        await asyncio.gather(first, second)
        runtime.permits.release(1)
        assert await batcher.call([30]) == [60]

    run(body, held=True, max_calls=2)


def test_what_waits_is_bounded_in_size_but_a_large_call_alone_is_served() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        large = asyncio.create_task(batcher.call([200]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.call([1])
        runtime.permits.release(2)
        assert await asyncio.gather(first, large) == [[10], [400]]

    run(body, held=True, max_waiting_size=100)


async def call_as(asking: Caller, batcher: Batcher[int, int], items: list[int]) -> list[int]:
    caller.set(asking)
    return await batcher.call(items)


def test_the_task_that_calls_says_who_goes_first() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        many = [asyncio.create_task(call_as(Caller("many"), batcher, [20 + item])) for item in range(3)]
        await asyncio.sleep(0)
        one = asyncio.create_task(call_as(Caller("one"), batcher, [50]))
        urgent = asyncio.create_task(call_as(Caller("many", priority=-1), batcher, [60]))
        await asyncio.sleep(0)
        runtime.permits.release(9)
        await asyncio.gather(first, *many, one, urgent)
        assert runtime.batches[1] == [60]
        assert [50] in runtime.batches[2:4]

    run(body, held=True, batch=BatchLimits(max_items=1))


def test_a_call_past_its_deadline_is_not_computed() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([5]))
        await runtime.is_computing()
        late = asyncio.create_task(call_as(Caller(deadline_at=time.monotonic() + 0.05), batcher, [40]))
        await asyncio.sleep(0.1)
        runtime.permits.release(2)
        with pytest.raises(DeadlineExceeded):
            await late
        assert await first == [10]
        assert await batcher.call([30]) == [60]
        assert [40] not in runtime.batches

    run(body, held=True)


def test_a_call_that_would_be_late_is_refused_at_once() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        first = asyncio.create_task(batcher.call([20]))
        await runtime.is_computing()
        await asyncio.sleep(0.1)  # so 20 take a tenth of a second at least
        runtime.permits.release(1)
        await first
        large = asyncio.create_task(call_as(Caller("large"), batcher, [5000]))
        await runtime.is_computing()
        waiting = asyncio.create_task(call_as(Caller("large"), batcher, [5000]))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineUnreachable) as refused:
            await call_as(Caller("large", deadline_at=time.monotonic() + 1), batcher, [30])
        assert refused.value.retry_after_s >= 1
        with pytest.raises(DeadlineExceeded):
            await call_as(Caller(deadline_at=time.monotonic() - 1), batcher, [30])
        runtime.permits.release(9)
        other = asyncio.create_task(call_as(Caller("other", deadline_at=time.monotonic() + 5), batcher, [14]))
        assert await other == [28]
        await asyncio.gather(large, waiting)

    run(body, held=True)


def test_closing_ends_the_calls_that_wait() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        running = asyncio.create_task(batcher.call([5, 50]))
        await runtime.is_computing()
        waiting = asyncio.create_task(batcher.call([20]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.aclose())
        await asyncio.sleep(0)
        runtime.permits.release(1)
        ends = await asyncio.gather(running, waiting, closing, return_exceptions=True)
        assert [type(end) for end in ends[:2]] == [ShuttingDown, ShuttingDown]
        with pytest.raises(ShuttingDown):
            await batcher.call([20])
        assert runtime.batches == [[5]]

    run(body, held=True)


def test_nothing_asked_is_nothing_done() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        assert await batcher.call([]) == []

    assert run(body).batches == []


def test_a_device_that_is_lost_ends_all_calls_and_they_can_be_made_elsewhere() -> None:
    async def body(batcher: Batcher[int, int], runtime: Runtime) -> None:
        losing = asyncio.create_task(batcher.call([666]))
        await runtime.is_computing()
        waiting = asyncio.create_task(batcher.call([1]))
        await asyncio.sleep(0)
        assert batcher.failure is None
        runtime.permits.release()
        for error in await asyncio.gather(losing, waiting, return_exceptions=True):
            assert isinstance(error, PlacementFailed)
            assert "gone" in str(error)
        assert batcher.failure is not None
        with pytest.raises(PlacementFailed, match="gone"):
            await batcher.call([2])

    assert run(body, held=True, batch=BatchLimits(max_items=1)).batches == [[666]]


def test_two_batches_that_fail_in_a_row_are_a_device_that_failed() -> None:
    async def body(batcher: Batcher[int, int], _: Runtime) -> None:
        for items, failure in (
            ([13], GenerationFailed),
            ([1], None),
            ([13], GenerationFailed),
            ([13], PlacementFailed),
        ):
            if failure is None:
                assert await batcher.call(items) == [2]
                continue
            with pytest.raises(failure) as refused:
                await batcher.call(items)
            assert type(refused.value) is failure
        assert batcher.failure == "the runtime failed: no thirteen"

    run(body)
