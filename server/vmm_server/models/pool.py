"""Loaded models: who holds them, how long they stay, and what leaves when room is needed.

A request takes a `Lease`; a model with a lease is never unloaded. When the last lease is returned its keep-alive clock
starts; the pool's one background task unloads what has expired. Before a load the pool makes room under the memory
budget (and `max_loaded_models`) by unloading idle models, least recently used first. Two requests for a cold model
share one load. All state is touched on the event loop only; loading and closing, which block, run in threads.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar, overload

from vmm_server.errors import ModelLoadFailed, ShuttingDown
from vmm_server.models.loading import ModelLoader, ReadyModel
from vmm_server.models.ready import Ready
from vmm_server.models.store import InstalledModel
from vmm_server.requests import KeepAlive
from vmm_server.settings import Settings

logger = logging.getLogger(__name__)

Held = TypeVar("Held")

_KV_SHARE = 8
"""A model's KV blocks get at most this fraction (1/n) of the budget: several models and their weights must fit."""
_MIN_KV_BYTES = 64 * 1024**2
_FOREVER = datetime(2318, 1, 1, tzinfo=UTC)
"""`expires_at` of a pinned model; a far date is what Ollama's clients expect."""


@dataclass(slots=True, eq=False)
class LoadedModel:
    """One model in memory."""

    model: InstalledModel
    ready: Ready
    keep_alive: KeepAlive
    last_used: float
    num_leases: int = 0

    @property
    def size_bytes(self) -> int:
        """Weights and KV blocks."""
        return self.ready.memory_bytes

    def expires_in_s(self, now: float) -> float | None:
        """Seconds until it is unloaded if nobody uses it; `None`: never."""
        if self.keep_alive.seconds is None:
            return None
        return (now if self.num_leases else self.last_used) + self.keep_alive.seconds - now

    def expires_at(self, now: float) -> datetime:
        """The same as a date, for `/api/ps`."""
        left = self.expires_in_s(now)
        return _FOREVER if left is None else datetime.now(UTC) + timedelta(seconds=left)


@dataclass(slots=True)
class Lease(Generic[Held]):
    """A counted hold on a loaded model. `release` it once; a second call does nothing."""

    loaded: LoadedModel
    ready: Held
    """What requests are sent to."""
    load_s: float
    """Seconds this lease waited for a load; 0 when the model was there."""
    _release: Callable[[LoadedModel], None]
    _open: bool = field(default=True, init=False)

    def release(self) -> None:
        """Give it back; the keep-alive clock starts when it was the last one."""
        if self._open:
            self._open = False
            self._release(self.loaded)


