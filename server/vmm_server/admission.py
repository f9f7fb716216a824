"""What may begin: a bound on all requests under way, and the quotas of each key. Used from one event loop.

A quota per minute is a bucket that holds a minute's worth and fills at an even pace, so that a client that sends too
much is let in again as soon as possible, and told when that is. Tokens are known when an answer is over: they are taken
then, below zero if need be, and what comes next waits for it. Counters are this process's own, and begin anew with it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from vmm_server.errors import Overloaded, RateLimited
from vmm_server.keys import Key

Reason = Literal[
    "unauthenticated", "permission_denied", "max_pending", "max_concurrent", "requests_per_minute", "tokens_per_minute"
]
"""Why a request was turned away: the setting, or the key's limit."""
MAX_PAUSE_S = 60
"""Told to clients at most where the pause is an estimate."""
_SMOOTHING = 0.1
"""Weight of the last duration in the running mean."""
_MINUTE_S = 60.0
_EPSILON = 1e-6
"""Of a limit: what may be missing through rounding, 60 µs worth."""


@dataclass(frozen=True, slots=True)
class AdmissionStats:
    """Since the start, but for what is under way. A tenant is the id of a key; empty without one."""

    num_pending: int
    """Requests under way."""
    num_admitted: Mapping[str, int]
    """Tenant → requests."""
    num_tokens: Mapping[str, int]
    """Tenant → tokens, of prompts and of answers."""
    num_rejected: Mapping[tuple[Reason, str], int]
    """Reason and tenant → requests."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Of a key, as it is now."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    """0 also where it is overdrawn."""
    full_in_s: float
    """Until the bucket is full again, if nothing is taken."""


@dataclass(slots=True)
class _Bucket:
    """So much of a quota is left."""

    level: float = math.inf
    filled_at: float = 0.0

    def fill(self, limit: int, now: float) -> None:
        """Add what came since the last time. A limit that was changed holds from now on."""
        self.level = min(float(limit), self.level + limit * (now - self.filled_at) / _MINUTE_S)
        self.filled_at = now

    def pause_s(self, limit: int) -> float:
        """Until one can be taken; 0 if it can now, or by a rounding error less."""
        missing = 1.0 - self.level
        return missing * _MINUTE_S / limit if missing > limit * _EPSILON else 0.0


@dataclass(slots=True)
class _Tenant:
    """What a key has used."""

    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    num_pending: int = 0


class Admission:
    """Lets requests in, or tells when to come again."""

    def __init__(self, *, max_pending: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_pending = max_pending
        """May be changed at any time."""
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._num_pending = 0
        self._mean_s = 1.0
        self._num_admitted: Counter[str] = Counter()
        self._num_tokens: Counter[str] = Counter()
        self._num_rejected: Counter[tuple[Reason, str]] = Counter()

    @property
    def stats(self) -> AdmissionStats:
        """What was let in, and what was not."""
        return AdmissionStats(
            self._num_pending, dict(self._num_admitted), dict(self._num_tokens), dict(self._num_rejected)
        )

    @contextmanager
    def enter(self, key: Key | None, *, lasts: bool = False) -> Iterator[None]:
        """Around a request. `lasts` is a connection, which says nothing of how long requests take.

        Raises `Overloaded` when too much is under way, `RateLimited` when a quota of the key is used up; then nothing
        of its quotas is taken.
        """
        tenant_id = tenant_of(key)
        tenant = self._tenants.setdefault(tenant_id, _Tenant())
        started_at = self._clock()
        if self._num_pending >= self.max_pending:
            self.count_refusal("max_pending", key)
            raise Overloaded(retry_after_s=self._pause_s(self._num_pending))
        if key is not None:
            self._take(key, tenant, started_at)
        self._num_admitted[tenant_id] += 1
        self._num_pending += 1
        tenant.num_pending += 1
        try:
            yield
        finally:
            self._num_pending -= 1
            tenant.num_pending -= 1
            if not lasts:
                self._mean_s += _SMOOTHING * (self._clock() - started_at - self._mean_s)

    def charge(self, key: Key | None, num_tokens: int) -> None:
        """Take tokens that a request of the key has used."""
        self._num_tokens[tenant_of(key)] += num_tokens
        if key is not None and key.tokens_per_minute is not None:
            bucket = self._tenants.setdefault(key.id, _Tenant()).tokens
            bucket.fill(key.tokens_per_minute, self._clock())
            bucket.level -= num_tokens

    def count_refusal(self, reason: Reason, key: Key | None) -> None:
        """Count a request that somebody else turned away."""
        self._num_rejected[reason, tenant_of(key)] += 1

    def quotas(self, key: Key | None) -> Iterator[Quota]:
        """What is left of the quotas that a key has."""
        for name, limit, bucket in self._buckets(key):
            bucket.fill(limit, self._clock())
            remaining = max(0, math.floor(bucket.level))
            yield Quota(name, limit, remaining, (limit - bucket.level) * _MINUTE_S / limit)

    def _take(self, key: Key, tenant: _Tenant, now: float) -> None:
        if key.max_concurrent is not None and tenant.num_pending >= key.max_concurrent:
            self._reject(key, "max_concurrent", key.max_concurrent, self._pause_s(tenant.num_pending))
        used_up: list[tuple[float, Reason, int]] = []
        for name, limit, bucket in self._buckets(key):
            bucket.fill(limit, now)
            if pause_s := bucket.pause_s(limit):
                used_up.append((pause_s, "requests_per_minute" if name == "requests" else "tokens_per_minute", limit))
        if used_up:
            pause_s, reason, limit = max(used_up)  # then the other one is no more in the way
            self._reject(key, reason, limit, math.ceil(pause_s))
        if key.requests_per_minute is not None:
            tenant.requests.level -= 1.0

    def _reject(self, key: Key, reason: Reason, limit: int, pause_s: int) -> None:
        self.count_refusal(reason, key)
        raise RateLimited(
            f"the key {key.name} is over its limit: {reason} is {limit}",
            retry_after_s=pause_s,
            hint=f"try again in {pause_s} s",
        )

    def _buckets(self, key: Key | None) -> Iterator[tuple[Literal["requests", "tokens"], int, _Bucket]]:
        if key is None:
            return
        tenant = self._tenants.setdefault(key.id, _Tenant())
        if key.requests_per_minute is not None:
            yield "requests", key.requests_per_minute, tenant.requests
        if key.tokens_per_minute is not None:
            yield "tokens", key.tokens_per_minute, tenant.tokens

    def _pause_s(self, num_pending: int) -> int:
        """When the next of so many requests is likely to be over: they end at their mean time, one after the other."""
        return min(MAX_PAUSE_S, max(1, math.ceil(self._mean_s / max(1, num_pending))))


def tenant_of(key: Key | None) -> str:
    """The id of a key; empty without one."""
    return "" if key is None else key.id
