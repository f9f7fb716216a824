"""`n` and `best_of`: several generations of one prompt. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from vmm_server.api.gathered import Gathered
from vmm_server.requests import GenerateRequest


def candidates(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """`count` generations of one prompt; with a seed they take seed, seed + 1, …: they differ, and can be repeated."""
    seed = request.sampling.seed
    if seed is None:  # a seed that the model brings is for the first alone, or all would say the same
        return [request, *[replace(request, unset=request.unset - {"seed"})] * (count - 1)]
    return [replace(request, sampling=replace(request.sampling, seed=(seed + index) % 2**64)) for index in range(count)]


def best(answers: Sequence[Gathered], count: int) -> list[Gathered]:
    """The `count` answers with the highest mean log-probability of their tokens, best first.

    An answer without tokens comes last; equals stay in order.
    """
    return sorted(answers, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(answer: Gathered) -> float:
    logprobs = [item.logprob for item in answer.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -inf
