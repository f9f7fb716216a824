"""What goes of a conversation that is too long, and what never does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.prompt.truncation import Room, drop_oldest, shorten
from vmm_server.requests import Message, ToolCall


@dataclass(frozen=True)
class Written:
    """As many tokens as the messages have characters."""

    tokens: Sequence[int]


def write(messages: Sequence[Message]) -> Written:
    return Written(range(sum(len(message.content) for message in messages)))


def left(messages: Sequence[Message], limit: int, max_tokens: int | None = 0) -> str:
    written, kept = shorten(messages, write, Room(limit, max_tokens))
    assert written.tokens == write(kept).tokens
    return " ".join(message.content for message in kept)


def call(content: str) -> Message:
    return Message("assistant", content, tool_calls=(ToolCall("f", "{}", content),))


SYSTEM = Message("system", "ss")
OLD = (Message("user", "u1"), Message("assistant", "a1"), Message("user", "u2"), Message("assistant", "a2"))
AGENT = (
    *(Message("user", "task"), call("c1"), Message("tool", "r1"), call("c2"), Message("tool", "r2")),
    *(Message("tool", "r3"), Message("assistant", "hm"), call("c3"), Message("tool", "r4")),
)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (9, "ss u2 a2 u3"),
        (8, "ss u2 a2 u3"),
        (7, "ss u3"),
        (4, "ss u3"),
        (1, "ss u3"),  # more cannot go
    ],
)
def test_as_few_of_the_oldest_exchanges_go_as_will_do(limit: int, kept: str) -> None:
    assert left((SYSTEM, *OLD, Message("user", "u3")), limit) == kept


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (21, "ss task c2 r2 r3 hm c3 r4"),
        (18, "ss task c2 r2 r3 hm c3 r4"),
        (17, "ss task hm c3 r4"),
        (11, "ss task c3 r4"),
        (1, "ss task c3 r4"),
    ],
)
def test_of_the_last_exchange_calls_go_with_their_results_and_the_task_stays(limit: int, kept: str) -> None:
    assert left((SYSTEM, *AGENT), limit) == kept
    assert left((SYSTEM, *OLD, *AGENT), limit) == kept


def test_users_that_follow_each_other_are_told_apart() -> None:
    assert left([Message("user", text) for text in ("one", "two", "six")], 6) == "two six"


def test_system_messages_stay_where_they_were() -> None:
    assert left((SYSTEM, *OLD[:3], Message("system", "late"), OLD[3], Message("user", "u3")), 1) == "ss late u3"


def test_a_prefill_is_never_dropped() -> None:
    assert left((*OLD, Message("user", "q"), Message("assistant", "Sure,")), 1) == "q Sure,"


@pytest.mark.parametrize(
    ("limit", "max_tokens", "for_prompt"),
    [(800, None, 700), (800, 50, 750), (800, 0, 800), (800, 10**6, 400), (1, None, 1), (7, 100, 4)],
)
def test_room_is_left_for_the_answer(limit: int, max_tokens: int | None, for_prompt: int) -> None:
    assert Room(limit, max_tokens).for_prompt == for_prompt


roles = st.sampled_from(["system", "user", "assistant", "tool"])
plain = st.builds(Message, roles, st.text("x", max_size=5))
calls = st.builds(call, st.text("x", max_size=5))
conversations = st.lists(plain | calls, min_size=1, max_size=30)


@given(conversations, st.integers(1, 160))
def test_what_is_left_is_whole_and_no_less_than_it_has_to_be(messages: list[Message], limit: int) -> None:
    messages = [replace(message, tool_call_id=str(index)) for index, message in enumerate(messages)]  # no two are equal
    renders = 0

    def counted(some: Sequence[Message]) -> Written:
        nonlocal renders
        renders += 1
        return write(some)

    room = Room(limit, 0)
    written, kept = shorten(messages, counted, room)
    dropped = [message for message in messages if message not in kept]
    assert list(kept) == [message for message in messages if message in kept]
    assert kept[-1] == messages[-1]
    users = [message for message in messages if message.role == "user"]
    assert users[-1:] == [message for message in kept if message.role == "user"][-1:]
    assert not any(message.role == "system" for message in dropped)
    spoken = [message for message in kept if message.role != "system"]
    if dropped and users:
        assert spoken[0].role == "user"
    for before, after in pairwise(messages):
        if before.role == "assistant" and after.role == "tool":  # neither is left without the other
            assert (before in kept) == (after in kept)
    assert renders <= 2 + len(messages).bit_length()
    if len(written.tokens) > limit:  # then all went that may go
        assert shorten(messages, write, Room(1, 0))[1] == kept


@given(st.lists(st.integers(), min_size=1), st.integers(0, 300), st.integers(1, 300), st.none() | st.integers(0, 300))
def test_a_text_loses_what_follows_its_beginning(
    tokens: list[int], num_kept: int, limit: int, max_tokens: int | None
) -> None:
    room = Room(limit, max_tokens)
    if len(tokens) <= limit:
        return
    kept = drop_oldest(tokens, num_kept, room)
    assert len(kept) == room.for_prompt
    num_first = min(num_kept, len(kept))
    assert list(kept[:num_first]) == tokens[:num_first]
    assert list(kept[num_first:]) == tokens[len(tokens) - len(kept) + num_first :]
