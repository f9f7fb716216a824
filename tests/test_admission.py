"""Bounds and quotas: who gets in, who is told when to come again, and whether that is true."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.admission import MAX_PAUSE_S, Admission, Quota
from vmm_server.errors import Overloaded, RateLimited
from vmm_server.keys import Key

KEY = Key("key-0123456789ab", "a", "vmm-abc", "0" * 64, datetime(2026, 1, 1, tzinfo=UTC), frozenset({"inference"}))
OTHER = replace(KEY, id="key-ba9876543210", name="b")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, max_pending: int = 1000) -> Admission:
    return Admission(max_pending=max_pending, clock=clock or Clock())


def ask(admission: Admission, key: Key | None) -> None:
    with admission.enter(key):
        pass


def left(admission: Admission, key: Key) -> dict[str, Quota]:
    return {quota.name: quota for quota in admission.quotas(key)}


def test_what_is_under_way_is_bounded_for_all_together() -> None:
    door = admission(max_pending=2)
    with door.enter(KEY), door.enter(None):
        for key in (KEY, OTHER, None):
            with pytest.raises(Overloaded) as caught, door.enter(key):
                raise AssertionError
            assert caught.value.retry_after_s >= 1
        assert door.stats.num_pending == 2
    ask(door, None)
    assert door.stats.num_pending == 0
    assert door.stats.num_rejected == {("max_pending", each): 1 for each in (KEY.id, OTHER.id, "")}
    assert door.stats.num_admitted == {KEY.id: 1, "": 2}


def test_a_place_is_free_again_after_a_failure() -> None:
    door = admission(max_pending=1)
    with pytest.raises(ValueError, match="broke"), door.enter(KEY):
        raise ValueError("broke")
    ask(door, KEY)


def test_one_keys_requests_at_a_time_are_bounded_and_no_other_keys() -> None:
    door, key = admission(), replace(KEY, max_concurrent=2)
    with door.enter(key), door.enter(key):
        with pytest.raises(RateLimited, match="max_concurrent is 2") as caught, door.enter(key):
            raise AssertionError
        assert caught.value.retry_after_s >= 1
        ask(door, replace(OTHER, max_concurrent=2))
        ask(door, None)
    ask(door, key)
    assert door.stats.num_rejected == {("max_concurrent", KEY.id): 1}


def test_the_pause_is_the_mean_duration_over_what_runs() -> None:
    clock = Clock()
    door = admission(clock, max_pending=4)
    for _ in range(200):
        with door.enter(None):
            clock.now += 20.0
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(door.enter(None))
        with pytest.raises(Overloaded) as caught:
            ask(door, None)
    assert caught.value.retry_after_s == 5


def test_a_connection_that_stays_open_says_nothing_of_how_long_requests_take() -> None:
    clock = Clock()
    door = admission(clock, max_pending=1)
    with door.enter(None, lasts=True):
        clock.now += 1e6
        with pytest.raises(Overloaded) as caught:
            ask(door, None)
    assert caught.value.retry_after_s == 1
    for _ in range(9):
        with door.enter(None):
            clock.now += 1e6
    with door.enter(None), pytest.raises(Overloaded) as caught:
        ask(door, None)
    assert caught.value.retry_after_s == MAX_PAUSE_S


def test_a_minutes_requests_may_come_at_once_and_the_rest_at_an_even_pace() -> None:
    clock = Clock()
    door, key = admission(clock), replace(KEY, requests_per_minute=6)
    for remaining in range(5, -1, -1):
        ask(door, key)
        assert left(door, key)["requests"] == Quota("requests", 6, remaining, (6 - remaining) * 10.0)
    with pytest.raises(RateLimited, match="requests_per_minute is 6") as caught:
        ask(door, key)
    assert caught.value.retry_after_s == 10
    clock.now += 9.9
    with pytest.raises(RateLimited) as caught:
        ask(door, key)
    assert caught.value.retry_after_s == 1  # what was refused before has taken nothing
    clock.now += 0.1
    ask(door, key)
    clock.now += 3600
    assert left(door, key)["requests"].remaining == 6


def test_tokens_are_taken_afterwards_and_what_is_overdrawn_is_waited_for() -> None:
    clock = Clock()
    door, key = admission(clock), replace(KEY, tokens_per_minute=600)
    with door.enter(key):
        ask(door, key)  # nobody knows yet what the first one takes
        door.charge(key, 1500)
    assert left(door, key)["tokens"].remaining == 0
    with pytest.raises(RateLimited, match="tokens_per_minute is 600") as caught:
        ask(door, key)
    assert caught.value.retry_after_s == 91  # 900 below zero, and one to begin with
    clock.now += 91
    ask(door, key)
    ask(door, OTHER)
    door.charge(OTHER, 7)
    door.charge(None, 3)
    assert door.stats.num_tokens == {key.id: 1500, OTHER.id: 7, "": 3}


def test_a_key_without_limits_has_no_quotas() -> None:
    door = admission()
    assert left(door, KEY) == {}
    assert not list(door.quotas(None))


def test_a_changed_limit_holds_at_once() -> None:
    clock = Clock()
    door = admission(clock)
    for _ in range(50):
        ask(door, KEY)
    few = replace(KEY, requests_per_minute=60)
    ask(door, few)
    assert left(door, replace(KEY, requests_per_minute=10))["requests"].remaining == 10
    clock.now += 60
    assert left(door, replace(KEY, requests_per_minute=100))["requests"].remaining == 100


limits = st.none() | st.integers(1, 10**12)


@given(
    key=st.builds(replace, st.just(KEY), requests_per_minute=limits, tokens_per_minute=limits),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**9)), max_size=60),
)
def test_who_comes_again_after_the_pause_is_let_in(key: Key, steps: Sequence[tuple[float, int]]) -> None:
    """And is let in no more often than the limit allows, give or take the minute's worth at the start."""
    clock = Clock()
    door = admission(clock)
    num_in = 0
    for pause_s, num_tokens in steps:
        clock.now += pause_s
        try:
            ask(door, key)
        except RateLimited as error:
            clock.now += error.retry_after_s
            ask(door, key)
        num_in += 1
        door.charge(key, num_tokens)
        for quota in door.quotas(key):
            assert 0 <= quota.remaining <= quota.limit
            assert 0 <= quota.full_in_s < math.inf
    if key.requests_per_minute is not None:
        assert num_in <= key.requests_per_minute * (1 + (clock.now - 1000) / 60) + 1e-3
