"""Loaded models: who holds them, how long they stay, and what leaves when room is needed.

A request takes a `Lease`; a model with a lease is never unloaded. When the last lease is returned its keep-alive clock
starts; the pool's one background task unloads what has expired. Requests for a cold model share one load. Loads take
turns, in the order of asking: the one whose turn it is makes room under the memory budget and `max_loaded_models` by
unloading idle models (`room.find_room`), waits while the models in its way are in use, and then loads. One that has
waited long has `Precedence` over new requests for those models. Whoever waits for a load has its lease at the moment
it ends, so that the next load cannot take the model away again.

A model may be in memory on several placements at once. `Places` says which one a request gets, and in which order a
load tries them; a placement that fails is passed over, and one that fails in the middle of its work is unloaded at the
next request, which goes elsewhere. Another placement of a model that is there already is loaded for later requests:
nobody waits for it, and no model leaves for it.

All state is touched on the event loop only; loading and closing, which block, run in threads, in tasks of the pool's
own: a client that leaves cancels neither. A load that nobody waits for any more is given up while it waits for room;
once it has begun, it goes on, and the model stays for its keep-alive.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, overload

from vmm_server.errors import LoadTimeout, ModelLoadFailed, Overloaded, ShuttingDown
from vmm_server.models.arrivals import Arrivals
from vmm_server.models.leases import Lease, LoadedModel
from vmm_server.models.loading import LoadKey, ModelLoader, ReadyModel, load_key
from vmm_server.models.pending import NobodyWaits, PendingLoad
from vmm_server.models.placing import Memory, Places
from vmm_server.models.precedence import Precedence
from vmm_server.models.ready import Ready
from vmm_server.models.room import Limits, Need, find_room, may_find_room, no_room
from vmm_server.models.router import Placement, Work, admits, exactly
from vmm_server.models.store import InstalledModel, how_to_mend
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import Settings

logger = logging.getLogger(__name__)

Held = TypeVar("Held")
_KV_SHARE = 8
"""A model's KV blocks get at most this fraction (1/n) of the budget: several models and their weights must fit."""
_MIN_KV_BYTES = 64 * 1024**2
_ANY_WORK = Work()

_Load = PendingLoad[LoadedModel]
_LoadKey = tuple[LoadKey, Wanted]


