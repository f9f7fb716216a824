"""How many drafts a step should have: what they cost, how often they are right, and what may be lost. Pure.

A step with `n` sequences that decode gives `n` tokens. Drafts make it dearer by a factor, which is measured
(`StepCosts`), and give a sequence with `k` of them, each right with probability p, p + p² + … + pᵏ tokens more
(Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023, section 3.3). The plan is the one
with the highest geometric mean of all sequences' paces: their sum is then never lower than without drafts, and one that
has nothing to draft is not slowed for a small gain of its neighbour.

Estimates can be wrong, and texts can mislead. So every sequence has a credit (`DraftRecord`), in plain steps: it earns
`EARNING` with each token, and a step has no drafts for which it could not pay should all of them be wrong. What a step
costs all sequences more than a plain one is paid by those that draft, each token that this brings is paid back, and
what is saved is bounded. No credit falls below zero, so sequences are together at most `FIRST_CREDIT` plain steps each
and the share `EARNING` of their time behind where they would be without drafts, whatever the texts say: 1.5 % of an
answer of 50 tokens, and less of any longer one. Only what a draft costs at all has to be seen first, in four steps with
one draft for each number of sequences that decode together; for one sequence that is known from the load
(`speculation.measured_costs`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from math import log
from statistics import median_low

MAX_DRAFTS = 15
"""Of one sequence in a step."""
EARNING = 0.01
"""Plain steps that a sequence may lose for each token."""
FIRST_CREDIT = 0.25
_MAX_CREDIT = 8.0
_MIN_GAIN = 0.02  # of the logarithm of the mean pace: what is less is noise

_PRIOR_SLOPE = 0.45  # of a step's time, for each token beyond the first: a processor that computes at its limit
_NUM_SAMPLES = 9
_NUM_PLAIN_SAMPLES = 5  # contexts grow and go, and plain steps are rare while drafts are good
_MIN_SAMPLES = 3
_MAX_AGE = 4096  # steps after which a measurement of drafts is too old to tell
_PLAIN_EVERY = 32
_PROBE_EVERY = 128
_WORTH_LEARNING = 0.3
_MAX_DEPTH = 8


class Evidence(Enum):
    """What a proposal rests on, and how often its first token is right before anything is known: all differ."""

    PAIR = 0.4
    SHORT = 0.6
    LONG = 0.8
    LONGEST = 0.9
    MODEL = 0.65
    GRAMMAR = 0.98


class DraftRecord:
    """Of one sequence: how often proposals were right, and what it may still lose."""

    _PRIOR_WEIGHT = 2.0
    _MEMORY = 0.9
    _PATIENCE = 0.98

    def __init__(self) -> None:
        self.credit = FIRST_CREDIT
        """In plain steps."""
        self._counts: dict[Evidence, tuple[float, float]] = {}

    def probability(self, evidence: Evidence) -> float:
        """That a token proposed on such evidence is the next one, if those before it were right."""
        right, tried = self._counts.get(evidence, (0.0, 0.0))
        weight = self._PRIOR_WEIGHT
        return min(0.98, (right + weight * evidence.value) / (tried + weight))

    def note(self, evidence: Evidence, num_right: int, num_tried: int) -> None:
        """Proposed tokens that a step showed to be right, of those it showed to be either. Drafts or not: it is free
        to see whether a token that was not drafted would have been right.
        """
        right, tried = self._counts.get(evidence, (0.0, 0.0))
        self._counts[evidence] = right * self._MEMORY + num_right, tried * self._MEMORY + num_tried

    def pay(self, price: float) -> None:
        """For drafts that were made at a cost, in plain steps."""
        self.credit -= price

    def book(self, num_drawn: int, charge: float = 0.0) -> None:
        """Earn for the tokens that a step gave, and pay for its drafts (plain steps)."""
        self.credit = min(_MAX_CREDIT, self.credit + EARNING * num_drawn + num_drawn - 1 - charge)
        for evidence, (right, tried) in self._counts.items():
            self._counts[evidence] = right * self._PATIENCE, tried * self._PATIENCE  # to be tried again some day


class StepCosts:
    """What steps take by the number of sequences that decode, and of drafts. Medians of the last few: one slow step
    says nothing. The first step of a new number of tokens says nothing either, since it may compile kernels.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}
        self._ratios: dict[int, dict[int, deque[float]]] = {}
        self._seen: set[int] = set()
        self._num_steps = 0
        self._plain_at: dict[int, int] = {}
        self._drafted_at: dict[tuple[int, int], int] = {}

    def note(self, num_sequences: int, num_drafts: int, seconds: float) -> None:
        """A step that did nothing but decode."""
        self._num_steps += 1
        num_tokens = num_sequences + num_drafts
        num_drafts = _rounded(num_drafts)
        if num_tokens not in self._seen:
            self._seen.add(num_tokens)
        elif num_drafts == 0:
            self._plain.setdefault(num_sequences, deque(maxlen=_NUM_PLAIN_SAMPLES)).append(seconds)
            self._plain_at[num_sequences] = self._num_steps
        elif (plain := self.plain_s(num_sequences)) > 0:
            ratios = self._ratios.setdefault(num_sequences, {})
            ratios.setdefault(num_drafts, deque(maxlen=_NUM_SAMPLES)).append(seconds / plain)
            self._drafted_at[num_sequences, num_drafts] = self._num_steps

    def is_known(self, num_sequences: int) -> bool:
        """Whether plain steps of so many sequences were measured, the last one not too long ago."""
        if len(self._plain.get(num_sequences, ())) < _MIN_SAMPLES:
            return False
        return self._num_steps - self._plain_at[num_sequences] < _PLAIN_EVERY and self.plain_s(num_sequences) > 0

    def knows_drafts(self, num_sequences: int) -> bool:
        """Whether steps with drafts were measured, and not too long ago."""
        ratios = self._ratios.get(num_sequences, {}).items()
        fresh = [samples for num_drafts, samples in ratios if self._is_fresh(num_sequences, num_drafts)]
        return sum(map(len, fresh)) >= _MIN_SAMPLES

    def ratios(self, num_sequences: int, most: int, *, at_most: bool = False) -> list[float]:
        """How many plain steps a step with 0, 1, … `most` drafts takes: measured, and on a line between measurements.

        Beyond them it goes on as steep as before or, `at_most`, so that drafts cost what as many sequences would.
        Nothing is dearer than that: what was measured so was measured on a busy machine.
        """
        known = [(0, 1.0)]
        for num_drafts, samples in sorted(self._ratios.get(num_sequences, {}).items()):
            if self._is_fresh(num_sequences, num_drafts):
                dearest = known[-1][1] + (num_drafts - known[-1][0]) / num_sequences
                known.append((num_drafts, min(dearest, max(1.0, median_low(samples)))))
        last, ratio = known[-1]
        slope = (ratio - 1) / last if last else _PRIOR_SLOPE / (1 + _PRIOR_SLOPE * (num_sequences - 1))
        slope = 1 / num_sequences if at_most else slope
        known.append((max(last, most) + 1, ratio + slope * (max(last, most) + 1 - last)))
        found = []
        for (start, low), (end, high) in pairwise(known):
            found += [low + (high - low) * step / (end - start) for step in range(end - start)]
        return found[: most + 1]

    def _is_fresh(self, num_sequences: int, num_drafts: int) -> bool:
        return self._num_steps - self._drafted_at[num_sequences, num_drafts] < _MAX_AGE

    def plain_s(self, num_sequences: int) -> float:
        """What a step without drafts takes; 0 before one was measured."""
        samples = self._plain.get(num_sequences)
        return median_low(samples) if samples else 0.0


