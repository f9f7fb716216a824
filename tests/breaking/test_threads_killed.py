"""A batcher's thread that is taken away: nobody waits for ever, and what comes later can be made elsewhere."""

import asyncio
from collections.abc import Sequence
from threading import Event

import pytest

from vmm_server.engine.batcher import Batcher
from vmm_server.errors import PlacementFailed


class Killed(BaseException):
    """Nothing that any code expects."""


def test_calls_of_a_killed_batcher_can_be_made_elsewhere() -> None:
    entered, may_die, closed = Event(), Event(), Event()

    def compute(items: Sequence[int]) -> list[int]:
        entered.set()
        may_die.wait(20)
        raise Killed

    async def scenario() -> None:
        batcher = Batcher(compute, size=lambda item: item, close=closed.set)
        running = asyncio.create_task(batcher.call([1]))
        await asyncio.to_thread(entered.wait, 20)
        waiting = asyncio.create_task(batcher.call([2]))
        await asyncio.sleep(0)
        may_die.set()
        for call in (running, waiting):
            with pytest.raises(PlacementFailed, match="Killed"):
                await asyncio.wait_for(call, 20)
        with pytest.raises(PlacementFailed, match="Killed"):
            await batcher.call([3])
        await batcher.aclose()
        assert batcher.stats.num_running == batcher.stats.num_waiting == 0
        assert closed.is_set()

    asyncio.run(scenario())
