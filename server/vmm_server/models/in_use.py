"""Which of the models in memory are still installed, and whose files have to stay for that long.

A name may get another model, or none, while requests run on the one it had. New requests go to the new one at once; the
old one leaves memory when its last lease ends, and its files go when it has left. A request that found the old one, and
comes to load it when the name has another, finds its model anew.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from vmm_server.errors import ModelReplaced, StoreError
from vmm_server.models.leases import LoadedModel
from vmm_server.models.loading import ModelLoader, load_key
from vmm_server.models.names import ModelName
from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

MAX_REPLACED = 8
"""How often a request finds its model anew."""


async def again_if_replaced(attempt: Callable[[], Awaitable[Found]]) -> Found:
    """What `attempt` gives, which finds a model by its name and takes it. Raises `ModelReplaced` when that has been in
    vain too often, and what `attempt` raises."""
    for _ in range(MAX_REPLACED):
        with suppress(ModelReplaced):
            return await attempt()
    return await attempt()


class FilesInUse:
    """Keeps the files of what is loaded. `load` and `is_installed` may be called in any thread."""

    def __init__(self, store: Store, load: ModelLoader) -> None:
        self._store = store
        self._load = load
        self._kept: dict[int, Callable[[], None]] = {}
        """What frees the files, by the identity of what was made of them."""

    def load(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Ready:
        """A `ModelLoader`: checks the files first, for a folder used in place may have changed since it was
        installed, and keeps them until `left`. Raises `ModelReplaced`."""
        free = self._store.keep_files(model, placement.variant)
        try:
            today = self._store.manifest(ModelName.parse(model.name))
            if today is None or load_key(today.model) != load_key(model):
                raise ModelReplaced(model.name)
            self._store.check_files(model, placement.variant)
            ready = self._load(model, placement, kv_cache_bytes)
        except BaseException:
            free()
            raise
        self._kept[id(ready)] = free
        return ready

    def left(self, loaded: LoadedModel) -> None:
        """It is out of memory: its files may go, and do if no name needs them."""
        free = self._kept.pop(id(loaded.ready))
        asyncio.get_running_loop().run_in_executor(None, self._free, free, loaded.model)

    def is_installed(self, model: InstalledModel) -> bool:
        """Whether what is loaded for this model is what a name of today needs. Usually its own: one file to look at."""
        key = load_key(model)
        try:
            manifest = self._store.manifest(ModelName.parse(model.name))
            if manifest and load_key(manifest.model) == key:
                return True
            return any(load_key(other) == key for other in self._store.installed())
        except OSError as error:
            logger.warning("cannot see whether %s is still installed: %s", model.name, error)
            return True

    def _free(self, free: Callable[[], None], model: InstalledModel) -> None:
        free()
        if self.is_installed(model):
            return
        try:
            self._store.collect()
        except StoreError as error:
            logger.warning("%s; will be tried again", error.message)
