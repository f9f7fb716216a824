"""Which waiting items go into the next batch: fair between calls, with little padding. Pure.

Each call has a tag for each of its items: the work that is ahead of it, as if all calls took turns (start-time fair
queueing, Goyal, Vin and Cheng 1996). The item with the lowest tag goes first, so a call with one item does not wait for
one with thousands. The rest of its batch are the items whose size is nearest: what is stacked is padded to the largest.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be, in the unit that items are measured in (tokens, pixels, seconds)."""

    max_items: int = 64
    max_size: int = 4096
    """Padded size at most; a larger item goes alone."""
    max_padding: float = 0.25
    """Padding at most, as a part of the padded size."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[Key]):
    """One item that waits."""

    call: Key
    index: int
    """Its place in its call."""
    size: int
    """At least 1."""
    is_gone: bool = False
    """Taken or discarded; `BatchQueue` keeps it until its tag comes up."""


class BatchQueue(Generic[Key]):
    """Items of calls, until they are taken."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        # entries carry a number of their own, so that items are never compared
        self._by_size: list[tuple[int, int, Waiting[Key]]] = []
        self._by_tag: list[tuple[float, int, Waiting[Key]]] = []
        self._num_added = 0
        self._num_left: Counter[Key] = Counter()
        self._virtual_time = 0.0
        self.total_size = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return len(self._by_size)

    def add(self, call: Key, sizes: Iterable[int]) -> None:
        """Queue a call's items."""
        tag = self._virtual_time
        for index, size in enumerate(sizes):
            item = Waiting(call, index, size)
            self._by_size.append((size, self._num_added, item))
            heappush(self._by_tag, (tag, self._num_added, item))
            self._num_added += 1
            self._num_left[call] += 1
            self.total_size += size
            tag += size
        self._by_size.sort()

    def discard(self, call: Key) -> None:
        """Forget what still waits of a call."""
        if not self._num_left.pop(call, 0):
            return
        for entry in [entry for entry in self._by_size if entry[2].call == call]:
            entry[2].is_gone = True
            self.total_size -= entry[2].size
        self._by_size = [entry for entry in self._by_size if not entry[2].is_gone]

    def take(self) -> list[Waiting[Key]]:
        """Remove and return the next batch, smallest item first; empty when nothing waits."""
        while self._by_tag:
            tag, number, first = heappop(self._by_tag)
            if not first.is_gone:
                break
        else:
            return []
        # the work of one call among those that wait: it goes on although newcomers keep starting where it stands
        self._virtual_time = max(self._virtual_time, tag + first.size / len(self._num_left))
        place = bisect_left(self._by_size, (first.size, number))
        start, end = self._widened(place)
        batch = [item for _, _, item in self._by_size[start:end]]
        del self._by_size[start:end]
        for item in batch:
            item.is_gone = True
            self.total_size -= item.size
            self._num_left[item.call] -= 1
            if not self._num_left[item.call]:
                del self._num_left[item.call]
        return batch

    def _widened(self, place: int) -> tuple[int, int]:
        """The slice of `by_size` around `place`: its neighbours of the nearest size, as far as the limits go."""
        limits, sizes = self._limits, self._by_size
        first = total = sizes[place][0]
        start, end = place, place + 1
        while end - start < limits.max_items:
            below = first - sizes[start - 1][0] if start else None
            above = sizes[end][0] - first if end < len(sizes) else None
            if below is None and above is None:
                break
            upwards = below is None or (above is not None and above <= below)
            added = sizes[end if upwards else start - 1][0]
            padded = (end - start + 1) * max(sizes[end - 1][0], added)
            total += added
            if padded > limits.max_size or padded - total > limits.max_padding * padded:
                break
            start, end = (start, end + 1) if upwards else (start - 1, end)
        return start, end
