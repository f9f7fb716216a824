"""Loaded models: who holds them, how long they stay, and what leaves when room is needed.

A request takes a `Lease`; a model with a lease is never unloaded. When the last lease is returned its keep-alive clock
starts; the pool's one background task unloads what has expired. Requests for a cold model share one load. Loads take
turns, in the order of asking: the one whose turn it is makes room under the memory budget and `max_loaded_models` by
unloading idle models (`room.find_room`), waits while the models in its way are in use, and then loads. One that has
waited long has `Precedence` over new requests for those models. Whoever waits for a load has its lease at the moment
it ends, so that the next load cannot take the model away again.

All state is touched on the event loop only; loading and closing, which block, run in threads, in tasks of the pool's
own: a client that leaves cancels neither. A load that nobody waits for any more is given up while it waits for room;
once it has begun, it goes on, and the model stays for its keep-alive.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar, overload

from vmm_server.errors import LoadTimeout, ModelLoadFailed, Overloaded, ShuttingDown
from vmm_server.models.leases import Lease, LoadedModel
from vmm_server.models.loading import LoadKey, ModelLoader, ReadyModel, load_key
from vmm_server.models.pending import NobodyWaits, PendingLoad
from vmm_server.models.precedence import Precedence
from vmm_server.models.room import Limits, Need, find_room, may_find_room, no_room
from vmm_server.models.store import InstalledModel, how_to_mend
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings

logger = logging.getLogger(__name__)

Held = TypeVar("Held")
_KV_SHARE = 8
"""A model's KV blocks get at most this fraction (1/n) of the budget: several models and their weights must fit."""
_MIN_KV_BYTES = 64 * 1024**2


_Load = PendingLoad[LoadedModel]


