"""Loaded models: who holds them, how long they stay, and what leaves when room is needed.

A request takes a `Lease`; a model with a lease is never unloaded. When the last lease is returned its keep-alive clock
starts; the pool's one background task unloads what has expired. Requests for a cold model share one load. Loads take
turns, in the order of asking: the one whose turn it is makes room under the memory budget and `max_loaded_models` by
unloading idle models (`room.find_room`), waits while the models in its way are in use, and then loads. One that has
waited long has `Precedence` over new requests for those models. Whoever waits for a load has its lease at the moment
it ends, so that the next load cannot take the model away again.

A model may be in memory on several placements at once. `Places` says which one a request gets, and in which order a
load tries them: the first one in whose memory there is room, or can be made, takes it. A placement that fails is passed
over, and one that fails in the middle of its work is unloaded; its requests go elsewhere. Another placement of a model
that is there already is loaded for later requests: nobody waits for it, and nobody leaves or waits in line for it.

All state is touched on the event loop only; loading and closing, which block, run in threads, in tasks of the pool's
own: a client that leaves cancels neither. A load that nobody waits for any more is given up while it waits for room;
once it has begun, it goes on, and the model stays for its keep-alive.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from vmm_server.errors import LoadTimeout, ModelLoadFailed, Overloaded, ShuttingDown
from vmm_server.models.arrivals import Arrivals
from vmm_server.models.leases import Lease, LoadedModel
from vmm_server.models.loading import LoadKey, ModelLoader, ReadyModel, load_key
from vmm_server.models.pending import NobodyWaits, PendingLoad
from vmm_server.models.placing import Places
from vmm_server.models.precedence import Precedence, max_waiting
from vmm_server.models.residents import IsInstalled, Left, Residents, nobody_asks
from vmm_server.models.room import Site, find_room
from vmm_server.models.router import Placement, Work, admits, exactly, matches
from vmm_server.models.sites import Sites
from vmm_server.models.store import InstalledModel, how_to_mend
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import SettingsSource

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often it is looked whether models that nobody uses are still installed."""

Held = TypeVar("Held")
_ANY_WORK = Work()

_Load = PendingLoad[LoadedModel]
_LoadKey = tuple[LoadKey, Wanted]


