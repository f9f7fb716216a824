"""Distributions of what happens often: how many values fell below each bound. One thread writes, any may look.

A value costs a search among a dozen bounds and an increment. Whoever looks copies the counts and finds them whole, the
value under way perhaps missing, since an increment of a list's item is never seen half done.

Bounds of what OpenTelemetry's semantic conventions for generative AI have are theirs (docs/gen-ai/gen-ai-metrics.md).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""`gen_ai.server.time_to_first_token`."""
OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""`gen_ai.server.time_per_output_token`."""
INTER_TOKEN_S = (0.001, 0.0025, 0.005, *OUTPUT_TOKEN_S)
"""Small models draw several tokens in 10 ms."""
QUEUE_S = (*FIRST_TOKEN_S, 25.0, 50.0, 100.0)
"""Who waits for others may wait long."""
COUNTS = tuple(2.0**power for power in range(13))
"""Of sequences, items or tokens that are computed together: 1 to 4096."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A look at a histogram, or the sum of several with the same bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Values up to each bound and above the one before it; the last ones are above all bounds."""
    total: float
    """The values' sum."""

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def __add__(self, other: Self) -> "Distribution":
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, self.total + other.total)

    def __sub__(self, earlier: Self) -> "Distribution":
        """What came since then; all there is, if counting began anew meanwhile."""
        counts = tuple(mine - theirs for mine, theirs in zip(self.counts, earlier.counts, strict=True))
        return self if min(counts) < 0 else Distribution(self.bounds, counts, self.total - earlier.total)

    def quantile(self, part: float) -> float | None:
        """The value that this part of all values is not above, read as Prometheus's `histogram_quantile` reads it:
        evenly spread between two bounds, from 0 on, and the last bound for what is above it. `None`: no values."""
        rank, below, lower = part * self.count, 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(0.0, rank - below) / count
            below, lower = below + count, bound
        return lower if self.count else None


class Histogram:
    """Counts values by size. `add` is called by one thread alone."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count a value; one on a bound is not above it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def distribution(self) -> Distribution:
        """As it is now. Safe from any thread; `total` may be a value ahead of the counts, or behind them."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


def summed(distributions: Iterable[Distribution]) -> Distribution | None:
    """All together; `None` for none."""
    total: Distribution | None = None
    for each in distributions:
        total = each if total is None else total + each
    return total


class EngineHistograms:
    """What a worker's thread counts of a text model."""

    def __init__(self) -> None:
        self.queue_s = Histogram(QUEUE_S)
        """From submission to the first step; of those that left before it, as long as they waited."""
        self.inter_token_s = Histogram(INTER_TOKEN_S)
        """Between two tokens of one answer; 0 between tokens of the same step."""
        self.step_sequences = Histogram(COUNTS)
        self.step_tokens = Histogram(COUNTS)
        """Where we schedule: a runtime that does so itself does not say."""


class BatcherHistograms:
    """What a batcher's thread counts."""

    def __init__(self) -> None:
        self.queue_s = Histogram(QUEUE_S)
        """From the call until the first of its items was taken up."""
        self.batch_items = Histogram(COUNTS)
