"""What is before a request, how long that takes, and what is refused for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.engine.forecast import Claim, Pace, ahead, check_deadline, first_token_s, retry_after_s
from vmm_server.errors import DeadlineExceeded, DeadlineUnreachable

CLAIMS = st.lists(
    st.builds(
        Claim,
        priority=st.integers(-1, 1),
        tenant=st.sampled_from("abc"),
        weight=st.just(1.0),
        work=st.integers(0, 1000),
        is_running=st.booleans(),
    ),
    max_size=12,
)


def claim(work: int, tenant: str = "me", priority: int = 0, weight: float = 1.0, *, is_running: bool = False) -> Claim:
    return Claim(priority, tenant, weight, work, is_running)


def work_ahead(mine: Claim, *others: Claim) -> float:
    return ahead(mine, others, lambda each: each.work)


def paced(*, step_s: float = 0.1, token_s: float = 0.001, answer_s: float = 0.0) -> Pace:
    """After some steps."""
    pace = Pace()
    for _ in range(5):
        pace.note_step(0, step_s)
        pace.note_step(100, step_s + 100 * token_s)
        if answer_s:
            pace.note_answer(answer_s)
    return pace


def test_what_is_better_is_before_and_what_is_worse_is_not() -> None:
    assert work_ahead(claim(10), claim(7, "x", -1), claim(500, "x", 1)) == 17


def test_a_tenants_own_requests_are_before() -> None:
    assert work_ahead(claim(10), claim(7), claim(30)) == 47


def test_another_tenant_is_served_as_much_as_its_weight_says_and_no_more_than_it_wants() -> None:
    assert work_ahead(claim(10), claim(5000, "x"), claim(3, "y")) == 10 + 10 + 3
    assert work_ahead(claim(10), claim(5000, "x", weight=3.0)) == 10 + 30
    assert work_ahead(claim(10, weight=2.0), claim(5000, "x")) == 10 + 5


@given(st.integers(0, 1000), CLAIMS, CLAIMS)
def test_more_work_is_never_less_before(work: int, some: list[Claim], more: list[Claim]) -> None:
    mine = claim(work, "a")
    before = work_ahead(mine, *some)
    assert work <= before <= work_ahead(mine, *some, *more)
    assert before <= work + sum(each.work for each in some)


def test_nothing_is_foretold_before_anything_was_measured() -> None:
    others = [claim(10_000) for _ in range(50)]
    assert first_token_s(claim(500), others, Pace(), max_sequences=4, step_tokens=512) == 0


def test_prompts_take_their_tokens_and_their_steps() -> None:
    expected = first_token_s(claim(500), [claim(700)], paced(), max_sequences=4, step_tokens=512)
    assert expected == pytest.approx(1200 * 0.001 + 3 * 0.1)


def test_a_slow_step_says_nothing() -> None:
    pace = paced()
    pace.note_step(100, 60.0)
    pace.note_step(0, 60.0)
    assert pace.prompt_s(512, 512) == pytest.approx(0.1 + 0.512)


def test_a_request_waits_for_places() -> None:
    pace = paced(step_s=0.0, token_s=0.0, answer_s=8.0)
    running = [claim(0, is_running=True) for _ in range(4)]
    waiting = [claim(0) for _ in range(2)]

    def expected(*others: Claim, priority: int = 0) -> float:
        return first_token_s(claim(0, priority=priority), others, pace, max_sequences=4, step_tokens=512)

    assert expected(*running[:3]) == 0
    assert expected(*running) == pytest.approx(8 / 4)
    assert expected(*running, *waiting) == pytest.approx(3 * 8 / 4)
    assert expected(*running, *waiting, priority=-1) == 0, "it takes their places"


def test_the_first_answer_counts_whole() -> None:
    pace = Pace()
    pace.note_answer(10.0)
    assert pace.place_s(1) == 10


def test_a_deadline_is_refused_only_where_it_cannot_be_met() -> None:
    check_deadline(1.0, 1.0)
    with pytest.raises(DeadlineExceeded):
        check_deadline(0.0, 0.0)
    with pytest.raises(DeadlineUnreachable) as refused:
        check_deadline(1.0, 3.5)
    assert "in about 3500 ms, and 1000 are left" in refused.value.message
    assert refused.value.retry_after_s == 3


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1), (1.2, 2), (5000.0, 60)])
def test_clients_are_told_whole_seconds(seconds: float, told: int) -> None:
    assert retry_after_s(seconds) == told
