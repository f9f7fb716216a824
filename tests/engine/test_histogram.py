"""Counting values by size, and reading counts as Prometheus reads them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.engine.histogram import (
    COUNTS,
    FIRST_TOKEN_S,
    INTER_TOKEN_S,
    OUTPUT_TOKEN_S,
    QUEUE_S,
    Distribution,
    Histogram,
    summed,
)

BOUNDS = (1.0, 2.0, 5.0)
values = st.lists(st.floats(0, 10), max_size=50)


def counted(given: list[float]) -> Distribution:
    histogram = Histogram(BOUNDS)
    for value in given:
        histogram.add(value)
    return histogram.distribution


@given(values)
def test_each_value_is_below_its_bound_and_above_the_one_before(given: list[float]) -> None:
    edges = (float("-inf"), *BOUNDS, float("inf"))
    found = counted(given)
    assert found.counts == tuple(sum(low < value <= high for value in given) for low, high in pairwise(edges))
    assert found.count == len(given)
    assert found.total == pytest.approx(sum(given))


@given(values, values)
def test_what_came_since_a_look_is_the_difference(before: list[float], since: list[float]) -> None:
    both = counted([*before, *since])
    assert (both - counted(before)).counts == counted(since).counts
    assert (counted(before) + counted(since)).counts == both.counts
    assert summed([counted(before), counted(since)]) == counted(before) + counted(since)


def test_counting_that_began_anew_counts_as_it_is() -> None:
    assert counted([1.5]) - counted([0.5, 3.0]) == counted([1.5])


@given(values.filter(bool), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_that_it_falls_into(given: list[float], part: float) -> None:
    found = counted(given)
    quantile = found.quantile(part)
    assert quantile is not None
    below = sum(count for bound, count in zip(BOUNDS, found.counts, strict=False) if bound < quantile)
    assert below <= part * len(given) + 1e-9
    assert quantile == BOUNDS[-1] or sum(value <= quantile or value <= 5 for value in given) >= part * len(given) - 1e-9


def test_quantiles_as_prometheus_reads_them() -> None:
    found = Distribution(BOUNDS, (10, 10, 0, 0), 0.0)
    assert found.quantile(0.25) == 0.5
    assert found.quantile(0.75) == 1.5
    assert Distribution(BOUNDS, (0, 0, 0, 3), 0.0).quantile(0.5) == 5.0
    assert counted([]).quantile(0.5) is None
    assert summed([]) is None


@pytest.mark.parametrize("bounds", [COUNTS, FIRST_TOKEN_S, INTER_TOKEN_S, OUTPUT_TOKEN_S, QUEUE_S])
def test_bounds_grow(bounds: tuple[float, ...]) -> None:
    assert all(low < high for low, high in pairwise(bounds))
