"""Who leaves for a model, over any tenants: against a search of all sets that could leave."""

from dataclasses import dataclass
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from vmm_server.models.room import Limits, Need, Site, find_room, in_the_way, may_find_room, no_room

MB = 1 << 20


@dataclass(frozen=True)
class Model:
    name: str
    size_bytes: int
    last_used: float
    num_leases: int = 0
    is_pinned: bool = False


@st.composite
def tenants(draw: st.DrawFn) -> list[Model]:
    times = draw(st.lists(st.integers(0, 100), max_size=5, unique=True))
    return [
        Model(f"m{time}", draw(st.integers(1, 50)), time, draw(st.integers(0, 1)), draw(st.booleans()))
        for time in times
    ]


needs = st.builds(lambda least, more: Need(least, least + more), st.integers(1, 60), st.integers(0, 60))
limits = st.builds(Limits, st.integers(1, 120), st.integers(0, 4))


def fits(staying: list[Model], num_bytes: int, limits: Limits) -> bool:
    too_many = limits.num_models and len(staying) + 1 > limits.num_models
    return not too_many and sum(model.size_bytes for model in staying) + num_bytes <= limits.num_bytes


@given(tenants(), needs, limits)
def test_room_is_found_whenever_there_is_some_and_only_idle_models_leave(
    models: list[Model], need: Need, limits: Limits
) -> None:
    room = find_room(Site(need, limits, models))
    idle = [model for model in models if not (model.num_leases or model.is_pinned)]
    possible = [
        [model for model in models if model not in gone]
        for count in range(len(idle) + 1)
        for gone in combinations(idle, count)
    ]
    if room is None:
        assert not any(fits(staying, need.least_bytes, limits) for staying in possible)
        return
    assert set(room.leaving) <= set(idle)
    staying = [model for model in models if model not in room.leaving]
    assert need.least_bytes <= room.num_bytes <= need.wanted_bytes
    assert fits(staying, room.num_bytes, limits)
    most = max(limits.num_bytes - sum(model.size_bytes for model in each) for each in possible)
    assert room.num_bytes >= min(need.wanted_bytes, most), "it gets all that could be had"


@given(tenants(), needs, limits)
def test_no_more_leave_than_needed_and_the_least_recently_used_first(
    models: list[Model], need: Need, limits: Limits
) -> None:
    room = find_room(Site(need, limits, models))
    if room is None or not room.leaving:
        return
    stays = [m for m in models if m not in room.leaving and not (m.num_leases or m.is_pinned)]
    assert list(room.leaving) == sorted(room.leaving, key=lambda model: model.last_used)
    assert all(gone.last_used < other.last_used for gone in room.leaving for other in stays)
    last = room.leaving[-1]
    with_last = [model for model in models if model not in room.leaving or model is last]
    assert not fits(with_last, room.num_bytes, limits)


@given(tenants(), needs, limits)
def test_waiting_is_of_use_when_only_models_in_use_are_in_the_way(
    models: list[Model], need: Need, limits: Limits
) -> None:
    unused = [Model(m.name, m.size_bytes, m.last_used, 0, m.is_pinned) for m in models]
    assert may_find_room(Site(need, limits, models)) == (find_room(Site(need, limits, unused)) is not None)


def test_the_refusal_names_what_is_needed_what_there_is_and_who_holds_it() -> None:
    held = [
        Model("busy:latest", 100 * MB, 0.0, num_leases=2),
        Model("kept:latest", 200 * MB, 0.0, is_pinned=True),
        Model("idle:latest", 50 * MB, 0.0),
    ]
    need = Need(300 * MB + 1, 300 * MB + 1)
    assert no_room(Site(need, Limits(500 * MB), held)) == (
        "it needs 301 MB, 150 of 500 MB are free; held by busy:latest (100 MB, in use), kept:latest (200 MB, pinned)"
    )
    assert no_room(Site(need, Limits(500 * MB, 3), held)) == (
        "it needs 301 MB, 150 of 500 MB are free, and 3 of 3 models are loaded; "
        "held by busy:latest (100 MB, in use), kept:latest (200 MB, pinned)"
    )
    assert no_room(Site(need, Limits(100 * MB), [])) == "it needs 301 MB, 100 of 100 MB are free"


@given(tenants(), needs, limits)
def test_who_is_in_the_way_is_enough_and_no_more_than_needed(models: list[Model], need: Need, limits: Limits) -> None:
    leaving = in_the_way(Site(need, limits, models))
    assert not any(model.is_pinned for model in leaving)
    staying = [model for model in models if model not in leaving]
    assert fits(staying, need.least_bytes, limits) == may_find_room(Site(need, limits, models))
    if leaving:
        assert not fits([*staying, leaving[-1]], need.least_bytes, limits)
        assert all(model.last_used >= leaving[-1].last_used for model in staying if not model.is_pinned)


@given(tenants(), tenants(), needs, limits)
def test_models_in_other_memories_leave_for_their_number_only(
    models: list[Model], others: list[Model], need: Need, limits: Limits
) -> None:
    elsewhere = [Model(f"other {m.name}", m.size_bytes, m.last_used, m.num_leases, m.is_pinned) for m in others]
    site = Site(need, limits, models, elsewhere)
    room = find_room(site)
    uncounted = find_room(Site(need, Limits(limits.num_bytes), models))
    num_staying = sum(bool(m.num_leases or m.is_pinned) for m in [*models, *elsewhere])
    is_crowded = bool(limits.num_models) and num_staying >= limits.num_models
    assert (room is None) == (uncounted is None or is_crowded)
    if room is not None and uncounted is not None:
        assert set(uncounted.leaving) <= set(room.leaving)
        more = set(room.leaving) - set(uncounted.leaving)
        num_left = len(models) + len(elsewhere) - len(room.leaving)
        assert not limits.num_models or num_left < limits.num_models
        assert not more or num_left == limits.num_models - 1, "no more than needed"
        stays = [m for m in [*models, *elsewhere] if m not in room.leaving and not (m.num_leases or m.is_pinned)]
        assert all(gone.last_used <= other.last_used for gone in more for other in stays)
