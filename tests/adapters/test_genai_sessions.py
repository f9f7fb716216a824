"""Which idle session a prompt goes on in: never one whose tokens are not the prompt's."""

from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.onnxruntime_genai.sessions import Reuse, SessionCache

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8)
"""Few different ones, so that texts begin alike."""
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), TOKENS, st.lists(st.integers(-1, 9), max_size=3)),
        st.tuples(st.just("take"), TOKENS),
        st.tuples(st.just("room"), st.integers(0, 30)),
        st.tuples(st.just("pop")),
    ),
    max_size=30,
)


def ends_of(token_ids: list[int], starts: list[int]) -> set[int]:
    return {start for start in starts if 0 < start < len(token_ids)} | {len(token_ids)}


@given(STEPS, st.integers(0, 4), st.integers(0, 20))
def test_what_is_taken_is_the_longest_beginning_of_the_prompt(steps: list, max_sessions: int, max_tokens: int) -> None:
    cache = SessionCache(max_sessions=max_sessions, max_tokens=max_tokens)
    held: dict[int, tuple[list[int], set[int]]] = {}
    for key, (what, *arguments) in enumerate(steps):
        if what == "put":
            token_ids, starts = arguments
            held[key] = token_ids, ends_of(token_ids, starts)
            gone = cache.put(key, token_ids, starts)
            assert gone == sorted(gone), "the oldest first"
            assert not gone or gone == list(held)[: len(gone)]
            for each in gone:
                del held[each]
            assert len(held) <= max_sessions
        elif what == "take":
            (prompt,) = arguments
            usable = {
                (end, each)
                for each, (token_ids, ends) in held.items()
                for end in ends
                if end < len(prompt) and token_ids[:end] == prompt[:end]
            }
            taken = cache.take(prompt)
            if not usable:
                assert taken is None
            else:
                longest, newest = max(usable)
                assert taken == Reuse(newest, longest)
                del held[newest]
        elif what == "room":
            for each in cache.make_room(arguments[0]):
                del held[each]
            assert not held or sum(len(token_ids) for token_ids, _ in held.values()) + arguments[0] <= max_tokens
        else:
            assert cache.pop_oldest() == next(iter(held), None)
            held.pop(next(iter(held), -1), None)
        assert len(cache) == len(held)
        assert cache.num_tokens == sum(len(token_ids) for token_ids, _ in held.values())
    assert cache.pop_all() == list(held)
    assert cache.num_tokens == 0


def test_a_chats_next_turn_goes_on_where_it_was() -> None:
    cache = SessionCache(max_sessions=4, max_tokens=100)
    cache.put(1, [5, 6, 7, 8], [0])
    cache.put(2, [5, 6], [0])
    assert cache.take([5, 6, 7, 8, 9]) == Reuse(1, 4)
    assert cache.take([5, 6, 7, 8, 9]) == Reuse(2, 2)
    assert cache.take([5, 6, 7, 8, 9]) is None


def test_a_prompt_that_is_all_there_needs_a_token_to_compute() -> None:
    cache = SessionCache(max_sessions=4, max_tokens=100)
    cache.put(1, [5, 6, 7], [0, 2])
    assert cache.take([5, 6, 7]) == Reuse(1, 2)


def test_the_oldest_goes_first() -> None:
    cache = SessionCache(max_sessions=2, max_tokens=100)
    assert cache.put(1, [1], []) == []
    assert cache.put(2, [2], []) == []
    assert cache.put(3, [3], []) == [1]
