"""Who leaves memory so that a model fits. Pure.

A model in use never leaves, nor does one that a request pinned; of the others the least recently used go first, and no
more of them than needed. Bytes are counted in one memory, models in all of them together.
"""

from collections.abc import Callable, Iterable, Sequence
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
class Site(Generic[AnyTenant]):
    """A memory that a model could move into."""

    need: Need
    limits: Limits
    tenants: Sequence[AnyTenant]
    """Who is there."""
    elsewhere: Sequence[AnyTenant] = ()
    """Who is in other memories: they take none of its bytes, but count as models."""


@dataclass(frozen=True, slots=True)
class Room(Generic[AnyTenant]):
    """Where a model fits."""

    num_bytes: int
    """What it may take once all of `leaving` have left."""
    leaving: tuple[AnyTenant, ...]
    """In the order in which they go."""


def find_room(site: Site[AnyTenant]) -> Room[AnyTenant] | None:
    """`None`: there is none while those that cannot leave stay."""
    need, limits = site.need, site.limits
    if not _fits(site, _stays, need.least_bytes):
        return None
    staying_bytes = _size(tenant for tenant in site.tenants if _stays(tenant))
    leaving = _first_to_leave(site, _stays, min(need.wanted_bytes, limits.num_bytes - staying_bytes))
    left = limits.num_bytes - _size(tenant for tenant in site.tenants if tenant not in leaving)
    return Room(min(need.wanted_bytes, left), leaving)


def in_the_way(site: Site[AnyTenant]) -> tuple[AnyTenant, ...]:
    """Those that have to leave, whether they are used or not; none, where all but the pinned are not enough."""
    return _first_to_leave(site, _is_pinned, site.need.least_bytes) if may_find_room(site) else ()


def may_find_room(site: Site[AnyTenant]) -> bool:
    """Whether there is room once nobody uses any model: else it is no use to wait."""
    return _fits(site, _is_pinned, site.need.least_bytes)


def no_room(site: Site[AnyTenant]) -> str:
    """What is needed, what there is, and who holds it, in words."""
    need, limits, everyone = site.need, site.limits, [*site.tenants, *site.elsewhere]
    free = max(0, limits.num_bytes - _size(site.tenants))
    words = f"it needs {_megabytes(need.least_bytes)}, {free >> 20} of {_megabytes(limits.num_bytes)} are free"
    is_crowded = limits.num_models and len(everyone) >= limits.num_models
    if is_crowded:
        words += f", and {len(everyone)} of {limits.num_models} models are loaded"
    held = [
        f"{tenant.name} ({_megabytes(tenant.size_bytes)}, {'in use' if tenant.num_leases else 'pinned'})"
        for tenant in (everyone if is_crowded else site.tenants)
        if _stays(tenant)
    ]
    return f"{words}; held by {', '.join(held)}" if held else words


def _stays(tenant: Tenant) -> bool:
    return tenant.num_leases > 0 or tenant.is_pinned


def _is_pinned(tenant: Tenant) -> bool:
    return tenant.is_pinned


def _fits(site: Site[AnyTenant], stays: Callable[[Tenant], bool], num_bytes: int) -> bool:
    """Whether there is room once all have left but those that stay."""
    num_models = sum(map(stays, site.tenants)) + sum(map(stays, site.elsewhere))
    if site.limits.num_models and num_models >= site.limits.num_models:
        return False
    return _size(tenant for tenant in site.tenants if stays(tenant)) + num_bytes <= site.limits.num_bytes


def _first_to_leave(site: Site[AnyTenant], stays: Callable[[Tenant], bool], num_bytes: int) -> tuple[AnyTenant, ...]:
    """The least recently used, as many as it takes: for the bytes those here, for the count whoever it is."""
    here = sorted((tenant for tenant in site.tenants if not stays(tenant)), key=_last_used)
    too_large, num_leaving = _size(site.tenants) + num_bytes - site.limits.num_bytes, 0
    while too_large > 0 and num_leaving < len(here):
        too_large -= here[num_leaving].size_bytes
        num_leaving += 1
    leaving, left = here[:num_leaving], here[num_leaving:]
    if site.limits.num_models:
        left = sorted([*left, *(tenant for tenant in site.elsewhere if not stays(tenant))], key=_last_used)
        too_many = len(site.tenants) + len(site.elsewhere) - len(leaving) + 1 - site.limits.num_models
        leaving += left[: max(0, too_many)]
    return tuple(leaving)


def _last_used(tenant: Tenant) -> float:
    return tenant.last_used


def _size(tenants: Iterable[Tenant]) -> int:
    return sum(tenant.size_bytes for tenant in tenants)


def _megabytes(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**20)} MB"