def _rounded(num_drafts: int) -> int:
    """To 4 bits: costs of many drafts are alike, and there would be no end of them."""
    shift = max(0, num_drafts.bit_length() - 4)
    return (num_drafts + (1 << shift >> 1)) >> shift << shift


@dataclass(frozen=True, slots=True)
class Chance:
    """What one sequence could draft in the next step."""

    num_tokens: int
    probability: float
    """That a token is right, if those before it were."""
    credit: float
    """What may be lost, in plain steps."""


class DraftPlanner:
    """Chooses from all sequences' chances, and now and then drafts what it would not, to know what it costs."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._num_refused: dict[int, int] = {}

    def plan(self, chances: Sequence[Chance], num_sequences: int, budget: int) -> list[int]:
        """How many drafts each gets in a step of `num_sequences`, `budget` in all at most."""
        budget = min(budget, sum(chance.num_tokens for chance in chances))
        if budget <= 0 or not self._costs.is_known(num_sequences):
            return [0] * len(chances)
        if not self._costs.knows_drafts(num_sequences):
            return _likeliest(chances, _WORTH_LEARNING)  # by steps that nobody need be able to pay for
        ratios = self._costs.ratios(num_sequences, budget)
        most = [chance.num_tokens for chance in chances]
        counts = _best(chances, most, ratios, num_sequences)
        if not any(counts):
            counts = self._probe(chances, num_sequences)
        bounds = self._costs.ratios(num_sequences, budget, at_most=True)
        while over := self._unaffordable(chances, counts, bounds, num_sequences):
            for index in over:
                most[index] = counts[index] - 1
            counts = _best(chances, most, ratios, num_sequences)
        return counts

    def depth(self, chances: Sequence[Chance], num_sequences: int, draft_s: float | None) -> tuple[int, list[int]]:
        """How many tokens a draft model should draft for which of `chances`, in a step of `num_sequences`.

        `draft_s` is what one for each takes; where that or what drafts cost is not known, it is found out with one.
        """
        everybody = list(range(len(chances)))
        if not chances or not self._costs.is_known(num_sequences):
            return 0, []
        if draft_s is None or not self._costs.knows_drafts(num_sequences):
            return int(max(chance.probability for chance in chances) >= _WORTH_LEARNING), everybody
        extra = draft_s / self._costs.plain_s(num_sequences)
        first = self._prices(len(chances), 1, num_sequences, extra)[0]
        chosen = [index for index in everybody if chances[index].credit >= first]
        if not chosen:
            return 0, []
        most = min(_MAX_DEPTH, *(chances[index].num_tokens for index in chosen))
        prices = self._prices(len(chosen), most, num_sequences, extra)
        ratios = self._costs.ratios(num_sequences, most * len(chosen))
        best, best_depth = _MIN_GAIN * num_sequences, 0
        for depth, price in enumerate(prices, 1):
            if price > min(chances[index].credit for index in chosen):
                break
            expected = [sum(chances[index].probability ** power for power in range(depth + 1)) for index in chosen]
            cost = ratios[depth * len(chosen)] + depth * extra
            if (value := sum(map(log, expected)) - num_sequences * log(cost)) > best:
                best, best_depth = value, depth
        return best_depth, chosen

    def _prices(self, num_drafting: int, most: int, num_sequences: int, extra: float) -> list[float]:
        """What each of those that draft pays at most for 1, 2, … `most` tokens, drafted and checked."""
        bounds = self._costs.ratios(num_sequences, most * num_drafting, at_most=True)
        totals = [bounds[depth * num_drafting] - 1 + depth * extra for depth in range(1, most + 1)]
        return [total * num_sequences / num_drafting for total in totals]

    def price(self, num_drafts: int, num_sequences: int) -> float:
        """Of each draft in such a step: its part of what they cost all sequences, in plain steps of one."""
        ratio = self._costs.ratios(num_sequences, num_drafts)[num_drafts]
        return (ratio - 1) * num_sequences / num_drafts

    def _unaffordable(
        self, chances: Sequence[Chance], counts: list[int], bounds: list[float], num_sequences: int
    ) -> list[int]:
        if not (total := sum(counts)):
            return []
        price = (bounds[total] - 1) * num_sequences / total
        return [index for index, count in enumerate(counts) if count and count * price > chances[index].credit]

    def _probe(self, chances: Sequence[Chance], num_sequences: int) -> list[int]:
        """Mostly nothing; rarely one draft of the best chance, since what it costs may have changed."""
        refused = self._num_refused[num_sequences] = self._num_refused.get(num_sequences, 0) + 1
        if refused < _PROBE_EVERY:
            return [0] * len(chances)
        self._num_refused[num_sequences] = 0
        return _likeliest(chances, 0.0)


def _likeliest(chances: Sequence[Chance], least: float) -> list[int]:
    """One draft of the best chance, if that is as good as `least`."""
    best = max(range(len(chances)), key=lambda index: chances[index].probability)
    return [int(index == best and chance.probability >= least) for index, chance in enumerate(chances)]


def _best(chances: Sequence[Chance], most: Sequence[int], ratios: Sequence[float], num_sequences: int) -> list[int]:
    """The counts with the highest geometric mean of paces, none above its `most`.

    A sequence's next draft adds less than the one before, so those that add most make the best plan of any total.
    """
    gains: list[tuple[float, int]] = []
    for index, chance in enumerate(chances):
        expected, share = 1.0, 1.0
        for _ in range(most[index]):
            share *= chance.probability
            gain = log((expected + share) / expected)
            if gain < _MIN_GAIN:
                break
            gains.append((gain, index))
            expected += share
    gains.sort(key=lambda gain: -gain[0])
    best, best_total, total = _MIN_GAIN * num_sequences, 0, 0.0
    for count, (gain, _) in enumerate(gains[: len(ratios) - 1], 1):
        total += gain
        if (value := total - num_sequences * log(ratios[count])) > best:
            best, best_total = value, count
    counts = [0] * len(chances)
    for _, index in gains[:best_total]:
        counts[index] += 1
    return counts
