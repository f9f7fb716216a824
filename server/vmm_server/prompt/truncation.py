"""What goes of a conversation that is too long, the oldest first. Pure.

First whole exchanges go: what a user said and all that followed. When the last one alone is too long, its oldest calls
and other answers go, each call with its results, so that the model still knows what it was asked. System messages, the
last user message and the last message of all never go; nothing is left without its other half, and what is left begins
as the whole began: with the system messages, then a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vmm_server.requests import Message


class Written(Protocol):
    """A prompt, written."""

    @property
    def tokens(self) -> Sequence[int]:
        """Its ids."""


Prompt = TypeVar("Prompt", bound=Written)


@dataclass(frozen=True, slots=True)
class Room:
    """What a prompt may fill of a context."""

    limit: int
    """Tokens of prompt and answer together."""
    max_tokens: int | None
    """Of the answer; `None`: as many as it takes."""

    @property
    def for_prompt(self) -> int:
        """Tokens that a prompt keeps when it has to be cut: it leaves room for the answer, half of it all at most."""
        wanted = self.limit // 8 if self.max_tokens is None else self.max_tokens
        return self.limit - min(wanted, self.limit // 2)


def shorten(
    messages: Sequence[Message], write: Callable[[Sequence[Message]], Prompt], room: Room
) -> tuple[Prompt, Sequence[Message]]:
    """The conversation without as few of its oldest parts as it takes to leave room for the answer.

    When that cannot be had, all goes that may go, and what is left may still be longer than `room.limit`.
    A conversation of n messages is written O(log n) times.
    """
    parts = _droppable(messages)

    def without(num_parts: int) -> tuple[Prompt, Sequence[Message]]:
        gone = {index for part in parts[:num_parts] for index in part}
        kept = [message for index, message in enumerate(messages) if index not in gone]
        return write(kept), kept

    best: tuple[Prompt, Sequence[Message]] | None = None
    fewest, most = min(1, len(parts)), len(parts)
    while fewest < most:
        middle = (fewest + most) // 2
        tried = without(middle)
        if len(tried[0].tokens) <= room.for_prompt:
            best, most = tried, middle
        else:
            fewest = middle + 1
    return without(most) if best is None else best


def drop_oldest(tokens: Sequence[int], num_kept_first: int, room: Room) -> tuple[int, ...]:
    """A text's tokens without those that follow its first `num_kept_first`, so that the answer has room."""
    first = tokens[: min(num_kept_first, room.for_prompt)]
    num_last = room.for_prompt - len(first)
    return (*first, *tokens[len(tokens) - num_last :])


def _droppable(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of messages that go together, in the order in which they may go."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    last_user = users[-1] if users else -1
    exchanges = _parts(messages, range(max(0, last_user)), lambda index: messages[index].role == "user")
    answers = _parts(messages, range(last_user + 1, len(messages)), lambda index: messages[index].role != "tool")
    return exchanges + answers[:-1]


def _parts(messages: Sequence[Message], indices: range, begins: Callable[[int], bool]) -> list[list[int]]:
    """`indices` without system messages, cut before each one that begins a part."""
    parts: list[list[int]] = []
    for index in indices:
        if messages[index].role == "system":
            continue
        if not parts or begins(index):
            parts.append([])
        parts[-1].append(index)
    return parts
