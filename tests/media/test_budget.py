"""Pixels in memory at a time."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import Overloaded
from vmm_server.media.budget import PixelBudget


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """Wants some pixels, and has them until it is told to give them back."""

    def __init__(self, budget: PixelBudget, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self.has = False
        self._enough = asyncio.Event()
        self.task = asyncio.create_task(self._run(budget))

    async def _run(self, budget: PixelBudget) -> None:
        async with budget.hold(self.num_pixels):
            self.has = True
            try:
                await self._enough.wait()
            finally:
                self.has = False

    def give_back(self) -> None:
        self._enough.set()


def test_who_comes_first_is_served_first() -> None:
    async def scenario() -> None:
        budget = PixelBudget(10, max_waiting=9)
        first, large, small = Holder(budget, 6), Holder(budget, 9), Holder(budget, 1)
        await settle()
        assert (first.has, large.has, small.has) == (True, False, False)  # there is room for one, and its turn is later
        first.give_back()
        await settle()
        assert (large.has, small.has) == (True, True)
        large.give_back()
        small.give_back()
        await asyncio.gather(first.task, large.task, small.task)

    asyncio.run(scenario())


def test_more_than_there_is_is_had_alone() -> None:
    async def scenario() -> None:
        budget = PixelBudget(10, max_waiting=9)
        one, huge = Holder(budget, 1), Holder(budget, 99)
        await settle()
        assert (one.has, huge.has) == (True, False)
        one.give_back()
        await settle()
        assert huge.has
        huge.give_back()
        await asyncio.gather(one.task, huge.task)

    asyncio.run(scenario())


def test_who_leaves_is_in_nobodys_way() -> None:
    async def scenario() -> None:
        budget = PixelBudget(10, max_waiting=9)
        first, large, small = Holder(budget, 6), Holder(budget, 9), Holder(budget, 1)
        await settle()
        large.task.cancel()
        await settle()
        assert (first.has, small.has) == (True, True)
        first.give_back()
        small.give_back()
        await asyncio.gather(first.task, small.task)

    asyncio.run(scenario())


def test_too_many_who_wait_are_refused() -> None:
    async def scenario() -> None:
        budget = PixelBudget(10, max_waiting=1)
        holders = [Holder(budget, 10) for _ in range(3)]
        await settle()
        with pytest.raises(Overloaded):
            await holders[2].task
        for holder in holders[:2]:
            holder.give_back()
        await asyncio.gather(*(holder.task for holder in holders[:2]))

    asyncio.run(scenario())


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("come"), st.integers(0, 15)),
            st.tuples(st.sampled_from(["give back", "leave"]), st.integers(0, 20)),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_there_are_never_more_than_the_limit_and_nobody_is_forgotten(
    steps: list[tuple[str, int]], is_settled: bool
) -> None:
    async def scenario() -> None:
        budget = PixelBudget(10, max_waiting=1000)
        holders: list[Holder] = []
        for what, number in steps:
            if what == "come":
                holders.append(Holder(budget, number))
            elif holders:
                holder = holders[number % len(holders)]
                if what == "leave":
                    holder.task.cancel()
                else:
                    holder.give_back()
            if is_settled:
                await settle()
            assert sum(min(10, holder.num_pixels) for holder in holders if holder.has) <= 10
        for holder in holders:
            holder.give_back()
        for holder in holders:
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(holder.task, 5)
        everything = Holder(budget, 10)
        await settle()
        assert everything.has
        everything.give_back()
        await everything.task

    asyncio.run(scenario())
