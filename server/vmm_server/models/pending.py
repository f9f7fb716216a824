"""A load that is under way, and what there is to say of one that went wrong."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vmm_server.errors import ModelLoadFailed, ShuttingDown
from vmm_server.models.store import InstalledModel

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class NobodyWaits(Exception):
    """A load has been given up."""


@dataclass(slots=True, eq=False)
class PendingLoad(Generic[Loaded]):
    """A load, from the first request for a cold model on."""

    model: InstalledModel
    task: asyncio.Task[None] = field(init=False)
    num_waiting: int = 0
    is_for_later: bool = False
    """It goes on although nobody waits for it, as long as no other model has to leave for it."""
    loaded: Loaded | None = None
    """Once it is there; it came with a lease for each of those who waited."""
    why_not_yet: str = "other models are loaded first"

    def does_not_fit(self) -> ModelLoadFailed:
        """For a model that would find no room if all were idle."""
        return ModelLoadFailed(
            f"no room for {self.model.name!r}: {self.why_not_yet}",
            hint="vmm stop unloads a pinned model; memory_budget and max_loaded_models are settings",
        )

    def log_end(self, task: asyncio.Task[None]) -> None:
        """Also of what nobody waits for any more."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, NobodyWaits | ShuttingDown):
            logger.info("gave up loading %s: nobody waits for it any more", self.model.name)
        else:
            logger.error("loading %s failed: %s", self.model.name, error)