class ModelPool:
    """Makes, lends and unloads models of every kind. The only maker of engines and batchers."""

    def __init__(
        self,
        settings: SettingsSource,
        load: ModelLoader,
        places: Places,
        *,
        clock: Callable[[], float] = time.monotonic,
        left: Left = nobody_asks,
        is_installed: IsInstalled = lambda _: True,
    ) -> None:
        """`left` is told of each model that is out of memory, `is_installed` tells which have to leave it."""
        self._settings = settings
        self._load = load
        self._places = places
        self._sites = Sites(settings, places)
        self._clock = clock
        self._residents = Residents(places, clock, left, is_installed)
        self._loads: dict[_LoadKey, _Load] = {}
        self._turn = asyncio.Lock()
        self.arrivals = Arrivals()
        """Requests for a model, of any kind."""
        self._is_closing = False
        self._precedence = Precedence(settings, clock)

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
        placement that is not here, `LoadTimeout`, `ModelReplaced`, `Overloaded` and `ShuttingDown`.
        """
        self.arrivals.add()
        loaded, load_s = await self._lease(model, wanted, work)
        if not loaded.is_kind(kind):
            self._residents.give_back(loaded)
            raise ModelLoadFailed(f"{model.name!r} is not what its manifest says", hint=how_to_mend(model))
        loaded.keep(keep_alive)
        return Lease(loaded, model, loaded.ready, load_s, work, self._residents.give_back)

    async def load(self, model: InstalledModel, keep_alive: KeepAlive | None, wanted: Wanted = ANYWHERE) -> float:
        """Load a model of any kind and start its keep-alive clock; the seconds waited. Raises as `acquire` does."""
        self.arrivals.add()
        loaded, load_s = await self._lease(model, wanted, _ANY_WORK)
        loaded.keep(keep_alive)
        self._residents.give_back(loaded)
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
        lease = Lease(loaded, model, loaded.ready, load_s, _ANY_WORK, self._residents.give_back)
        lease.begun()
        return lease

    def idle_s(self) -> float:
        """Seconds since a model was last used; 0 while one is, or is loaded or unloaded."""
        if self._loads or self._residents.leaving or any(loaded.num_leases for loaded in self._residents.loaded):
            return 0.0
        return self._clock() - max((loaded.last_used for loaded in self._residents.loaded), default=self._clock())

    def loaded(self) -> list[LoadedModel]:
        """Models in memory, the one that stays longest first."""
        return self._residents.by_time_left()

    def is_loaded(self, model: InstalledModel, wanted: Wanted) -> bool:
        """Whether a request would find a model in memory."""
        return bool(self._serving(load_key(model), self._places.effective(model, wanted)))

    def leaving(self) -> list[LoadedModel]:
        """Models that nobody gets any more, and whose memory is still taken."""
        return list(self._residents.leaving)

    def now(self) -> float:
        """The pool's clock, to read `LoadedModel.expires_at` with."""
        return self._clock()

    async def unload(self, model: InstalledModel, wanted: Wanted = ANYWHERE) -> bool:
        """Unload from everywhere that is `wanted`: at once, or when the last lease is returned. False if it was not
        loaded."""
        key = load_key(model)
        for (other, _), load in self._loads.items():
            if other == key and load.is_for_later:
                load.is_dropped = True
        found = [
            each for each in self._residents.loaded if load_key(each.model) == key and matches(wanted, each.placement)
        ]
        for loaded in found:
            loaded.keep(KeepAlive(0.0))
            loaded.is_unwanted = True
        self._residents.notify()
        idle = [self._residents.close(loaded, "asked") for loaded in found if loaded.num_leases == 0]
        if idle:
            await asyncio.shield(asyncio.gather(*idle))
        return bool(found)

    def find_replaced(self) -> None:
        """Have models that are not installed any more leave as soon as nobody uses them."""
        self._residents.find_replaced()
        self._residents.notify()

    async def settle(self) -> None:
        """The same, and wait for those that nobody uses now."""
        self.find_replaced()
        idle = [each for each in self._residents.loaded if each.is_replaced and not each.num_leases]
        if idle:
            await asyncio.wait([self._residents.close(each, "replaced") for each in idle])

    async def expire(self) -> float | None:
        """Unload what has expired or failed; seconds until the next one does, `None` when nothing will."""
        pause = self._residents.expire()
        await self._residents.gone()
        return pause

    async def run(self, look_every_s: float = LOOK_EVERY_S) -> None:
        """Unload idle models as they expire, or are no longer installed, until cancelled. The app's lifespan owns this
        task."""
        while True:
            self._residents.changed.clear()
            pause = self._residents.expire()
            if self._residents.loaded:  # other processes tell nobody what they do to the store
                pause = look_every_s if pause is None else min(pause, look_every_s)
            try:
                async with asyncio.timeout(pause):  # `wait_for` may swallow that it is cancelled
                    await self._residents.changed.wait()
            except TimeoutError:
                self._residents.find_replaced()

    async def aclose(self) -> None:
        """Unload everything; generations still running are aborted. Later `acquire`s raise `ShuttingDown`."""
        self._is_closing = True
        self._residents.notify()
        if self._loads:
            await asyncio.wait([load.task for load in self._loads.values()])
        for loaded in list(self._residents.loaded):
            self._residents.close(loaded, "shutdown")
        await self._residents.gone()

    async def _lease(self, model: InstalledModel, wanted: Wanted, work: Work) -> tuple[LoadedModel, float]:
        """The model in memory, with a lease that is the caller's, and the seconds it was waited for."""
        timeout_s = self._settings.now.load_timeout_s
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
            self._residents.give_back(loaded)
            raise ShuttingDown
        loaded.model = model
        loaded.last_used = self._clock()
        return loaded, load_s

    def _fitting(self, key: LoadKey, wanted: Wanted) -> list[LoadedModel]:
        """The placements of a model that are in memory."""
        self._residents.drop_failed()
        return [
            each for each in self._residents.loaded if load_key(each.model) == key and admits(wanted, each.placement)
        ]

    def _serving(self, key: LoadKey, wanted: Wanted) -> list[LoadedModel]:
        """Of these, where a request can go."""
        return [each for each in self._fitting(key, wanted) if self._places.serves(each, wanted)]

    def _choose(self, key: _LoadKey, work: Work) -> LoadedModel | None:
        """Of the placements in memory, the one that the work goes to; one that has to make room only if all have."""
        if not (fitting := self._serving(*key)):
            return None
        if placement := self._places.join(fitting, self._residents.loaded, key[1], work):
            self._load_for_later(fitting[0], placement)
        lasting = [each for each in fitting if not self._precedence.stands_aside(each)]
        return self._places.choose(lasting or fitting, self._residents.loaded, work)

    def _load_for_later(self, like: LoadedModel, placement: Placement) -> None:
        """Load it there as well, if there is room at once."""
        key = load_key(like.model), exactly(placement)
        if key in self._loads or self._is_closing or self._residents.leaving or like.keep_alive.seconds == 0:
            return
        room = find_room(self._sites.site(like.model, placement, self._residents.loaded))
        if room is not None and not room.leaving:
            load = self._begin(key, like.model)
            load.is_for_later, load.keep_alive = True, like.keep_alive

    def _begin(self, key: _LoadKey, model: InstalledModel) -> _Load:
        self._residents.find_replaced()
        load = self._loads[key] = PendingLoad(model, self._settings.now.keep_alive)
        load.task = asyncio.create_task(self._load_cold(key, load), name=f"load {model.name}")
        load.task.add_done_callback(load.log_end)
        return load

    async def _wait_for(self, load: _Load) -> LoadedModel:
        """What is loaded, with a lease."""
        if load.num_waiting >= max_waiting(self._settings.now):
            raise Overloaded
        load.num_waiting += 1
        try:
            # shielded: one client that gives up must not stop the load that others wait for
            await asyncio.shield(load.task)
        except BaseException:
            load.num_waiting -= 1
            if load.loaded is not None:  # it came at the last moment
                self._residents.give_back(load.loaded)
            self._residents.notify()
            raise
        assert load.loaded is not None
        return load.loaded

    async def _load_cold(self, key: _LoadKey, load: _Load) -> None:
        try:
            await self._places.placements(load.model, key[1])  # what cannot be is refused now, whoever's turn it is
            async with self._turn:
                fitting = self._serving(*key)  # another wish may have brought it here
                loaded = fitting[0] if fitting else await self._load_somewhere(load, key[1])
                loaded.lend(load.num_waiting)
                load.loaded = loaded
        finally:
            del self._loads[key]
        self._residents.notify()

    async def _load_somewhere(self, load: _Load, wanted: Wanted) -> LoadedModel:
        """The first placement that takes the model. Raises `ModelLoadFailed` with each one's reason."""
        model, failures = load.model, dict[Placement, ModelLoadFailed]()
        placements = await self._places.placements(model, wanted)
        while left := [each for each in placements if each not in failures]:
            if there := self._fitting(load_key(model), exactly(left[0])):
                return there[0]
            rested = [each for each in left if self._places.failure(model, each) is None]
            if (found := await self._make_room(load, rested or left, failures)) is None:
                continue
            placement, num_bytes = found
            try:
                return await self._load_on(load, placement, num_bytes)
            except ModelLoadFailed as error:
                logger.warning("%s cannot run on %s: %s", model.name, placement, error)
                self._places.failed(model, placement, error.message)
                failures[placement] = error
        if len(failures) == 1:
            raise next(iter(failures.values()))
        reasons = "; ".join(f"{placement}: {error.message}" for placement, error in failures.items())
        raise ModelLoadFailed(f"cannot load {model.name!r}: {reasons}", hint="vmm devices tells what is here")

    async def _load_on(self, load: _Load, placement: Placement, num_bytes: int) -> LoadedModel:
        load.why_not_yet = "it is still loading"
        logger.info("loading %s on %s", load.model.name, placement)
        started = self._clock()
        kv_cache_bytes = num_bytes - self._places.size_bytes(load.model, placement)
        ready = await asyncio.to_thread(self._load, load.model, placement, kv_cache_bytes)
        now = self._clock()
        keep_alive = KeepAlive(0.0) if load.is_dropped and not load.num_waiting else load.keep_alive
        loaded = LoadedModel(load.model, ready, keep_alive, now, now - started)
        self._residents.loaded.append(loaded)
        logger.info("loaded %s on %s, %d MB", load.model.name, placement, ready.memory_bytes >> 20)
        return loaded

    async def _make_room(
        self, load: _Load, placements: Sequence[Placement], failures: dict[Placement, ModelLoadFailed]
    ) -> tuple[Placement, int] | None:
        """The first placement that has room, once there is some, and the bytes that the model may take there.

        `None`: there will be none at any of them; why is in `failures`.
        """

        def first_site() -> Site[LoadedModel] | None:
            return self._sites.first(load.model, placements, self._residents.loaded) if load.num_waiting else None

        with self._precedence.looking(first_site):
            while left := [each for each in placements if each not in failures]:
                self._residents.room_changed.clear()
                self._residents.drop_failed()
                self._check_waited_for(load)
                look = self._sites.look(load.model, left, self._residents.loaded, self._residents.leaving)
                if look.found is not None:
                    return look.found
                if not load.num_waiting:
                    raise NobodyWaits
                load.why_not_yet = look.why_not_yet or load.why_not_yet
                failures |= look.failures
                if look.leaver is not None:
                    self._residents.close(look.leaver, "room")
                elif look.failures:
                    continue
                await self._residents.room_changed.wait()
        return None

    def _check_waited_for(self, load: _Load) -> None:
        if self._is_closing:
            raise ShuttingDown
        others = (other for other in self._loads.values() if other is not load)
        if not load.num_waiting and (not load.is_for_later or any(other.num_waiting for other in others)):
            raise NobodyWaits
