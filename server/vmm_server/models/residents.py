"""The models in memory and those on their way out: how they leave, and who is told of it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Literal

from vmm_server.models.leases import LoadedModel
from vmm_server.models.placing import Places
from vmm_server.models.store import InstalledModel

logger = logging.getLogger(__name__)

Why = Literal["keep_alive", "room", "asked", "failed", "replaced", "shutdown"]
"""What a model leaves memory for."""
Left = Callable[[LoadedModel, Why], None]
"""Told of a model that is out of memory, on the event loop."""

_IN_WORDS: Mapping[Why, str] = {
    "keep_alive": "nobody has used it for some time",
    "room": "another model needs its place",
    "asked": "as was asked",
    "failed": "its device has failed",
    "replaced": "no installed model needs it any more",
    "shutdown": "the server is shutting down",
}


def nobody_asks(loaded: LoadedModel, why: Why) -> None:
    """Does nothing."""


IsInstalled = Callable[[InstalledModel], bool]
"""Whether a model that is installed now needs what is loaded for this one."""


class Residents:
    """Belongs to the pool's event loop; closing, which blocks, is done in tasks of its own."""

    def __init__(
        self,
        places: Places,
        clock: Callable[[], float],
        left: Left = nobody_asks,
        is_installed: IsInstalled = lambda _: True,
    ) -> None:
        self.loaded: list[LoadedModel] = []
        self.leaving: dict[LoadedModel, asyncio.Task[None]] = {}
        """Nobody gets them any more; their memory counts as taken until the task is done."""
        self.changed = asyncio.Event()
        """Something may expire earlier than thought."""
        self.room_changed = asyncio.Event()
        """There may be room that was not there before."""
        self._expires_at: float | None = None
        """When the next one does, as was found when that was last looked at."""
        self._places = places
        self._clock = clock
        self._left = left
        self._is_installed = is_installed

    def give_back(self, loaded: LoadedModel) -> None:
        """End a lease; the keep-alive clock starts when it was the last one, and a replaced model leaves."""
        loaded.num_leases -= 1
        loaded.last_used = now = self._clock()
        self.room_changed.set()
        if not loaded.num_leases:
            self._look_at(loaded)
        left = None if loaded.num_leases else loaded.expires_in_s(now)
        is_next = left is not None and (self._expires_at is None or now + left < self._expires_at)
        if is_next or loaded.ready.failure is not None:
            self.changed.set()

    def close(self, loaded: LoadedModel, why: Why) -> asyncio.Task[None]:
        """Begin to unload."""
        if (leaving := self.leaving.get(loaded)) is not None:
            return leaving
        self.loaded = [other for other in self.loaded if other is not loaded]
        task = self.leaving[loaded] = asyncio.create_task(self._unload(loaded, why), name=f"unload {loaded.name}")
        return task

    def find_replaced(self) -> None:
        """Look whether all that is loaded is still installed; what is not leaves when nobody uses it."""
        for loaded in self.loaded:
            self._look_at(loaded)

    def _look_at(self, loaded: LoadedModel) -> None:
        was_replaced, loaded.is_replaced = loaded.is_replaced, not self._is_installed(loaded.model)
        if loaded.is_replaced and not was_replaced:
            loaded.last_used, loaded.is_pinned = self._clock(), False

    def drop_failed(self) -> None:
        """Those whose device has failed leave, used or not: nothing runs there any more."""
        for loaded in list(self.loaded):
            if (failure := loaded.ready.failure) is not None:
                self._places.failed(loaded.model, loaded.placement, failure)
                self.close(loaded, "failed")

    def expire(self) -> float | None:
        """Begin to unload what has expired or failed; seconds until the next one does, `None` when nothing will."""
        self.drop_failed()
        now, pause = self._clock(), None
        for loaded in list(self.loaded):
            left = loaded.expires_in_s(now)
            if loaded.num_leases or left is None:
                continue
            if left <= 0:
                self.close(loaded, _why_expired(loaded))
            else:
                pause = left if pause is None else min(pause, left)
        self._expires_at = None if pause is None else now + pause
        return pause

    def by_time_left(self) -> list[LoadedModel]:
        """The one that stays longest first."""
        now = self._clock()

        def remaining(loaded: LoadedModel) -> float:
            left = loaded.expires_in_s(now)
            return float("inf") if left is None else left

        return sorted(self.loaded, key=remaining, reverse=True)

    async def gone(self) -> None:
        """Wait for those that are leaving now."""
        if self.leaving:
            await asyncio.wait(self.leaving.values())

    def notify(self) -> None:
        """Have everybody who waits for something look again."""
        self.changed.set()
        self.room_changed.set()

    async def _unload(self, loaded: LoadedModel, why: Why) -> None:
        try:
            await loaded.ready.aclose()
        except Exception:
            logger.exception("%s did not end in good order", loaded.name)
        finally:
            del self.leaving[loaded]
            self._left(loaded, why)
            self.notify()
        logger.info("unloaded %s: %s", loaded.name, _IN_WORDS[why])


def _why_expired(loaded: LoadedModel) -> Why:
    if loaded.is_replaced:
        return "replaced"
    return "asked" if loaded.is_unwanted else "keep_alive"
