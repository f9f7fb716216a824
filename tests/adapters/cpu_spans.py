"""Attention's kernels as functions of numpy arrays."""

from dataclasses import dataclass

import numpy as np

from vmm_adapters.cpu.codegen.kernels import FOLD, SIZES, SPANS
from vmm_adapters.cpu.formats import TILE, WIDTH

from .cpu_kernels import EPSILON, UNTOUCHED, Array, Subject, size_index

EXPONENTIAL = 4 * EPSILON
"""Its relative error: 2 units in the last place."""
NO_LIMIT = -1


@dataclass(frozen=True)
class Result:
    """Of a span: sums `[rows, padded head]`, greatest scores and sums of weights `[rows]`."""

    sums: Array
    peaks: Array
    totals: Array

    def attended(self) -> Array:
        """Weighted means of the values."""
        return np.asarray(self.sums / self.totals[:, None])

    def fold(self, subject: Subject, after: "Result") -> "Result":
        """Together with the span that comes after it."""
        mine = [subject.move(part.copy()) for part in (self.sums, self.peaks, self.totals)]
        others = [subject.move(part) for part in (after.sums, after.peaks, after.totals)]
        subject.call(FOLD, *mine, *others, *self.sums.shape)
        return Result(*(part.copy() for part in mine))


@dataclass(frozen=True)
class Cache:
    """Keys or values of one head in blocks; garbage in what no row sees is not a number."""

    numbers: Array
    """`[blocks, head, 32]` keys or `[blocks, 32, padded head]` values, float16 or uint8."""
    factors: Array
    """Scales and lowest numbers of the positions, float32 `[blocks, 2, 32]`."""

    def lay_out(self, subject: Subject) -> tuple[Array, Array, int]:
        """The blocks in memory, of which others' heads lie between; where the factors are; a block's bytes."""
        numbers = self.numbers.reshape(len(self.numbers), -1).view(np.uint8)
        factors = self.factors.reshape(len(self.factors), -1).view(np.uint8)
        gap = np.full((len(numbers), 64), 255, np.uint8)
        lines = np.concatenate([numbers, factors, gap], 1)
        whole = subject.move(lines.reshape(-1)[:-64])
        return whole, whole[numbers.shape[1] :], lines.shape[1]

    def plain(self, *, are_keys: bool) -> tuple[Array, Array]:
        """What it stands for, float64 `[blocks · 32, head]`, and the sizes of what is added up to it."""
        numbers = self.numbers.astype(np.float64)
        if are_keys:
            numbers = numbers.transpose(0, 2, 1)
        if self.numbers.dtype == np.uint8:
            scales, lows = (self.factors[:, part, :, None].astype(np.float64) for part in (0, 1))
            numbers, sizes = numbers * scales + lows, np.abs(numbers * scales) + np.abs(lows)
        else:
            sizes = np.abs(numbers)
        return numbers.reshape(-1, numbers.shape[2]), sizes.reshape(-1, numbers.shape[2])


