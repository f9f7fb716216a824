"""Who goes first, a load that waits for room or new requests for the models in its way.

New requests do, or models in memory would stand idle for a load that may take its place a moment later; but not for
ever, or a model with unbroken traffic would keep all others out. So a load's patience ends: then requests for the
models that have to leave for it stand aside, and those models run empty. No answer under way is cut for it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vmm_server.errors import Overloaded
from vmm_server.models.room import Site, Tenant, in_the_way
from vmm_server.settings import Settings, SettingsSource

_PATIENCE_S = 5.0
_PATIENCE_SHARE = 4
"""Patience is at most this fraction (1/n) of the time that a request waits for its model at all."""


@dataclass(slots=True)
class _Looking:
    """A load that looks for room."""

    look: Callable[[], Site[Any] | None]
    """Where it would move in, and who is there; `None`: nowhere, or nobody waits for it."""
    patient_until: float
    in_its_way: Collection[Tenant] | None = None
    """Chosen when patience ends, and not again: it is these that run empty, while others go on."""
    found: asyncio.Event = field(default_factory=asyncio.Event)


def max_waiting(settings: Settings) -> int:
    """Requests that may wait for one load."""
    return settings.max_sequences + settings.max_queue


class Precedence:
    """Knows the one load that looks for room, and who stands aside for it. Belongs to one event loop."""

    def __init__(self, settings: SettingsSource, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._num_waiting = 0
        self._clock = clock
        self._looking: _Looking | None = None

    @contextmanager
    def looking(self, look: Callable[[], Site[Any] | None]) -> Iterator[None]:
        """While a load looks for room: one at a time. `look` says where."""
        timeout_s = self._settings.now.load_timeout_s
        patience_s = min(_PATIENCE_S, timeout_s / _PATIENCE_SHARE) if timeout_s > 0 else _PATIENCE_S
        looking = self._looking = _Looking(look, self._clock() + patience_s)
        try:
            yield
        finally:
            self._looking = None
            looking.found.set()

    def stands_aside(self, tenant: Tenant) -> bool:
        """Whether new requests for this one have to wait: see `stand_aside`."""
        looking = self._looking
        if looking is None or self._clock() < looking.patient_until:
            return False
        if looking.in_its_way is None:
            if (site := looking.look()) is None:
                return False
            looking.in_its_way = in_the_way(site)
        return any(tenant is other for other in looking.in_its_way)

    async def stand_aside(self) -> None:
        """Wait until the load has found room, or is given up. Raises `Overloaded` when too many do."""
        if self._looking is None:
            return
        if self._num_waiting >= max_waiting(self._settings.now):
            raise Overloaded
        self._num_waiting += 1
        try:
            await self._looking.found.wait()
        finally:
            self._num_waiting -= 1
