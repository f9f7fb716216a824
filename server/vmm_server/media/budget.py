"""How many pixels are in memory at a time, whoever sent them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from vmm_server.errors import Overloaded


class PixelBudget:
    """Lends pixels, first come, first served: who wants many is not overtaken for ever by those who want few.

    For one event loop.
    """

    def __init__(self, limit: int, *, max_waiting: int) -> None:
        """`limit`: lent at a time; who wants more gets them alone. `max_waiting`: more are refused."""
        self._limit = limit
        self._max_waiting = max_waiting
        self._left = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_pixels: int) -> AsyncIterator[None]:
        """Have so many for as long as the context lasts. Raises `Overloaded` when too many wait already."""
        wanted = min(num_pixels, self._limit)
        if self._waiting or wanted > self._left:
            await self._wait(wanted)
        else:
            self._left -= wanted
        try:
            yield
        finally:
            self._give_back(wanted)

    async def _wait(self, wanted: int) -> None:
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded
        turn = wanted, asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn[1]
        except asyncio.CancelledError:
            if turn[1].done() and not turn[1].cancelled():  # lent in the moment that it was not wanted any more
                self._give_back(wanted)
            else:
                with suppress(ValueError):
                    self._waiting.remove(turn)
                self._give_back(0)
            raise

    def _give_back(self, num_pixels: int) -> None:
        self._left += num_pixels
        while self._waiting and self._waiting[0][0] <= self._left:
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._left -= wanted
                turn.set_result(None)
