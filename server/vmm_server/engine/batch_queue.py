"""Which waiting items go into the next batch: fair between tenants and calls, with little padding. Pure.

The best priority goes first, of that the tenant that got least (`fairness`), and of its calls each in turn: a call has
a tag for each of its items, the work that is ahead of it as if all of the tenant's calls took turns (start-time fair
queueing, Goyal, Vin and Cheng 1996). The item with the lowest tag goes first, so a call with one item does not wait for
one with thousands. The rest of its batch are the items of its priority whose size is nearest, whoever they belong to:
what is stacked is padded to the largest. All pay for what was computed for them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Generic, TypeVar

from vmm_server.callers import Caller
from vmm_server.engine.fairness import Account, Accounts
from vmm_server.engine.forecast import Claim

Key = TypeVar("Key", bound=Hashable)
_ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be, in the unit that items are measured in (tokens, pixels, seconds)."""

    max_items: int = 64
    max_size: int = 4096
    """Padded size at most; a larger item goes alone."""
    max_padding: float = 0.25
    """Padding at most, as a part of the padded size."""


@dataclass(slots=True, eq=False)
class _Line(Generic[Key]):
    """What waits of one tenant and priority."""

    weight: float
    by_tag: list[tuple[float, int, "Waiting[Key]"]] = field(default_factory=list)
    num_left: Counter[Key] = field(default_factory=Counter)
    virtual_time: float = 0.0
    size: int = 0

    def pop(self) -> "Waiting[Key]":
        """The item whose turn it is; there is one."""
        while True:
            tag, _, first = heappop(self.by_tag)
            if not first.is_gone:
                break
        # the work of one call among those that wait: it goes on although newcomers keep starting where it stands
        self.virtual_time = max(self.virtual_time, tag + first.size / len(self.num_left))
        return first


@dataclass(slots=True, eq=False)
class Waiting(Generic[Key]):
    """One item that waits."""

    call: Key
    index: int
    """Its place in its call."""
    size: int
    """At least 1."""
    number: int
    """Of its arrival."""
    account: Account
    is_gone: bool = False
    """Taken or discarded; its line keeps it until its tag comes up."""


class BatchQueue(Generic[Key]):
    """Items of calls, until they are taken."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._accounts = Accounts()
        self._lines: dict[Account, _Line[Key]] = {}
        # by priority; entries carry a number of their own, so that items are never compared
        self._by_size: dict[int, list[tuple[int, int, Waiting[Key]]]] = {}
        self._account_of: dict[Key, Account] = {}
        self._num_added = 0
        self.total_size = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return sum(map(len, self._by_size.values()))

    @property
    def claims(self) -> list[Claim]:
        """What waits of each tenant."""
        return [Claim(of.priority, of.tenant, line.weight, line.size) for of, line in self._lines.items()]

    def add(self, call: Key, sizes: Iterable[int], caller: Caller = _ANYBODY) -> None:
        """Queue a call's items, of which there are some."""
        account = self._accounts.open(caller.priority, caller.tenant, self._lines)
        line = self._lines.setdefault(account, _Line(caller.weight))
        line.weight = caller.weight
        by_size = self._by_size.setdefault(caller.priority, [])
        self._account_of[call] = account
        tag = line.virtual_time
        for index, size in enumerate(sizes):
            item = Waiting(call, index, size, self._num_added, account)
            by_size.append((size, item.number, item))
            heappush(line.by_tag, (tag, item.number, item))
            self._num_added += 1
            line.num_left[call] += 1
            line.size += size
            self.total_size += size
            tag += size
        by_size.sort()

    def discard(self, call: Key) -> None:
        """Forget what still waits of a call."""
        if (account := self._account_of.get(call)) is None:
            return
        by_size = self._by_size[account.priority]
        for _, _, item in [entry for entry in by_size if entry[2].call == call]:
            self._remove(item)
        by_size[:] = [entry for entry in by_size if not entry[2].is_gone]

    def take(self) -> list[Waiting[Key]]:
        """Remove and return the next batch, smallest item first; empty when nothing waits."""
        if not self._lines:
            return []
        account = min(self._lines, key=lambda each: (each.priority, each.service))
        self._accounts.note_turn(account)
        first = self._lines[account].pop()
        by_size = self._by_size[account.priority]
        start, end = self._widened(by_size, bisect_left(by_size, (first.size, first.number)))
        batch = [item for _, _, item in by_size[start:end]]
        del by_size[start:end]
        for item in batch:
            item.account.charge(item.size, self._lines[item.account].weight)
            self._remove(item)
        return batch

    def _remove(self, item: Waiting[Key]) -> None:
        """Count an item out; with the last one of its call that, and with that of its tenant the line."""
        line = self._lines[item.account]
        item.is_gone = True
        line.size -= item.size
        self.total_size -= item.size
        line.num_left[item.call] -= 1
        if not line.num_left[item.call]:
            del line.num_left[item.call]
            del self._account_of[item.call]
            if not line.num_left:
                del self._lines[item.account]
            self._accounts.close(item.account)

    def _widened(self, sizes: list[tuple[int, int, Waiting[Key]]], place: int) -> tuple[int, int]:
        """The slice of `sizes` around `place`: its neighbours of the nearest size, as far as the limits go."""
        limits = self._limits
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
