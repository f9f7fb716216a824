"""What a loaded text model does a second, as requests have it: through its engine, with its queue and its sampler.

Three figures, each the median of a few short rounds. A first round warms up and tells how many tokens the others may
have: on a fast model a figure takes about a second, on a slow one it is of fewer tokens, and of the first round alone
where that took long. Prompts are random tokens, which no prefix cache knows. Encoders are not measured: what they do a
second hangs on the length of texts more than on the placement.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from statistics import median

from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.engine.engine import Generation
from vmm_server.engine.stopping import special_token_ids
from vmm_server.errors import GenerationFailed, ShuttingDown
from vmm_server.models.loading import ReadyModel

PREFILL_TOKENS = 512
LONGEST_S = 10.0
"""What a round may take; it is then broken off and judged by what came of it."""
_AIM_S = 1.5
"""A figure that took longer gets no more rounds."""
_NUM_ROUNDS = 3
_DECODE_PROMPT_TOKENS = 16
_DECODE_TOKENS = (8, 64)
"""Of an answer: in the first round, and at most."""
_FIRST_PREFILL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens/s, as in `Profile`."""

    decode_1: float
    decode_8: float
    prefill: float


Arrivals = Sequence[tuple[float, int]]
"""When tokens of an answer came, and how many."""


async def measure(
    ready: ReadyModel, random: Random, *, clock: Callable[[], float] = time.perf_counter, longest_s: float = LONGEST_S
) -> Speeds:
    """Measure a model that has nothing else to do. Cancel it at any time: it leaves nothing behind.

    `random` makes the prompts: the same one for all measurements, or prefix caches know them. Raises
    `GenerationFailed` when it gives nothing to measure, and what `Engine.submit` raises.
    """
    return await _Meter(ready, random, clock, longest_s).speeds()


def tokens_per_s(answers: Sequence[Arrivals]) -> float | None:
    """Of all answers together, without what came before the first token of each. `None`: too little to tell.

    Where some answers had to wait for others to end, it is all tokens over the whole time.
    """
    begun = [answer for answer in answers if answer]
    if not begun:
        return None
    first, last = [answer[0][0] for answer in begun], [answer[-1][0] for answer in begun]
    if len(begun) == len(answers) and max(first) < min(last):
        return sum(sum(num for _, num in answer[1:]) / (answer[-1][0] - answer[0][0]) for answer in begun)
    span = max(last) - min(first)
    num_tokens = sum(num for answer in begun for _, num in answer) - begun[first.index(min(first))][0][1]
    return num_tokens / span if span > 0 and num_tokens else None


class _Meter:
    """One measurement."""

    def __init__(self, ready: ReadyModel, random: Random, clock: Callable[[], float], longest_s: float) -> None:
        self._engine = ready.engine
        self._random = random
        self._clock = clock
        self._longest_s = longest_s
        special = special_token_ids(ready.tokenizer)
        # a model has more ids than its tokeniser knows, and special ones may stand for images
        num_ids = min(ready.vocab_size, ready.tokenizer.get_vocab_size())
        self._token_ids = [token_id for token_id in range(num_ids) if token_id not in special]

    async def speeds(self) -> Speeds:
        """All figures."""
        room = self._engine.context_length - _DECODE_PROMPT_TOKENS
        if room < 2:
            raise GenerationFailed(f"a context of {self._engine.context_length} tokens is too short to measure")
        first, most = (min(num_tokens, room) for num_tokens in _DECODE_TOKENS)
        return Speeds(
            decode_1=await self._rate(lambda num_tokens: self._decode(1, num_tokens), first, most, 0.5),
            decode_8=await self._rate(lambda num_tokens: self._decode(8, num_tokens), first, most, 0.5 / 8),
            prefill=await self._rate(
                self._prefill, _FIRST_PREFILL_TOKENS, min(PREFILL_TOKENS, self._engine.context_length - 1), 2.5
            ),
        )

    async def _rate(self, run: Callable[[int], Awaitable[float]], first: int, most: int, round_s: float) -> float:
        """The median of `run(number of tokens)`: as many tokens as come in `round_s` at the first round's rate."""
        started = self._clock()
        rate = await run(min(first, most))
        if self._clock() - started > _AIM_S:
            return rate
        num_tokens = max(min(first, most), min(most, int(rate * round_s)))
        started, rates = self._clock(), [await run(num_tokens)]
        while len(rates) < _NUM_ROUNDS and self._clock() - started < _AIM_S:
            rates.append(await run(num_tokens))
        return median(rates)

    async def _decode(self, num_streams: int, num_tokens: int) -> float:
        answers = [list[tuple[float, int]]() for _ in range(num_streams)]
        await self._run(_DECODE_PROMPT_TOKENS, num_tokens, answers)
        if (rate := tokens_per_s(answers)) is None:
            raise GenerationFailed(f"{num_streams} streams gave no two tokens in {self._longest_s:g} s")
        return rate

    async def _prefill(self, num_tokens: int) -> float:
        (generation,) = await self._run(num_tokens, 1, [[]])
        usage = generation.usage
        if usage is None or usage.queued_s + usage.prefill_s <= 0:
            raise GenerationFailed(f"no token came after a prompt of {num_tokens} in {self._longest_s:g} s")
        return (num_tokens - usage.num_cached_tokens) / (usage.queued_s + usage.prefill_s)

    async def _run(
        self, num_prompt_tokens: int, num_tokens: int, answers: Sequence[list[tuple[float, int]]]
    ) -> list[Generation]:
        """Fill `answers`, all at the same time, for `longest_s` at most."""
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        generations: list[Generation] = []

        async def read(generation: Generation, answer: list[tuple[float, int]]) -> None:
            async for delta in generation:
                if delta.token_ids:
                    answer.append((self._clock(), len(delta.token_ids)))
                if delta.finish_reason is FinishReason.ABORT:
                    raise ShuttingDown

        try:
            with self._engine.preparing():
                for _ in answers:
                    prompt = self._random.choices(self._token_ids, k=num_prompt_tokens)
                    generations.append(self._engine.submit(prompt, sampling))
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*map(read, generations, answers)), self._longest_s)
        finally:
            for generation in generations:
                await generation.aclose()
        return generations
