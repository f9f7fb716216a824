"""What drafts cost, what they bring, and that they never cost much more: on a clock that is made up."""

from collections.abc import Callable
from itertools import pairwise, product
from math import log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.engine.drafting import (
    EARNING,
    FIRST_CREDIT,
    MAX_DRAFTS,
    Chance,
    DraftPlanner,
    DraftRecord,
    Evidence,
    StepCosts,
    _best,
    _rounded,
)

Cost = Callable[[int], float]
Truth = Callable[[int], int]
"""Drafts → how many of the proposed tokens are right."""


def cost_of(**points: float) -> Cost:
    """Plain steps that a step of so many tokens takes, on lines between these points and beyond."""
    known = sorted((int(name[1:]), value) for name, value in points.items())

    def cost(num_tokens: int) -> float:
        segments = list(pairwise(known))
        (start, low), (end, high) = next((s for s in segments if num_tokens <= s[1][0]), segments[-1])
        return low + (high - low) * (num_tokens - start) / (end - start)

    return cost


COSTS = {
    "computes at its limit": cost_of(n1=1.0, n2=1.4, n4=2.2, n8=4.0, n16=8.2),
    "reads weights": cost_of(n1=1.0, n2=1.0, n4=1.2, n8=1.5, n16=2.2),
    "is hardly busy": cost_of(n1=1.0, n16=1.1),
    "has no use of batches": cost_of(n1=1.0, n16=16.0),
}


def pace(cost: Cost, truth: Truth, *, num_sequences: int = 1, num_steps: int = 500, noise: float = 0.03) -> float:
    """Of sequences that always have something to propose: how much faster they are than without drafts.

    Some drafts were made before.
    """
    random, costs = Random(1), StepCosts()
    for num_drafts in (0, 1) * 5:
        costs.note(num_sequences, num_drafts, cost(num_sequences + num_drafts))
    planner = DraftPlanner(costs)
    records = [DraftRecord() for _ in range(num_sequences)]
    elapsed, num_tokens = 0.0, 0
    for _ in range(num_steps):
        chances = [Chance(MAX_DRAFTS, each.probability(Evidence.LONG), each.credit) for each in records]
        counts = planner.plan(chances, num_sequences, 512)
        seconds = cost(num_sequences + sum(counts)) * random.lognormvariate(0, noise)
        elapsed += seconds
        costs.note(num_sequences, sum(counts), seconds)
        price = planner.price(sum(counts), num_sequences) if any(counts) else 0.0
        for count, record in zip(counts, records, strict=True):
            num_right = truth(count)
            num_drawn = min(num_right, count) + 1
            record.note(Evidence.LONG, min(num_right, num_drawn), min(num_right + 1, num_drawn))
            record.book(num_drawn, price * count)
            num_tokens += num_drawn
    return num_tokens / num_sequences * cost(num_sequences) / elapsed


def runs_of_luck(probability: float) -> Truth:
    random = Random(2)

    def truth(_: int) -> int:
        count = 0
        while count < MAX_DRAFTS and random.random() < probability:
            count += 1
        return count

    return truth


def misleading(num_drafts: int) -> int:
    """A text that repeats itself exactly until somebody relies on it."""
    return 0 if num_drafts else MAX_DRAFTS


@pytest.mark.parametrize("num_steps", [50, 500])
@pytest.mark.parametrize("num_sequences", [1, 4, 16])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_a_misleading_text_costs_less_than_three_percent(cost: Cost, num_sequences: int, num_steps: int) -> None:
    assert pace(cost, misleading, num_sequences=num_sequences, num_steps=num_steps) > 0.97


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("num_sequences", [1, 3, 16])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_no_chance_makes_it_slower(cost: Cost, num_sequences: int, probability: float) -> None:
    assert pace(cost, runs_of_luck(probability), num_sequences=num_sequences) > 0.97


@pytest.mark.parametrize(
    ("name", "probability", "least"),
    [
        ("computes at its limit", 0.95, 1.5),
        ("computes at its limit", 0.7, 1.1),
        ("reads weights", 0.95, 3.5),
        ("reads weights", 0.5, 1.3),
        ("is hardly busy", 0.95, 6.0),
    ],
)
def test_where_drafts_are_right_the_answer_is_faster(name: str, probability: float, least: float) -> None:
    """The best there is with drafts at these probabilities: 1.69, 1.22, 5.1, 1.59 and 10.2."""
    assert pace(COSTS[name], runs_of_luck(probability)) > least


@given(
    chances=st.lists(
        st.builds(Chance, st.integers(0, 3), st.floats(0.35, 0.98), st.just(99.0)), min_size=1, max_size=3
    ),
    steps=st.lists(st.floats(0, 0.5), min_size=9, max_size=9),
    others=st.integers(0, 2),
)
def test_a_plan_is_the_best_of_all(chances: list[Chance], steps: list[float], others: int) -> None:
    num_sequences = len(chances) + others
    ratios = [1 + sum(steps[:count]) for count in range(10)]

    def value(counts: tuple[int, ...]) -> float:
        paces = [
            sum(chance.probability**i for i in range(count + 1)) for chance, count in zip(chances, counts, strict=True)
        ]
        return sum(map(log, paces)) - num_sequences * log(ratios[sum(counts)])

    most = [chance.num_tokens for chance in chances]
    best = max(value(counts) for counts in product(*(range(count + 1) for count in most)))
    found = value(tuple(_best(chances, most, ratios, num_sequences)))
    assert found == pytest.approx(best) or (found == 0 and best <= 0.02 * num_sequences + 1e-9)


