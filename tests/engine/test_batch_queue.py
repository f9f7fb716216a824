"""Which items go together: everything once, within the limits, fairly, with little padding."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vmm_server.callers import Caller
from vmm_server.engine.batch_queue import BatchLimits, BatchQueue, Waiting

LIMITS = st.builds(
    BatchLimits,
    max_items=st.integers(1, 9),
    max_size=st.integers(1, 200),
    max_padding=st.floats(0, 1),
)
CALLS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=12), max_size=8)


def padded(batch: list[Waiting[int]]) -> int:
    return len(batch) * max(item.size for item in batch)


def drain(queue: BatchQueue[int]) -> list[list[Waiting[int]]]:
    batches = []
    while batch := queue.take():
        batches.append(batch)
    return batches


@given(LIMITS, CALLS)
def test_every_item_is_taken_once(limits: BatchLimits, calls: list[list[int]]) -> None:
    queue: BatchQueue[int] = BatchQueue(limits)
    for call, sizes in enumerate(calls):
        queue.add(call, sizes)
    assert queue.total_size == sum(map(sum, calls))
    taken = [(item.call, item.index, item.size) for batch in drain(queue) for item in batch]
    expected = [(call, index, size) for call, sizes in enumerate(calls) for index, size in enumerate(sizes)]
    assert sorted(taken) == expected
    assert (len(queue), queue.total_size) == (0, 0)


@given(LIMITS, CALLS)
def test_batches_stay_within_the_limits(limits: BatchLimits, calls: list[list[int]]) -> None:
    queue: BatchQueue[int] = BatchQueue(limits)
    for call, sizes in enumerate(calls):
        queue.add(call, sizes)
    for batch in drain(queue):
        sizes = [item.size for item in batch]
        assert sizes == sorted(sizes)
        assert len(batch) <= limits.max_items
        assert padded(batch) <= limits.max_size or len(batch) == 1
        assert padded(batch) - sum(sizes) <= limits.max_padding * padded(batch)


@given(LIMITS, CALLS, st.integers(0, 7), st.integers(0, 4))
def test_what_is_discarded_is_never_taken(
    limits: BatchLimits, calls: list[list[int]], gone: int, num_before: int
) -> None:
    queue: BatchQueue[int] = BatchQueue(limits)
    for call, sizes in enumerate(calls):
        queue.add(call, sizes)
    before = [item for _ in range(num_before) for item in queue.take()]
    queue.discard(gone)
    queue.discard(gone)
    after = [item for batch in drain(queue) for item in batch]
    assert all(item.call != gone for item in after)
    assert len(before) + len(after) == sum(map(len, calls)) - sum(
        1
        for call, sizes in enumerate(calls)
        if call == gone
        for index in range(len(sizes))
        if not any((item.call, item.index) == (gone, index) for item in before)
    )
    assert (len(queue), queue.total_size) == (0, 0)


def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchLimits(max_items=4))
    queue.add("large", [10] * 100)
    queue.take()
    queue.add("small", [50])
    assert "small" in [item.call for item in queue.take() + queue.take()]


def test_nobody_starves_behind_a_stream_of_newcomers() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchLimits(max_items=2))
    queue.add(0, [40])
    for newcomer in range(1, 6):
        queue.add(newcomer, [5, 5])
        if 0 in [item.call for item in queue.take()]:
            return
    raise AssertionError("the first call still waits")


def test_a_large_call_ends_although_small_ones_keep_coming() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchLimits(max_items=1))
    queue.add(0, [10] * 5)
    taken = []
    for newcomer in range(1, 201):
        queue.add(newcomer, [10])
        taken += [item.call for item in queue.take()]
    assert taken.count(0) == 5


def test_sizes_that_are_near_go_together() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchLimits(max_items=8))
    for call, size in enumerate([10, 100, 11, 98, 12]):
        queue.add(call, [size])
    assert [[item.size for item in batch] for batch in drain(queue)] == [[10, 11, 12], [98, 100]]


def test_one_item_does_not_wait_for_another_tenants_many_calls() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchLimits(max_items=4))
    for number in range(200):
        queue.add(f"many {number}", [10], Caller("many"))
    queue.take()
    queue.add("one", [500], Caller("one"))
    assert "one" in [item.call for item in queue.take() + queue.take()]


def test_shares_of_tenants_are_as_their_weights() -> None:
    queue: BatchQueue[tuple[str, int]] = BatchQueue(BatchLimits(max_items=1))
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    for name, weight in weights.items():
        for number in range(300):
            queue.add((name, number), [7 + number % 5], Caller(name, weight))
    taken: Counter[str] = Counter()
    for _ in range(400):
        for item in queue.take():
            taken[item.call[0]] += item.size
    assert all(0.97 < taken[name] / taken.total() / (weight / 6) < 1.03 for name, weight in weights.items())


def test_neighbours_of_the_batch_pay_for_it() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchLimits(max_items=2))
    queue.add("a", [10, 10, 10], Caller("a"))
    queue.add("b", [10, 10], Caller("b"))
    queue.add("c", [50], Caller("c"))
    queue.take()
    assert [item.call for item in queue.take()] != ["c"], "whoever comes later begins level with those that wait"
    assert "c" in [item.call for item in queue.take()]


def test_better_priorities_go_first_and_alone() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchLimits(max_items=8))
    queue.add("worse", [10, 10], Caller(priority=5))
    queue.add("better", [10], Caller(priority=-5))
    queue.add("usual", [10], Caller())
    assert [[item.call for item in batch] for batch in drain(queue)] == [["better"], ["usual"], ["worse", "worse"]]


@given(LIMITS, CALLS, st.data())
def test_everything_of_everybody_is_taken(limits: BatchLimits, calls: list[list[int]], data: st.DataObject) -> None:
    queue: BatchQueue[int] = BatchQueue(limits)
    num_taken = 0
    for call, sizes in enumerate(calls):
        tenant, priority = data.draw(st.tuples(st.sampled_from("ab"), st.integers(-1, 1)))
        queue.add(call, sizes, Caller(tenant, priority=priority))
        if data.draw(st.booleans()):
            num_taken += len(queue.take())
    assert sum(claim.work for claim in queue.claims) == queue.total_size
    num_taken += sum(map(len, drain(queue)))
    assert num_taken == sum(map(len, calls))
    assert (queue.claims, queue.total_size, len(queue)) == ([], 0, 0)
