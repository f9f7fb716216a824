"""Where a model could move in: a placement's memory, what the model needs there, and who has it now."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from vmm_server.errors import ModelLoadFailed
from vmm_server.models.leases import LoadedModel
from vmm_server.models.loading import load_key
from vmm_server.models.pending import does_not_fit
from vmm_server.models.placing import MIN_KV_BYTES, Memory, Places
from vmm_server.models.room import Limits, Need, Site, find_room, may_find_room, no_room
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import SettingsSource

_KV_SHARE = 8
"""A model's KV blocks get at most this fraction (1/n) of a memory: several models and their weights must fit."""


@dataclass(slots=True)
class Look:
    """What a look for room came to."""

    found: tuple[Placement, int] | None = None
    """Where there is room, and the bytes that the model may take there."""
    leaver: LoadedModel | None = None
    """Who has to leave before."""
    failures: dict[Placement, ModelLoadFailed] = field(default_factory=dict)
    """Where there will be none, and why."""
    why_not_yet: str | None = None


@dataclass(frozen=True, slots=True)
class Sites:
    """Tells of every placement what room there is."""

    settings: SettingsSource
    places: Places

    def site(self, model: InstalledModel, placement: Placement, loaded: Collection[LoadedModel]) -> Site[LoadedModel]:
        """Who of those that are `loaded` is in the memory of a placement, and what a model needs there."""
        memory = self.places.memory(placement)
        here = [each for each in loaded if self._shares(each, memory)]
        limits = Limits(memory.num_bytes, self.settings.now.max_loaded_models)
        need = self._need(model, self.places.size_bytes(model, placement), memory)
        return Site(need, limits, here, [each for each in loaded if each not in here])

    def leaving(self, placement: Placement, leaving: Collection[LoadedModel]) -> list[LoadedModel]:
        """Who of those that are `leaving` still takes what a model would need at a placement."""
        if self.settings.now.max_loaded_models:
            return list(leaving)
        memory = self.places.memory(placement)
        return [each for each in leaving if self._shares(each, memory)]

    def look(
        self,
        model: InstalledModel,
        placements: Sequence[Placement],
        loaded: Collection[LoadedModel],
        leaving: Collection[LoadedModel],
    ) -> "Look":
        """The first of the placements that has room, or will have once somebody has left."""
        look = Look()
        for placement in placements:
            going = self.leaving(placement, leaving)
            stuck = [replace(each, is_pinned=True) for each in going if each.ready.failure is not None]
            if len(stuck) < len(going):
                return look
            if any(_is_same(each, model, placement) for each in stuck):
                continue
            site = self.site(model, placement, [*loaded, *stuck])
            room = find_room(site)
            if room is not None:
                look.leaver = room.leaving[0] if room.leaving else None
                look.found = None if room.leaving else (placement, room.num_bytes)
                return look
            if stuck:
                continue  # what a dead device holds may take long to go
            if not may_find_room(site):
                look.failures[placement] = does_not_fit(model, no_room(site))
            elif placement == placements[0]:
                look.why_not_yet = no_room(site)
        return look

    def first(
        self, model: InstalledModel, placements: Sequence[Placement], loaded: Collection[LoadedModel]
    ) -> Site[LoadedModel] | None:
        """The best one that there will be room at."""
        return next(filter(may_find_room, (self.site(model, each, loaded) for each in placements)), None)

    def _shares(self, loaded: LoadedModel, memory: Memory) -> bool:
        """One that lies in several memories counts in full in each: it was too large for one alone."""
        return not memory.names.isdisjoint(self.places.memory(loaded.placement).names)

    def _need(self, model: InstalledModel, size_bytes: int, memory: Memory) -> Need:
        if not model.generates:
            return Need(size_bytes, size_bytes)
        kv_bytes = int(self.settings.now.kv_cache_size or memory.num_bytes // _KV_SHARE)
        return Need(size_bytes + min(kv_bytes, MIN_KV_BYTES), size_bytes + kv_bytes)


def _is_same(loaded: LoadedModel, model: InstalledModel, placement: Placement) -> bool:
    return loaded.placement == placement and load_key(loaded.model) == load_key(model)
