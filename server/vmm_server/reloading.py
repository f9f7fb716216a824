"""Settings, cards and keys read again in a running server: all of them, or none.

Everything is read and checked before anything is taken over, so a broken file leaves all as it was. Requests under way
have what they began with.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vmm_server.errors import ModelNotFound, SettingsError
from vmm_server.keys import KeyRing
from vmm_server.models.registry import Registry, read_cards
from vmm_server.settings import Changes, LiveSettings

logger = logging.getLogger(__name__)

Apply = Callable[[Changes], None]
"""Told of settings that have changed, for what does not read them by itself."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload came to."""

    changes: Changes
    num_cards: int
    num_keys: int

    def __str__(self) -> str:
        parts = [f"{self.num_cards} cards, {self.num_keys} keys"]
        for words, names in (
            ("changed", self.changes.at_once),
            ("for models loaded from now on", self.changes.at_next_load),
            ("needs a restart", self.changes.at_restart),
        ):
            if names:
                parts.append(f"{words}: {', '.join(names)}")
        return "; ".join(parts)


class Reloader:
    """Reads again what people change by hand. Belongs to one event loop."""

    def __init__(self, settings: LiveSettings, registry: Registry, keys: KeyRing) -> None:
        self._settings = settings
        self._registry = registry
        self._keys = keys
        self._apply: list[Apply] = []
        self._one_at_a_time = asyncio.Lock()

    def on_change(self, apply: Apply) -> None:
        """Have this called after each reload. It must not fail."""
        self._apply.append(apply)

    async def reload(self) -> Reloaded:
        """Read everything again. Raises `SettingsError` naming file and field; then nothing has changed."""
        async with self._one_at_a_time:
            fresh = await asyncio.to_thread(self._settings.read)
            cards = await asyncio.to_thread(read_cards, fresh.card_dirs)
            if fresh.default_model not in ("", self._settings.now.default_model):
                await asyncio.to_thread(self._check_default, fresh.default_model)
            await asyncio.to_thread(self._keys.reload)  # the last that can fail: it keeps what it had
            self._registry.use_cards(cards)
            changes = self._settings.use(fresh)
            for apply in self._apply:
                apply(changes)
            reloaded = Reloaded(changes, len(cards), len(self._keys.keys))
        logger.info("read settings, cards and keys again: %s", reloaded)
        return reloaded

    def _check_default(self, name: str) -> None:
        try:
            self._registry.resolve(name)
        except ModelNotFound as error:
            message = f"setting default_model: {error.message}"
            raise SettingsError(message, param="default_model", hint=error.hint) from error
