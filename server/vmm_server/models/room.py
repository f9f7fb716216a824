"""Who leaves memory so that a model fits. Pure.

A model in use never leaves, nor does one that a request pinned; of the others the least recently used go first, and no
more of them than needed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Tenant(Protocol):
    """A model in memory."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def last_used(self) -> float:
        """Seconds on any clock."""
        ...

    @property
    def num_leases(self) -> int:
        """Requests that use it."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Whether it stays although nobody uses it."""
        ...


AnyTenant = TypeVar("AnyTenant", bound=Tenant)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes."""

    least_bytes: int
    wanted_bytes: int
    """At least `least_bytes`; more makes it serve more requests at a time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What all models may take together."""

    num_bytes: int
    num_models: int = 0
    """0: as many as fit."""


@dataclass(frozen=True, slots=True)
class Room(Generic[AnyTenant]):
    """Where a model fits."""

    num_bytes: int
    """What it may take once all of `leaving` have left."""
    leaving: tuple[AnyTenant, ...]
    """In the order in which they go."""


def find_room(tenants: Collection[AnyTenant], need: Need, limits: Limits) -> Room[AnyTenant] | None:
    """`None`: there is none while those that cannot leave stay."""
    staying = [tenant for tenant in tenants if tenant.num_leases or tenant.is_pinned]
    if not _fits(staying, need.least_bytes, limits):
        return None
    idle = [tenant for tenant in tenants if not (tenant.num_leases or tenant.is_pinned)]
    aim = min(need.wanted_bytes, limits.num_bytes - _size(staying))
    leaving = _first_to_leave(idle, staying, aim, limits)
    left = limits.num_bytes - _size(tenants) + _size(leaving)
    return Room(min(need.wanted_bytes, left), leaving)


def in_the_way(tenants: Collection[AnyTenant], need: Need, limits: Limits) -> tuple[AnyTenant, ...]:
    """Those that have to leave, whether they are used or not; none, where all but the pinned are not enough."""
    pinned = [tenant for tenant in tenants if tenant.is_pinned]
    if not _fits(pinned, need.least_bytes, limits):
        return ()
    movable = [tenant for tenant in tenants if not tenant.is_pinned]
    return _first_to_leave(movable, pinned, need.least_bytes, limits)


def may_find_room(tenants: Collection[Tenant], need: Need, limits: Limits) -> bool:
    """Whether there is room once nobody uses any model: else it is no use to wait."""
    return _fits([tenant for tenant in tenants if tenant.is_pinned], need.least_bytes, limits)


def no_room(tenants: Collection[Tenant], need: Need, limits: Limits) -> str:
    """What is needed, what there is, and who holds it, in words."""
    free = max(0, limits.num_bytes - _size(tenants))
    words = f"it needs {_megabytes(need.least_bytes)}, {free >> 20} of {_megabytes(limits.num_bytes)} are free"
    if limits.num_models and len(tenants) >= limits.num_models:
        words += f", and {len(tenants)} of {limits.num_models} models are loaded"
    held = [
        f"{tenant.name} ({_megabytes(tenant.size_bytes)}, {'in use' if tenant.num_leases else 'pinned'})"
        for tenant in tenants
        if tenant.num_leases or tenant.is_pinned
    ]
    return f"{words}; held by {', '.join(held)}" if held else words


def _first_to_leave(
    movable: Collection[AnyTenant], staying: Sequence[Tenant], num_bytes: int, limits: Limits
) -> tuple[AnyTenant, ...]:
    """The least recently used, as many as it takes; it fits beside those that stay."""
    by_use = sorted(movable, key=lambda tenant: tenant.last_used)
    num_leaving = 0
    while not _fits([*staying, *by_use[num_leaving:]], num_bytes, limits):
        num_leaving += 1
    return tuple(by_use[:num_leaving])


def _fits(tenants: Sequence[Tenant], num_bytes: int, limits: Limits) -> bool:
    if limits.num_models and len(tenants) >= limits.num_models:
        return False
    return _size(tenants) + num_bytes <= limits.num_bytes


def _size(tenants: Collection[Tenant]) -> int:
    return sum(tenant.size_bytes for tenant in tenants)


def _megabytes(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**20)} MB"
