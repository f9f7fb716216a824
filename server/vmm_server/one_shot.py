"""What every model that answers whole, or reads something long in pieces, is run through: lease, work, drain.

A model whose device fails has said nothing yet, so its work is done again on the next placement.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from vmm_server.errors import ModelReplaced, PlacementFailed, ShuttingDown, UnsupportedCapability
from vmm_server.models.in_use import again_if_replaced
from vmm_server.models.leases import MAX_MOVES, Lease
from vmm_server.models.pool import ModelPool
from vmm_server.models.registry import Registry
from vmm_server.models.router import ONE_ANSWER, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.observed import Observe, Operation, Watch, nobody_observes
from vmm_server.requests import KeepAlive, Wanted

Held = TypeVar("Held")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, of which none is counted twice; there are more between them."""

    decode_s: float
    """Until the first pictures were the model's numbers; the others become it while those are computed."""
    queue_s: float
    """Until the model took up the first of them."""
    model_s: float
    """That the runtime computed for the request, for what shared its batches too."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Who answered, and what it took."""

    model: InstalledModel
    placement: Placement
    load_s: float
    queued_s: float | None
    """How long its input waited for that of other requests; `None`: not known yet."""
    timing: Timing | None = field(default=None, kw_only=True)
    """Where pictures were looked at."""

    @property
    def num_input_tokens(self) -> int | None:
        """Of what was given; `None` where that is no text."""
        return None


class OneShot:
    """Lends models to whoever runs them, and knows when nobody does any more."""

    def __init__(
        self,
        registry: Registry,
        pool: ModelPool,
        *,
        observe: Observe = nobody_observes,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`observe` is told of each request that is over."""
        self._registry = registry
        self._pool = pool
        self._observe = observe
        self._clock = clock
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def resolve(self, name: str, *capabilities: str) -> InstalledModel:
        """An installed model that can do one of these, for one request.

        Raises `ShuttingDown`, `InvalidModelName`, `ModelNotFound`, `UnsupportedCapability` naming the first.
        """
        return self._checked(name, self._registry.choose, *capabilities)

    def look_up(self, name: str, *capabilities: str) -> InstalledModel:
        """The same, where nothing is run: of a release, the model that most requests get."""
        return self._checked(name, self._registry.resolve, *capabilities)

    def _checked(self, name: str, find: Callable[[str], InstalledModel], *capabilities: str) -> InstalledModel:
        if self.draining:
            raise ShuttingDown
        model = find(name)
        if not {*capabilities} & {*model.capabilities}:
            raise UnsupportedCapability(name, capabilities[0])
        return model

    def is_loaded(self, model: InstalledModel, wanted: Wanted) -> bool:
        """Whether a request would find a model in memory."""
        return self._pool.is_loaded(model, wanted)

    async def run(
        self,
        model: InstalledModel,
        kind: type[Held],
        work: Callable[[Lease[Held]], Awaitable[Told]],
        *,
        operation: Operation,
        keep_alive: KeepAlive | None,
        wanted: Wanted,
    ) -> Told:
        """What `work` gives on a lease; on another placement's when the device of the first one fails.

        Raises as `ModelPool.acquire` and `work` do.
        """
        with self.watch(operation, model) as watch:
            for num_moves in count():
                async with self.lease(model, kind, keep_alive=keep_alive, wanted=wanted, watch=watch) as lease:
                    try:
                        told = await work(lease)
                    except PlacementFailed:
                        if num_moves == MAX_MOVES:
                            raise
                        continue
                if isinstance(told, Answered):
                    watch.queued_s, watch.num_input_tokens = told.queued_s, told.num_input_tokens
                return told
        raise AssertionError("unreachable")

    def watch(self, operation: Operation, model: InstalledModel) -> Watch:
        """A request that begins, for whoever runs it by `lease`: it is observed when the context ends."""
        return Watch(operation, self._observe, self._clock, model)

    @asynccontextmanager
    async def lease(
        self,
        model: InstalledModel,
        kind: type[Held],
        *,
        keep_alive: KeepAlive | None,
        wanted: Wanted,
        watch: Watch | None = None,
    ) -> AsyncIterator[Lease[Held]]:
        """A model in memory, for as long as the context lasts; `watch` is of the request that it is for.

        If the name gets another one meanwhile, it is that one (`Lease.model`). Raises as `ModelPool.acquire` does.
        """

        async def acquire(model: InstalledModel) -> Lease[Held]:
            return await self._pool.acquire(model, keep_alive, kind, wanted=wanted, work=ONE_ANSWER)

        try:
            lease = await acquire(model)
        except ModelReplaced:
            lease = await again_if_replaced(lambda: acquire(self._registry.resolve(model.name)))
        if watch is not None:
            watch.model = lease.model
            watch.leased(lease.loaded.placement, lease.load_s)
        self._num_running += 1
        self._idle.clear()
        try:
            yield lease
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()
            lease.release()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new work and wait for what runs; True when all of it finished in time."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()
