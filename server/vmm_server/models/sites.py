"""Where a model could move in: a placement's memory, what the model needs there, and who has it now."""

from collections.abc import Collection
from dataclasses import dataclass

from vmm_server.models.leases import LoadedModel
from vmm_server.models.placing import MIN_KV_BYTES, Memory, Places
from vmm_server.models.room import Limits, Need, Site
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings

_KV_SHARE = 8
"""A model's KV blocks get at most this fraction (1/n) of a memory: several models and their weights must fit."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Tells of every placement what room there is."""

    settings: Settings
    places: Places

    def site(self, model: InstalledModel, placement: Placement, loaded: Collection[LoadedModel]) -> Site[LoadedModel]:
        """Who of those that are `loaded` is in the memory of a placement, and what a model needs there."""
        memory = self.places.memory(placement)
        here = [each for each in loaded if self._shares(each, memory)]
        limits = Limits(memory.num_bytes, self.settings.max_loaded_models)
        need = self._need(model, self.places.size_bytes(model, placement), memory)
        return Site(need, limits, here, [each for each in loaded if each not in here])

    def leaving(self, placement: Placement, leaving: Collection[LoadedModel]) -> list[LoadedModel]:
        """Who of those that are `leaving` still takes what a model would need at a placement."""
        if self.settings.max_loaded_models:
            return list(leaving)
        memory = self.places.memory(placement)
        return [each for each in leaving if self._shares(each, memory)]

    def _shares(self, loaded: LoadedModel, memory: Memory) -> bool:
        """One that lies in several memories counts in full in each: it was too large for one alone."""
        return not memory.names.isdisjoint(self.places.memory(loaded.placement).names)

    def _need(self, model: InstalledModel, size_bytes: int, memory: Memory) -> Need:
        if not model.generates:
            return Need(size_bytes, size_bytes)
        kv_bytes = int(self.settings.kv_cache_size or memory.num_bytes // _KV_SHARE)
        return Need(size_bytes + min(kv_bytes, MIN_KV_BYTES), size_bytes + kv_bytes)
