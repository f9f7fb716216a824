"""When a request would get its first token, told from what is ahead of it. Pure.

What is ahead is what its turn comes after (`fairness`): all of a better priority, its own tenant's, and of each other
tenant at most what that one is served meanwhile, which is the weights' ratio times as much. That work takes the time
which such work took of late (`Pace`). Nothing is foretold before anything was measured.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from vmm_server.errors import DeadlineExceeded, DeadlineUnreachable

MAX_RETRY_S = 60
_NUM_SAMPLES = 15
_MIN_PROMPT = 16  # tokens in a step below which what they cost is not told from what the step costs


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that is not over: whose it is, and what is to be computed until its answer can begin."""

    priority: int
    tenant: str
    weight: float
    work: int
    """Tokens of its prompt, or whatever else it is measured in."""
    is_running: bool = False


class Pace:
    """What steps and answers took of late. One thread writes; any may read.

    Medians of the last few: one slow step, which compiled a kernel, says nothing.
    """

    def __init__(self) -> None:
        self.answer_s = 0.0
        """Running mean of the time from an answer's first step to its end; 0: none has ended."""
        self._steps_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self._prompt_token_s: deque[float] = deque(maxlen=_NUM_SAMPLES)

    @property
    def step_s(self) -> float:
        """A step in which nothing but decoding is done; 0: not known."""
        return _median(self._steps_s)

    def note_step(self, num_prompt_tokens: int, seconds: float) -> None:
        """A step of which so many tokens were of prompts."""
        if num_prompt_tokens == 0:
            self._steps_s.append(seconds)
        elif num_prompt_tokens >= _MIN_PROMPT:
            self._prompt_token_s.append(max(0.0, seconds - self.step_s) / num_prompt_tokens)

    def note_answer(self, seconds: float) -> None:
        """An answer that is over."""
        self.answer_s += (0.2 if self.answer_s else 1.0) * (seconds - self.answer_s)

    def prompt_s(self, num_tokens: int, step_tokens: int) -> float:
        """To compute a prompt, `step_tokens` in a step."""
        return num_tokens * _median(self._prompt_token_s) + ceil(num_tokens / step_tokens) * self.step_s

    def place_s(self, num_running: int) -> float:
        """Until one of those that run is over, if they end at their mean time, one after the other."""
        return self.answer_s / max(1, num_running)


def first_token_s(mine: Claim, others: Collection[Claim], pace: Pace, *, max_sequences: int, step_tokens: int) -> float:
    """Seconds until a new request would get its first token; what is not measured yet takes none."""
    others = [each for each in others if each.priority <= mine.priority]  # what is worse makes way
    prompts_s = pace.prompt_s(ceil(ahead(mine, others, _work)), step_tokens)
    num_free = max_sequences - sum(each.is_running for each in others)
    num_leaving = ahead(mine, others, _is_waiting) - num_free
    if num_leaving <= 0:
        return prompts_s
    places_s = num_leaving * pace.place_s(max_sequences)
    return max(prompts_s, places_s + pace.prompt_s(mine.work, step_tokens))


def ahead(mine: Claim, others: Collection[Claim], amount: Callable[[Claim], int]) -> float:
    """What is served until `mine` is, itself included."""
    better = sum(amount(each) for each in others if each.priority < mine.priority)
    own = amount(mine)
    tenants: dict[str, float] = {}
    weights: dict[str, float] = {}
    for each in others:
        if each.priority != mine.priority:
            continue
        if each.tenant == mine.tenant:
            own += amount(each)
        else:
            tenants[each.tenant] = tenants.get(each.tenant, 0) + amount(each)
            weights[each.tenant] = each.weight
    return better + own + sum(min(left, own * weights[name] / mine.weight) for name, left in tenants.items())


def check_deadline(left_s: float, expected_s: float) -> None:
    """Raises `DeadlineExceeded` when no time is left, and `DeadlineUnreachable` when more is needed."""
    if left_s <= 0:
        raise DeadlineExceeded
    if expected_s > left_s:
        raise DeadlineUnreachable(
            timeout_ms=round(left_s * 1000),
            expected_ms=round(expected_s * 1000),
            retry_after_s=retry_after_s(expected_s - left_s),
        )


def retry_after_s(seconds: float) -> int:
    """Whole seconds to tell a client, at least one."""
    return min(MAX_RETRY_S, max(1, ceil(seconds)))


def _work(claim: Claim) -> int:
    return claim.work


def _is_waiting(claim: Claim) -> int:
    return int(not claim.is_running)


def _median(samples: Sequence[float]) -> float:
    return median(tuple(samples)) if samples else 0.0