class ModelPool:
    """Makes, lends and unloads models of every kind. The only maker of engines and batchers."""

    def __init__(self, settings: Settings, load: ModelLoader, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._load = load
        self._clock = clock
        self._loaded: dict[LoadKey, LoadedModel] = {}
        self._loads: dict[LoadKey, _Load] = {}
        self._leaving: dict[LoadedModel, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        """For `run`: something may expire earlier than thought."""
        self._room_changed = asyncio.Event()
        """For the load whose turn it is."""
        self._is_closing = False
        budget_bytes = int(settings.memory_budget or _physical_memory_bytes() // 2)
        self._limits = Limits(budget_bytes, settings.max_loaded_models)
        self._max_waiting = settings.max_sequences + settings.max_queue
        self._precedence = Precedence(self._limits, settings.load_timeout_s, self._max_waiting, clock)

    @overload
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None) -> Lease[ReadyModel]: ...
    @overload
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None, kind: type[Held]) -> Lease[Held]: ...
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None, kind: Any = ReadyModel) -> Lease[Any]:
        """A lease, loading the model if it is cold. Callers check what the model can do before.

        `keep_alive` replaces what earlier requests said; `None` does not. Raises `ModelLoadFailed`, also for a model
        that turns out to be no `kind`, `LoadTimeout`, `Overloaded` and `ShuttingDown`.
        """
        loaded, load_s = await self._lease(model)
        if not isinstance(loaded.ready, kind):
            self._give_back(loaded)
            raise ModelLoadFailed(f"{model.name!r} is not what its manifest says", hint=how_to_mend(model))
        loaded.keep(keep_alive)
        return Lease(loaded, loaded.ready, load_s, self._give_back)

    async def load(self, model: InstalledModel, keep_alive: KeepAlive | None) -> float:
        """Load a model of any kind and start its keep-alive clock; the seconds waited. Raises as `acquire` does."""
        loaded, load_s = await self._lease(model)
        loaded.keep(keep_alive)
        self._give_back(loaded)
        return load_s

    def loaded(self) -> list[LoadedModel]:
        """Models in memory, the one that stays longest first."""
        now = self._clock()

        def remaining(loaded: LoadedModel) -> float:
            left = loaded.expires_in_s(now)
            return float("inf") if left is None else left

        return sorted(self._loaded.values(), key=remaining, reverse=True)

    def now(self) -> float:
        """The pool's clock, to read `LoadedModel.expires_at` with."""
        return self._clock()

    async def unload(self, model: InstalledModel) -> bool:
        """Unload when idle: at once, or when the last lease is returned. False if it was not loaded."""
        loaded = self._loaded.get(load_key(model))
        if loaded is None:
            return False
        loaded.keep(KeepAlive(0.0))
        self._notify()
        if loaded.num_leases == 0:
            await asyncio.shield(self._close(loaded))
        return True

    async def expire(self) -> float | None:
        """Unload what has expired; seconds until the next one does, `None` when nothing will."""
        pause: float | None = None
        for loaded in list(self._loaded.values()):
            left = loaded.expires_in_s(self._clock())
            if loaded.num_leases or left is None:
                continue
            if left <= 0:
                self._close(loaded)
            else:
                pause = left if pause is None else min(pause, left)
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        return pause

    async def run(self) -> None:
        """Unload idle models as they expire, until cancelled. The app's lifespan owns this task."""
        while True:
            self._changed.clear()
            pause = await self.expire()
            try:
                await asyncio.wait_for(self._changed.wait(), pause)
            except TimeoutError:
                continue

    async def aclose(self) -> None:
        """Unload everything; generations still running are aborted. Later `acquire`s raise `ShuttingDown`."""
        self._is_closing = True
        self._notify()
        if self._loads:
            await asyncio.wait([load.task for load in self._loads.values()])
        for loaded in list(self._loaded.values()):
            self._close(loaded)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _lease(self, model: InstalledModel) -> tuple[LoadedModel, float]:
        """The model in memory, with a lease that is the caller's, and the seconds it was waited for."""
        key, timeout_s = load_key(model), self._settings.load_timeout_s
        try:
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None) as deadline:
                return await self._lend(key, model)
        except TimeoutError:
            if not deadline.expired():
                raise
            load = self._loads.get(key)
            why = load.why_not_yet if load else "it has to make room for a model that has waited for some time"
            raise LoadTimeout(f"waited {timeout_s:g} s for {model.name!r}: {why}") from None

    async def _lend(self, key: LoadKey, model: InstalledModel) -> tuple[LoadedModel, float]:
        started, load_s = self._clock(), 0.0
        while (loaded := self._loaded.get(key)) and self._precedence.stands_aside(loaded, self._loaded.values()):
            await self._precedence.stand_aside()
            load_s = self._clock() - started
        if self._is_closing:
            raise ShuttingDown
        if loaded is None:
            loaded = await self._wait_for(self._loads.get(key) or self._begin(key, model))
            load_s = self._clock() - started
        else:
            loaded.num_leases += 1
        if self._is_closing:
            self._give_back(loaded)
            raise ShuttingDown
        loaded.model = model
        loaded.last_used = self._clock()
        return loaded, load_s

    def _begin(self, key: LoadKey, model: InstalledModel) -> _Load:
        load = self._loads[key] = PendingLoad(model)
        load.task = asyncio.create_task(self._load_cold(key, load), name=f"load {model.name}")
        load.task.add_done_callback(load.log_end)
        return load

    async def _wait_for(self, load: _Load) -> LoadedModel:
        """What is loaded, with a lease."""
        if load.num_waiting >= self._max_waiting:
            raise Overloaded
        load.num_waiting += 1
        try:
            # shielded: one client that gives up must not stop the load that others wait for
            await asyncio.shield(load.task)
        except BaseException:
            load.num_waiting -= 1
            if load.loaded is not None:  # it came at the last moment
                self._give_back(load.loaded)
            self._notify()
            raise
        assert load.loaded is not None
        return load.loaded

    async def _load_cold(self, key: LoadKey, load: _Load) -> None:
        model = load.model
        try:
            async with self._turn:
                need = self._need(model)
                with self._precedence.looking(need):
                    num_bytes = await self._make_room(load, need)
                load.why_not_yet = "it is still loading"
                logger.info("loading %s", model.name)
                ready = await asyncio.to_thread(self._load, model, num_bytes - model.size_bytes)
                load.loaded = LoadedModel(
                    model, ready, self._settings.keep_alive, self._clock(), num_leases=load.num_waiting
                )
                self._loaded[key] = load.loaded
        finally:
            del self._loads[key]
        self._notify()
        logger.info("loaded %s on %s, %d MB", model.name, ready.placement, ready.memory_bytes >> 20)

    async def _make_room(self, load: _Load, need: Need) -> int:
        """The bytes the model may take, once there is room for it. Raises `ModelLoadFailed` if there will be none."""
        while True:
            self._room_changed.clear()
            if self._is_closing:
                raise ShuttingDown
            if not load.num_waiting:
                raise NobodyWaits
            if not self._leaving:
                loaded = self._loaded.values()
                room = find_room(loaded, need, self._limits)
                if room is None:
                    load.why_not_yet = no_room(loaded, need, self._limits)
                    if not may_find_room(loaded, need, self._limits):
                        raise load.does_not_fit()
                elif room.leaving:
                    self._close(room.leaving[0])
                else:
                    return room.num_bytes
            await self._room_changed.wait()

    def _need(self, model: InstalledModel) -> Need:
        if not model.generates:
            return Need(model.size_bytes, model.size_bytes)
        kv_bytes = int(self._settings.kv_cache_size or self._limits.num_bytes // _KV_SHARE)
        least = model.size_bytes + min(kv_bytes, _MIN_KV_BYTES)
        return Need(least, model.size_bytes + kv_bytes)

    def _give_back(self, loaded: LoadedModel) -> None:
        loaded.num_leases -= 1
        loaded.last_used = self._clock()
        self._notify()

    def _close(self, loaded: LoadedModel) -> asyncio.Task[None]:
        """Begin to unload; nobody gets it any more. Its memory counts as taken until that is done."""
        if (leaving := self._leaving.get(loaded)) is not None:
            return leaving
        self._loaded = {key: other for key, other in self._loaded.items() if other is not loaded}
        task = self._leaving[loaded] = asyncio.create_task(self._unload(loaded), name=f"unload {loaded.name}")
        return task

    async def _unload(self, loaded: LoadedModel) -> None:
        try:
            await loaded.ready.aclose()
        except Exception:
            logger.exception("%s did not end in good order", loaded.name)
        finally:
            del self._leaving[loaded]
            self._notify()
        logger.info("unloaded %s", loaded.name)

    def _notify(self) -> None:
        self._changed.set()
        self._room_changed.set()


def _physical_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 8 * 1024**3
