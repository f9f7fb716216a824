"""Requests as they come, for whoever makes way for them."""

import asyncio


class Arrivals:
    """Counts them. Belongs to one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._news = asyncio.Event()

    def add(self) -> None:
        """One has come."""
        self.count += 1
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, count: int) -> None:
        """Wait until more than `count` have come."""
        while self.count <= count:
            await self._news.wait()