def measured(num_sequences: int, **seconds: float) -> StepCosts:
    """After four steps of each kind: `d2=…` is what one with two drafts takes."""
    costs = StepCosts()
    for name, each in sorted(seconds.items()):
        for _ in range(4):
            costs.note(num_sequences, int(name[1:]), each)
    return costs


def test_costs_lie_on_lines_between_measurements() -> None:
    costs = measured(2, d0=2.0, d2=2.6, d4=4.0)
    assert costs.ratios(2, 6) == pytest.approx([1.0, 1.15, 1.3, 1.65, 2.0, 2.25, 2.5])
    assert costs.ratios(2, 6, at_most=True)[4:] == pytest.approx([2.0, 2.5, 3.0])
    assert measured(1, d0=1.0, d1=1.1).ratios(1, 3) == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert measured(1, d0=1.0, d1=1.1).ratios(1, 3, at_most=True) == pytest.approx([1.0, 1.1, 2.1, 3.1])
    assert costs.ratios(5, 0) == [1.0]
    assert measured(2, d0=1.0, d2=9.0).ratios(2, 2) == pytest.approx([1.0, 1.5, 2.0]), "two sequences more cost as much"


def test_few_numbers_tell_what_any_number_of_drafts_costs() -> None:
    assert [_rounded(count) for count in range(17)] == list(range(17))
    assert all(abs(_rounded(count) - count) <= count / 16 for count in range(1, 1000))
    assert len({_rounded(count) for count in range(1000)}) < 80
    assert measured(1, d0=1.0, d200=3.0).ratios(1, 208)[_rounded(200)] == pytest.approx(3.0)


def test_nothing_is_drafted_before_a_plain_step_was_measured() -> None:
    costs = StepCosts()
    planner, sure = DraftPlanner(costs), [Chance(4, 0.98, 9.0)]
    assert planner.plan(sure, 1, 8) == [0]
    for seconds in (30.0, 1.0, 5.0, 1.0):  # the first compiles kernels, another waits for other work
        assert planner.plan(sure, 1, 8) == [0]
        costs.note(1, 0, seconds)
    assert planner.plan([Chance(4, 0.2, 9.0)], 1, 8) == [0], "not worth finding out what a draft costs"
    for seconds in (30.0, 1.1, 5.0, 1.1):
        assert planner.plan([Chance(4, 0.6, 0.0), Chance(4, 0.7, 0.0)], 1, 8) == [0, 1], "whatever its credit"
        costs.note(1, 1, seconds)
    assert planner.plan(sure, 1, 8) == [4]
    assert planner.plan(sure, 1, 2) == [2], "no more than there is room for"
    assert planner.plan(sure, 2, 8) == [0]


def test_one_slow_step_says_nothing_and_a_plain_one_comes_again() -> None:
    costs = measured(1, d0=1.0, d3=1.2)
    before = costs.ratios(1, 3)
    costs.note(1, 3, 50.0)
    assert costs.ratios(1, 3) == before
    num_drafted = 0
    while costs.is_known(1):
        costs.note(1, 3, 1.2)
        num_drafted += 1
    assert num_drafted < 40


def test_what_cannot_be_paid_is_not_drafted() -> None:
    planner = DraftPlanner(measured(1, d0=1.0, d1=1.3, d4=2.2))
    plans = {credit: planner.plan([Chance(4, 0.95, credit)], 1, 8) for credit in (0.0, 0.29, 0.31, 0.8, 5.0)}
    assert plans == {0.0: [0], 0.29: [0], 0.31: [1], 0.8: [2], 5.0: [4]}


def test_drafts_pay_for_all_that_they_slow() -> None:
    planner = DraftPlanner(measured(4, d0=1.0, d2=1.2))
    assert planner.price(2, 4) == pytest.approx(0.4)
    record = DraftRecord()
    record.book(num_drawn=1, charge=0.4)
    assert record.credit == pytest.approx(FIRST_CREDIT + EARNING - 0.4)
    record.book(num_drawn=3, charge=0.4)
    assert record.credit == pytest.approx(FIRST_CREDIT + 4 * EARNING + 2 - 0.8)


def test_a_neighbour_with_nothing_to_draft_is_not_slowed_for_a_small_gain() -> None:
    planner = DraftPlanner(measured(2, d0=1.0, d1=1.4))
    assert planner.plan([Chance(1, 0.9, 9.0)], 2, 8) == [0]
    assert planner.plan([Chance(1, 0.9, 9.0)] * 2, 2, 1) == [0, 0]
    planner = DraftPlanner(measured(2, d0=1.0, d1=1.1))
    assert planner.plan([Chance(1, 0.9, 9.0)], 2, 8) == [1]


def test_what_was_too_dear_is_tried_again_rarely() -> None:
    planner = DraftPlanner(measured(1, d0=1.0, d1=3.0))
    plans = [planner.plan([Chance(3, 0.9, 9.0)], 1, 8) for _ in range(1_000)]
    assert {tuple(plan) for plan in plans} == {(0,), (1,)}
    assert 1 <= plans.count([1]) <= 10


def test_a_record_learns_from_what_was_not_drafted_too() -> None:
    record = DraftRecord()
    assert record.probability(Evidence.PAIR) < record.probability(Evidence.SHORT) < record.probability(Evidence.LONG)
    for _ in range(30):
        record.note(Evidence.PAIR, 1, 1)
        record.note(Evidence.LONG, 0, 1)
    assert record.probability(Evidence.PAIR) > 0.85
    assert record.probability(Evidence.LONG) < 0.2
    assert record.probability(Evidence.SHORT) == Evidence.SHORT.value