@dataclass(frozen=True)
class Span:
    """Rows of queries, and the blocks of a sequence that they are to see."""

    queries: Array
    """float32 `[rows, head]`."""
    keys: Cache
    values: Cache
    table: Array
    """int32: the blocks in their order."""
    position: int
    last: Array
    """int32 `[rows]`: the last position that each row sees."""
    before: Array
    """The one before the first."""
    num_positions: int
    softcap: float = 0.0

    def attend(self, subject: Subject) -> Result:
        """Sum up."""
        rows, head = self.queries.shape
        padded = self.values.numbers.shape[2]
        queries = np.full((TILE, padded), np.nan, np.float32)
        queries[:rows, :head] = self.queries
        limits = np.full((2, TILE), 1 << 30, np.int32)
        limits[0, :rows], limits[1, :rows] = self.last, self.before
        sums, peaks, totals = subject.room(TILE, padded), subject.room(TILE), subject.room(TILE)
        scratch = subject.move(np.full(TILE * WIDTH + 3 * TILE, np.nan, np.float32))
        tile = (subject.move(queries), sums, peaks, totals, subject.move(limits), scratch, padded, head)
        keys, key_factors, key_bytes = self.keys.lay_out(subject)
        values, value_factors, value_bytes = self.values.lay_out(subject)
        table = subject.move(self.table)
        places = (keys, values, key_bytes, value_bytes, key_factors, value_factors, table, self.position)
        kind = 2 * self.is_narrow + (self.softcap > 0)
        kernel = SPANS + len(SIZES) * kind + size_index(rows)
        subject.call(kernel, *tile, *places, len(table), self.num_positions, number=self.softcap)
        assert (sums[SIZES[size_index(rows)] :] == UNTOUCHED).all()
        return Result(sums[:rows].copy(), peaks[:rows].copy(), totals[:rows].copy())

    @property
    def is_narrow(self) -> bool:
        """Whether it is uint8."""
        return self.keys.numbers.dtype == np.uint8

    def is_seen(self) -> Array:
        """Which positions each row sees: bool `[rows, positions]`."""
        positions = self.position + np.arange(self.num_positions)
        return np.asarray((positions <= self.last[:, None]) & (positions > self.before[:, None]))

    def scores(self) -> tuple[Array, Array]:
        """In float64 `[rows, positions]`, and how far float32 may be off."""
        head = self.queries.shape[1]
        keys, sizes = (part[self._seen_lines()] for part in self.keys.plain(are_keys=True))
        queries = self.queries.astype(np.float64)
        scores = queries @ keys.T
        # each of `head` products and sums is rounded; of uint8 then the scale's and the lowest number's
        error = (head + 4) * EPSILON * (np.abs(queries) @ sizes.T)
        if self.softcap:
            # the quotient, and an exponential's error in `1 - 2 / (e^2x + 1)`, whose slope is 1 / 2 at most
            error += 4 * EPSILON * np.abs(scores) + self.softcap * 2 * EXPONENTIAL
            scores = self.softcap * np.tanh(scores / self.softcap)
        return scores, error

    def expected(self) -> tuple[Array, Array]:
        """In float64: attended `[rows, head]`, and how far float32 may be off; not a number where nothing is seen."""
        scores, errors = self.scores()
        scores = np.where(self.is_seen(), scores, -np.inf)
        values, sizes = (
            part[self._seen_lines(), : self.queries.shape[1]] for part in self.values.plain(are_keys=False)
        )
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
        # errors of scores and of differences are relative ones of weights; each block corrects the sums once more
        largest = np.abs(np.where(self.is_seen(), scores, 0)).max(1)
        relative = 2 * errors.max(1) + 4 * EPSILON * largest
        relative += (len(self.table) + 1) * 2 * EXPONENTIAL + (self.num_positions + 4) * EPSILON
        return weights @ values, 2 * np.expm1(relative)[:, None] * (weights @ sizes)

    def _seen_lines(self) -> Array:
        return (self.table[:, None] * WIDTH + np.arange(WIDTH)).reshape(-1)[: self.num_positions]


def make_span(
    seed: int,
    rows: int,
    head: int,
    num_positions: int,
    *,
    is_narrow: bool,
    softcap: float = 0.0,
    position: int = 0,
    apart: int = 4,
    window: int | None = None,
    size: float = 0.2,
) -> Span:
    """Rows that see up to one of the last positions, in blocks that lie in any order among others.

    What no row sees is no number. `apart`: how far rows' positions may be; `size`: of the queries.
    """
    rng = np.random.default_rng(seed)
    num_blocks = -(-num_positions // WIDTH)
    table = rng.permutation(num_blocks + 2)[:num_blocks].astype(np.int32)
    used = np.zeros((num_blocks + 2, WIDTH), bool)
    used[table] = (np.arange(num_blocks * WIDTH) < num_positions).reshape(-1, WIDTH)
    keys = _make_cache(rng, used, head, is_narrow=is_narrow)
    values = _make_cache(rng, used, head, is_narrow=is_narrow)
    padding = [(0, 0), (0, 0), (0, -head % WIDTH)]
    keys = Cache(np.ascontiguousarray(keys.numbers.transpose(0, 2, 1)), keys.factors)
    values = Cache(np.pad(values.numbers, padding, constant_values=255 if is_narrow else np.nan), values.factors)
    last = position + num_positions - 1 - rng.integers(0, min(num_positions, apart), rows)
    queries = rng.normal(0, size, (rows, head)).astype(np.float32)
    before = np.full(rows, NO_LIMIT) if window is None else last - window
    return Span(queries, keys, values, table, position, last, before, num_positions, softcap)


def _make_cache(rng: np.random.Generator, used: Array, head: int, *, is_narrow: bool) -> Cache:
    """Numbers around 0, `[blocks, 32, head]`."""
    shape = (*used.shape, head)
    numbers = rng.integers(0, 256, shape, np.uint8) if is_narrow else rng.normal(0, 1, shape).astype(np.float16)
    numbers[~used] = 255 if is_narrow else np.nan
    factors = np.stack([rng.uniform(1e-3, 2e-2, used.shape), rng.normal(-1, 0.5, used.shape)], 1)
    factors = np.where(used[:, None], factors, np.nan)
    return Cache(numbers, factors.astype(np.float32))
