"""A load that is under way, and what there is to say of one that went wrong."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vmm_server.errors import InvalidRequest, ModelLoadFailed, ModelReplaced, ShuttingDown
from vmm_server.models.store import InstalledModel
from vmm_server.requests import KeepAlive

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class NobodyWaits(Exception):
    """A load has been given up."""


@dataclass(slots=True, eq=False)
class PendingLoad(Generic[Loaded]):
    """A load, from the first request for a cold model on."""

    model: InstalledModel
    keep_alive: KeepAlive
    """Of what is loaded."""
    task: asyncio.Task[None] = field(init=False)
    num_waiting: int = 0
    is_for_later: bool = False
    """It goes on although nobody waits for it, as long as nobody has to leave, or to wait, for it."""
    is_dropped: bool = False
    """The model has been unloaded meanwhile: unless somebody waits for it, it goes at once."""
    loaded: Loaded | None = None
    """Once it is there; it came with a lease for each of those who waited."""
    why_not_yet: str = "other models are loaded first"

    def log_end(self, task: asyncio.Task[None]) -> None:
        """Also of what nobody waits for any more."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, NobodyWaits | ShuttingDown):
            logger.info("gave up loading %s: nobody waits for it any more", self.model.name)
        elif isinstance(error, InvalidRequest | ModelReplaced):  # it was asked for where it cannot run, or is gone
            logger.info("did not load %s: %s", self.model.name, error)
        else:
            logger.error("loading %s failed: %s", self.model.name, error)


def does_not_fit(model: InstalledModel, why: str) -> ModelLoadFailed:
    """For a model that would find no room if all were idle."""
    return ModelLoadFailed(
        f"no room for {model.name!r}: {why}",
        hint="vmm stop unloads a pinned model; memory_budget and max_loaded_models are settings",
    )