class ModelPool:
    """Makes, lends and unloads models of every kind. The only maker of engines and batchers."""

    def __init__(self, settings: Settings, load: ModelLoader, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._load = load
        self._clock = clock
        self._loaded: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._room = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closing = False
        self.budget_bytes = int(settings.memory_budget or _physical_memory_bytes() // 2)

    @overload
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None) -> Lease[ReadyModel]: ...
    @overload
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None, kind: type[Held]) -> Lease[Held]: ...
    async def acquire(self, model: InstalledModel, keep_alive: KeepAlive | None, kind: Any = ReadyModel) -> Lease[Any]:
        """A lease, loading the model if it is cold. Callers check what the model can do before.

        Raises `ModelLoadFailed`, also for a model that turns out to be no `kind`, and `ShuttingDown`.
        """
        loaded, load_s = await self._find(model)
        if not isinstance(loaded.ready, kind):
            raise ModelLoadFailed(f"{model.name!r} is not what its manifest says", hint=f"vmm pull {model.source}")
        loaded.num_leases += 1
        loaded.last_used = self._clock()
        loaded.keep_alive = keep_alive or self._settings.keep_alive
        return Lease(loaded, loaded.ready, load_s, self._give_back)

    async def load(self, model: InstalledModel, keep_alive: KeepAlive | None) -> float:
        """Load a model of any kind and start its keep-alive clock; the seconds waited. Raises as `acquire` does."""
        loaded, load_s = await self._find(model)
        loaded.keep_alive = keep_alive or self._settings.keep_alive
        loaded.last_used = self._clock()
        self._changed.set()
        return load_s

    async def _find(self, model: InstalledModel) -> tuple[LoadedModel, float]:
        """The model in memory, and the seconds its load was waited for."""
        if self._closing:
            raise ShuttingDown
        started = self._clock()
        loaded = self._loaded.get(model.weights)
        if loaded is None:
            task = self._loading.get(model.weights)
            if task is None:
                task = asyncio.create_task(self._load_cold(model), name=f"load {model.name}")
                self._loading[model.weights] = task
                task.add_done_callback(partial(self._load_ended, model.weights))
            # shielded: one client that gives up must not stop the load that others wait for
            loaded = await asyncio.shield(task)
            load_s = self._clock() - started
        else:
            load_s = 0.0
        if self._closing or self._loaded.get(model.weights) is not loaded:  # closed between the load and our turn
            return await self._find(model)
        return loaded, load_s

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
        loaded = self._loaded.get(model.weights)
        if loaded is None:
            return False
        loaded.keep_alive = KeepAlive(0.0)
        if loaded.num_leases == 0:
            await self._close(loaded)
        return True

    async def expire(self) -> float | None:
        """Unload what has expired; seconds until the next one does, `None` when nothing will."""
        pause: float | None = None
        for loaded in list(self._loaded.values()):
            left = loaded.expires_in_s(self._clock())
            if loaded.num_leases or left is None:
                continue
            if left <= 0:
                await self._close(loaded)
            else:
                pause = left if pause is None else min(pause, left)
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
        self._closing = True
        if self._loading:
            await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for loaded in list(self._loaded.values()):
            await self._close(loaded)

    def _give_back(self, loaded: LoadedModel) -> None:
        loaded.num_leases -= 1
        loaded.last_used = self._clock()
        self._changed.set()

    def _load_ended(self, weights: str, task: asyncio.Task[LoadedModel]) -> None:
        del self._loading[weights]
        if not task.cancelled() and (error := task.exception()) is not None:  # also when nobody waits any more
            logger.error("%s", error)

    async def _load_cold(self, model: InstalledModel) -> LoadedModel:
        async with self._room:  # one load at a time, so that two cannot both take the same free memory
            kv_cache_bytes = await self._make_room(model)
            logger.info("loading %s", model.name)
            ready = await asyncio.to_thread(self._load, model, kv_cache_bytes)
        loaded = LoadedModel(model, ready, self._settings.keep_alive, self._clock())
        self._loaded[model.weights] = loaded
        self._changed.set()
        logger.info("loaded %s on %s, %d MB", model.name, ready.placement, ready.memory_bytes >> 20)
        return loaded

    async def _make_room(self, model: InstalledModel) -> int:
        """Evict idle models until `model` fits; returns the bytes its KV blocks may have."""
        kv_bytes = int(self._settings.kv_cache_size or self.budget_bytes // _KV_SHARE)
        wanted, least = model.size_bytes, model.size_bytes
        if model.generates:
            wanted, least = wanted + kv_bytes, least + _MIN_KV_BYTES
        limit = self._settings.max_loaded_models
        while True:
            used = sum(loaded.size_bytes for loaded in self._loaded.values())
            too_many = limit and len(self._loaded) >= limit
            if not too_many and used + wanted <= self.budget_bytes:
                return wanted - model.size_bytes
            idle = [loaded for loaded in self._loaded.values() if loaded.num_leases == 0]
            if idle:
                await self._close(min(idle, key=lambda loaded: loaded.last_used))
            elif not too_many and used + least <= self.budget_bytes:
                return self.budget_bytes - used - model.size_bytes
            else:
                raise ModelLoadFailed(
                    f"no room for {model.name!r}: it needs {least >> 20} MB, {(self.budget_bytes - used) >> 20} of "
                    f"{self.budget_bytes >> 20} MB are free, and {len(self._loaded)} loaded models are in use",
                    hint="wait for running requests, or raise memory_budget or max_loaded_models",
                )

    async def _close(self, loaded: LoadedModel) -> None:
        self._loaded.pop(loaded.model.weights, None)
        self._changed.set()
        await loaded.ready.aclose()
        logger.info("unloaded %s", loaded.model.name)


def _physical_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 8 * 1024**3
