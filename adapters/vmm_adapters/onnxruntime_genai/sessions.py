"""Which idle session a new prompt goes on in. Pure policy: keys and tokens, no runtime.

A session is a KV cache and the tokens in it. It can be continued at its end, or after it is rewound to where one of its
turns began; what it holds up to there must be the beginning of the prompt, token for token. The longest such beginning
is taken, of equals the one used last. What nobody continued the longest is given up first.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reuse:
    """A session taken out of the cache."""

    key: int
    num_tokens: int
    """Its first ones that are the prompt's; at the end of the session or at a turn's start."""


@dataclass(frozen=True, slots=True)
class _Idle:
    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    """Lengths at which a prompt may go on, ascending."""
    size: int


class SessionCache:
    """Idle sessions, by the keys of whoever owns them. Keys that a method returns have left it."""

    def __init__(self, *, max_sessions: int, max_tokens: int) -> None:
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._idle: OrderedDict[int, _Idle] = OrderedDict()
        self.num_tokens = 0
        """That there is memory for in all of them."""

    def __len__(self) -> int:
        return len(self._idle)

    def put(
        self, key: int, token_ids: Sequence[int], turn_starts: Sequence[int], *, size: int | None = None
    ) -> list[int]:
        """Keep a session; the keys of those that had to go, this one among them if it is too large.

        `size` is the tokens it has memory for; `None`: those that it holds.
        """
        ends = sorted({start for start in turn_starts if 0 < start < len(token_ids)} | {len(token_ids)})
        self._idle[key] = idle = _Idle(tuple(token_ids), tuple(ends), len(token_ids) if size is None else size)
        self.num_tokens += idle.size
        return self.make_room(0)

    def take(self, prompt: Sequence[int]) -> Reuse | None:
        """Find the session with the most of the prompt and take it out. A token of the prompt is always left over."""
        best: Reuse | None = None
        for key, idle in reversed(self._idle.items()):
            shared = _common(idle.token_ids, prompt)
            index = bisect_right(idle.ends, min(shared, len(prompt) - 1))
            if index and idle.ends[index - 1] > (best.num_tokens if best else 0):
                best = Reuse(key, idle.ends[index - 1])
        if best is not None:
            self._remove(best.key)
        return best

    def make_room(self, num_tokens: int) -> list[int]:
        """Give up the oldest until the limits hold beside `num_tokens` more; their keys."""
        gone = []
        while self._idle and (len(self) > self._max_sessions or self.num_tokens + num_tokens > self._max_tokens):
            gone.append(next(iter(self._idle)))
            self._remove(gone[-1])
        return gone

    def pop_oldest(self) -> int | None:
        """Give one up."""
        key = next(iter(self._idle), None)
        if key is not None:
            self._remove(key)
        return key

    def pop_all(self) -> list[int]:
        """Give all up."""
        gone = list(self._idle)
        for key in gone:
            self._remove(key)
        return gone

    def _remove(self, key: int) -> None:
        self.num_tokens -= self._idle.pop(key).size


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = min(len(left), len(right))
    return next((index for index in range(length) if left[index] != right[index]), length)
