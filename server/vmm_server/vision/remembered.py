"""Vectors that were made before: of labels, which are the same from picture to picture."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from vmm_server.vision.scores import Rows

Key = TypeVar("Key", bound=Hashable)


class Remembered(Generic[Key]):
    """The vectors that were used last. For one event loop."""

    def __init__(self, max_vectors: int) -> None:
        self._max_vectors = max_vectors
        self._vectors: OrderedDict[Key, Rows] = OrderedDict()

    def find(self, keys: Iterable[Key]) -> dict[Key, Rows]:
        """Those that are known, each `[dim]`."""
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        for key in found:
            self._vectors.move_to_end(key)
        return found

    def keep(self, vectors: dict[Key, Rows]) -> None:
        """Remember these, and forget those that were not used for the longest time."""
        self._vectors |= vectors
        while len(self._vectors) > self._max_vectors:
            self._vectors.popitem(last=False)
