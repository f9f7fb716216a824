"""Models that come and go, told as it happens to whoever listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from vmm_server.metrics.figures import Labels

Happened = Literal["loaded", "load_failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """What became of a model on a placement."""

    type: Happened
    place: Labels
    """See `families.PLACE`."""
    reason: str | None = None
    """Why it left (`residents.Why`), or the class of the error that the load ended with."""
    seconds: float | None = None
    """What the load took."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


Tell = Callable[[ModelEvent], None]


def nobody_listens(event: ModelEvent) -> None:
    """Does nothing."""


class ModelEvents:
    """Passes on what it is told, from any thread and in that thread."""

    def __init__(self) -> None:
        self._listening: set[Tell] = set()

    def tell(self, event: ModelEvent) -> None:
        """See `Tell`."""
        for hear in tuple(self._listening):
            hear(event)

    @contextmanager
    def heard(self, hear: Tell) -> Iterator[None]:
        """Let `hear` be told, meanwhile."""
        self._listening.add(hear)
        try:
            yield
        finally:
            self._listening.discard(hear)