class ModelPool:
    """Makes, lends and unloads models of every kind. The only maker of engines and batchers."""

    def __init__(
        self, settings: Settings, load: ModelLoader, places: Places, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._load = load
        self._places = places
        self._clock = clock
        self._loaded: list[LoadedModel] = []
        self._loads: dict[_LoadKey, _Load] = {}
        self._leaving: dict[LoadedModel, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        """For `run`: something may expire earlier than thought."""
        self._room_changed = asyncio.Event()
        """For the load whose turn it is."""
        self.arrivals = Arrivals()
        """Requests for a model, of any kind."""
        self._is_closing = False
        self._max_waiting = settings.max_sequences + settings.max_queue
        self._precedence = Precedence(settings.load_timeout_s, self._max_waiting, clock)

    @overload
    async def acquire(
        self, model: InstalledModel, keep_alive: KeepAlive | None, *, wanted: Wanted = ..., work: Work = ...
    ) -> Lease[ReadyModel]: ...
    @overload
    async def acquire(
        self,
        model: InstalledModel,
        keep_alive: KeepAlive | None,
        kind: type[Held],
        *,
        wanted: Wanted = ...,
        work: Work = ...,
    ) -> Lease[Held]: ...
    async def acquire(
        self,
        model: InstalledModel,
        keep_alive: KeepAlive | None,
        kind: Any = ReadyModel,
        *,
        wanted: Wanted = ANYWHERE,
        work: Work = _ANY_WORK,
    ) -> Lease[Any]:
        """A lease on the placement where `work` ends first, of those `wanted`; a cold model is loaded.

        Callers check what the model can do before. `keep_alive` replaces what earlier requests said; `None` does not.
        Raises `ModelLoadFailed`, also for a model that turns out to be no `kind`, `UnsupportedParameter` for a
        placement that is not here, `LoadTimeout`, `Overloaded` and `ShuttingDown`.
        """
        self.arrivals.add()
        loaded, load_s = await self._lease(model, wanted, work)
        if not isinstance(loaded.ready, kind):
            self._give_back(loaded)
            raise ModelLoadFailed(f"{model.name!r} is not what its manifest says", hint=how_to_mend(model))
        loaded.keep(keep_alive)
        return Lease(loaded, loaded.ready, load_s, self._give_back)

    async def load(self, model: InstalledModel, keep_alive: KeepAlive | None, wanted: Wanted = ANYWHERE) -> float:
        """Load a model of any kind and start its keep-alive clock; the seconds waited. Raises as `acquire` does."""
        self.arrivals.add()
        loaded, load_s = await self._lease(model, wanted, _ANY_WORK)
        loaded.keep(keep_alive)
        self._give_back(loaded)
        return load_s

    async def borrow(self, model: InstalledModel, placement: Placement, *, evicts: bool = True) -> Lease[Any] | None:
        """A lease on one placement for whoever measures it: no request has come. Raises as `acquire` does.

        `None`: other models would have to leave for it, and it `evicts` none.
        """
        wanted = exactly(placement)
        key = load_key(model), self._places.effective(model, wanted)
        if not evicts and not self._fitting(*key):
            if self._is_closing:
                raise ShuttingDown
            load = self._loads.get(key) or self._begin(key, model)
            load.is_for_later = True
            try:
                await asyncio.shield(load.task)
            except NobodyWaits:
                return None
        loaded, load_s = await self._lease(model, wanted, _ANY_WORK)
        return Lease(loaded, loaded.ready, load_s, self._give_back)

    def idle_s(self) -> float:
        """Seconds since a model was last used; 0 while one is, or is loaded or unloaded."""
        if self._loads or self._leaving or any(loaded.num_leases for loaded in self._loaded):
            return 0.0
        return self._clock() - max((loaded.last_used for loaded in self._loaded), default=self._clock())

    def loaded(self) -> list[LoadedModel]:
        """Models in memory, the one that stays longest first."""
        now = self._clock()

        def remaining(loaded: LoadedModel) -> float:
            left = loaded.expires_in_s(now)
            return float("inf") if left is None else left

        return sorted(self._loaded, key=remaining, reverse=True)

    def now(self) -> float:
        """The pool's clock, to read `LoadedModel.expires_at` with."""
        return self._clock()

    async def unload(self, model: InstalledModel, wanted: Wanted = ANYWHERE) -> bool:
        """Unload from everywhere that is `wanted`: at once, or when the last lease is returned. False if it was not
        loaded."""
        found = self._fitting(load_key(model), wanted)
        for loaded in found:
            loaded.keep(KeepAlive(0.0))
        self._notify()
        idle = [self._close(loaded) for loaded in found if loaded.num_leases == 0]
        if idle:
            await asyncio.shield(asyncio.gather(*idle))
        return bool(found)

    async def expire(self) -> float | None:
        """Unload what has expired; seconds until the next one does, `None` when nothing will."""
        pause: float | None = None
        for loaded in list(self._loaded):
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
        for loaded in list(self._loaded):
            self._close(loaded)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _lease(self, model: InstalledModel, wanted: Wanted, work: Work) -> tuple[LoadedModel, float]:
        """The model in memory, with a lease that is the caller's, and the seconds it was waited for."""
        timeout_s = self._settings.load_timeout_s
        key = load_key(model), self._places.effective(model, wanted)
        try:
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None) as deadline:
                return await self._lend(key, model, work)
        except TimeoutError:
            if not deadline.expired():
                raise
            load = self._loads.get(key)
            why = load.why_not_yet if load else "it has to make room for a model that has waited for some time"
            raise LoadTimeout(f"waited {timeout_s:g} s for {model.name!r}: {why}") from None

    async def _lend(self, key: _LoadKey, model: InstalledModel, work: Work) -> tuple[LoadedModel, float]:
        started, load_s = self._clock(), 0.0
        while (loaded := self._choose(key, work)) and self._precedence.stands_aside(loaded):
            await self._precedence.stand_aside()
            load_s = self._clock() - started
        if self._is_closing:
            raise ShuttingDown
        if loaded is None:
            loaded = await self._wait_for(self._loads.get(key) or self._begin(key, model))
            load_s = self._clock() - started
        else:
            loaded.lend()
        if self._is_closing:
            self._give_back(loaded)
            raise ShuttingDown
        loaded.model = model
        loaded.last_used = self._clock()
        return loaded, load_s

    def _fitting(self, key: LoadKey, wanted: Wanted) -> list[LoadedModel]:
        """The placements of a model that are in memory; those whose device has failed leave it."""
        found = [each for each in self._loaded if load_key(each.model) == key and admits(wanted, each.placement)]
        for loaded in found:
            if loaded.ready.failure is not None:
                self._places.failed(loaded.model, loaded.placement, loaded.ready.failure)
                self._close(loaded)
        return [each for each in found if each.ready.failure is None]

    def _choose(self, key: _LoadKey, work: Work) -> LoadedModel | None:
        """Of the placements in memory, the one that the work goes to."""
        if not (fitting := self._fitting(*key)):
            return None
        if placement := self._places.join(fitting, self._loaded, key[1], work):
            self._load_for_later(fitting[0].model, placement)
        return self._places.choose(fitting, self._loaded, work)

    def _load_for_later(self, model: InstalledModel, placement: Placement) -> None:
        key = load_key(model), exactly(placement)
        if key not in self._loads and not self._is_closing:
            self._begin(key, model).is_for_later = True

    def _begin(self, key: _LoadKey, model: InstalledModel) -> _Load:
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

    async def _load_cold(self, key: _LoadKey, load: _Load) -> None:
        try:
            async with self._turn:
                fitting = self._fitting(*key)  # another wish may have brought it here
                loaded = fitting[0] if fitting else await self._load_somewhere(load, key[1])
                loaded.lend(load.num_waiting)
                load.loaded = loaded
        finally:
            del self._loads[key]
        self._notify()

    async def _load_somewhere(self, load: _Load, wanted: Wanted) -> LoadedModel:
        """The first placement that takes the model. Raises `ModelLoadFailed` with each one's reason."""
        model, failures = load.model, list[tuple[Placement, ModelLoadFailed]]()
        for placement in await self._places.placements(model, wanted):
            try:
                ready, load_s = await self._load_on(load, placement)
            except ModelLoadFailed as error:
                logger.warning("%s cannot run on %s: %s", model.name, placement, error)
                failures.append((placement, error))
                continue
            loaded = LoadedModel(model, ready, self._settings.keep_alive, self._clock(), load_s)
            self._loaded.append(loaded)
            logger.info("loaded %s on %s, %d MB", model.name, placement, ready.memory_bytes >> 20)
            return loaded
        if len(failures) == 1:
            raise failures[0][1]
        reasons = "; ".join(f"{placement}: {error.message}" for placement, error in failures)
        raise ModelLoadFailed(f"cannot load {model.name!r}: {reasons}", hint="vmm devices tells what is here")

    async def _load_on(self, load: _Load, placement: Placement) -> tuple[Ready, float]:
        """The model there, and the seconds that it took once there was room."""
        model, memory = load.model, self._places.memory(placement)
        size_bytes = self._places.size_bytes(model, placement)
        need = self._need(model, size_bytes, memory)
        with self._precedence.looking(need, lambda: self._tenants(memory)):
            num_bytes = await self._make_room(load, need, memory)
        load.why_not_yet = "it is still loading"
        logger.info("loading %s on %s", model.name, placement)
        started = self._clock()
        try:
            ready = await asyncio.to_thread(self._load, model, placement, num_bytes - size_bytes)
        except ModelLoadFailed as error:
            self._places.failed(model, placement, error.message)
            raise
        return ready, self._clock() - started

    async def _make_room(self, load: _Load, need: Need, memory: Memory) -> int:
        """The bytes the model may take, once there is room for it. Raises `ModelLoadFailed` if there will be none."""
        while True:
            self._room_changed.clear()
            if self._is_closing:
                raise ShuttingDown
            if not (load.num_waiting or load.is_for_later):
                raise NobodyWaits
            if not self._leaving:
                tenants, limits = self._tenants(memory)
                room = find_room(tenants, need, limits)
                if not load.num_waiting and (room is None or room.leaving):
                    raise NobodyWaits
                if room is None:
                    load.why_not_yet = no_room(tenants, need, limits)
                    if not may_find_room(tenants, need, limits):
                        raise load.does_not_fit()
                elif room.leaving:
                    self._close(room.leaving[0])
                else:
                    return room.num_bytes
            await self._room_changed.wait()

    def _tenants(self, memory: Memory) -> tuple[list[LoadedModel], Limits]:
        """Who shares a memory, and what they may take of it together; the others count towards `max_loaded_models`."""
        tenants = [each for each in self._loaded if self._places.memory(each.placement).name == memory.name]
        most = self._settings.max_loaded_models
        return tenants, Limits(memory.num_bytes, most and max(1, most - len(self._loaded) + len(tenants)))

    def _need(self, model: InstalledModel, size_bytes: int, memory: Memory) -> Need:
        if not model.generates:
            return Need(size_bytes, size_bytes)
        kv_bytes = int(self._settings.kv_cache_size or memory.num_bytes // _KV_SHARE)
        return Need(size_bytes + min(kv_bytes, _MIN_KV_BYTES), size_bytes + kv_bytes)

    def _give_back(self, loaded: LoadedModel) -> None:
        loaded.num_leases -= 1
        loaded.last_used = self._clock()
        self._notify()

    def _close(self, loaded: LoadedModel) -> asyncio.Task[None]:
        """Begin to unload; nobody gets it any more. Its memory counts as taken until that is done."""
        if (leaving := self._leaving.get(loaded)) is not None:
            return leaving
        self._loaded = [other for other in self._loaded if other is not loaded]
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
