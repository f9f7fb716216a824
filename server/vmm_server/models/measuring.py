"""What a loaded model does a second, as requests have it: through its engine, with its queue and its sampler.

Three figures, each the median of a few short rounds. A first round warms up and tells how many tokens the others may
have: on a fast model a figure takes about a second, on a slow one it is of fewer tokens, and of the first round alone
where that took long. Prompts are random tokens, which no prefix cache knows. Of a model that answers whole, answers are
counted. Encoders of texts are not measured: what they do a second hangs on the length of texts more than on the
placement.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.engine.generation import Generation
from vmm_server.engine.stopping import special_token_ids
from vmm_server.engine.stream import Usage
from vmm_server.errors import GenerationFailed, ShuttingDown
from vmm_server.models.loading import ReadyModel
from vmm_server.models.ready import Sampled

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


@dataclass(frozen=True, slots=True)
class Growth:
    """How an answer grew. Seconds are since it was asked for."""

    first_s: float
    last_s: float
    """Of its first and its last token."""
    num_tokens: int
    """After the first one."""


async def measure(
    ready: ReadyModel | Sampled,
    random: Random,
    *,
    clock: Callable[[], float] = time.perf_counter,
    longest_s: float = LONGEST_S,
) -> Speeds:
    """Measure a model that has nothing else to do. Cancel it at any time: it leaves nothing behind.

    `random` makes the prompts: the same one for all measurements, or prefix caches know them. Raises
    `GenerationFailed` when it gives nothing to measure, and what `Engine.submit` raises.
    """
    if isinstance(ready, Sampled):
        together = await _answers_per_s(ready, 8, clock)
        return Speeds(await _answers_per_s(ready, 1, clock), together, together)
    return await _Meter(ready, random, clock, longest_s).speeds()


async def _answers_per_s(ready: Sampled, num_together: int, clock: Callable[[], float]) -> float:
    """The best of some rounds: what else the machine does makes them slower, never faster. The first one warms up."""
    best, begun = 0.0, clock()
    for number in range(_NUM_ROUNDS + 1):
        started = clock()
        await asyncio.gather(*(ready.try_once() for _ in range(num_together)))
        rate = num_together / max(clock() - started, 1e-9)
        best = rate if number == 1 else max(best, rate)
        if clock() - begun > _AIM_S:
            break
    return best


def tokens_per_s(answers: Sequence[Growth | None]) -> float | None:
    """Of answers that were asked for together; `None` among them never began. `None`: too little to tell.

    Where some answers had to wait for others to end, it is all tokens over the whole time.
    """
    grown = [
        answer for answer in answers if answer is not None and answer.num_tokens and answer.last_s > answer.first_s
    ]
    if not grown:
        return None
    if len(grown) == len(answers) and max(each.first_s for each in grown) < min(each.last_s for each in grown):
        return sum(each.num_tokens / (each.last_s - each.first_s) for each in grown)
    span_s = max(each.last_s for each in grown) - min(each.first_s for each in grown)
    return (sum(each.num_tokens + 1 for each in grown) - 1) / span_s


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
        answers = await self._answers(num_streams, _DECODE_PROMPT_TOKENS, num_tokens)
        if (rate := tokens_per_s([answer.growth for answer in answers])) is None:
            raise GenerationFailed(f"{num_streams} streams gave no two tokens in {self._longest_s:g} s")
        return rate

    async def _prefill(self, num_tokens: int) -> float:
        (answer,) = await self._answers(1, num_tokens, 1)
        usage = answer.usage
        if usage is None or usage.queued_s + usage.prefill_s <= 0:
            raise GenerationFailed(f"no token came after a prompt of {num_tokens} in {self._longest_s:g} s")
        return (num_tokens - usage.num_cached_tokens) / (usage.queued_s + usage.prefill_s)

    async def _answers(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> list["_Answer"]:
        """Answers that were asked for together, and broken off after `longest_s`."""
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        answers: list[_Answer] = []
        readers: list[asyncio.Task[None]] = []
        try:
            with self._engine.preparing():
                for _ in range(num_streams):
                    prompt = self._random.choices(self._token_ids, k=num_prompt_tokens)
                    answers.append(_Answer(self._engine.submit(prompt, sampling, may_draft=False), self._clock))
            readers += [asyncio.create_task(answer.read()) for answer in answers]
            done, _ = await asyncio.wait(readers, timeout=self._longest_s, return_when=asyncio.FIRST_EXCEPTION)
            for reader in done:
                reader.result()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            for answer in answers:
                await answer.generation.aclose()
        return answers


class _Answer:
    """One answer, and when its tokens came."""

    def __init__(self, generation: Generation, clock: Callable[[], float]) -> None:
        self.generation = generation
        self._clock = clock
        self._asked_at = clock()
        self._came: list[tuple[float, int]] = []

    @property
    def usage(self) -> Usage | None:
        """`None`: it was broken off."""
        return self.generation.usage

    @property
    def growth(self) -> Growth | None:
        """By the worker's clock; of one that was broken off, as it was read. `None`: it never began."""
        if (usage := self.usage) is not None:
            first_s = usage.queued_s + usage.prefill_s
            return Growth(first_s, first_s + usage.decode_s, usage.num_generated_tokens - 1)
        if not self._came:
            return None
        (first_s, _), (last_s, _) = self._came[0], self._came[-1]
        return Growth(first_s, last_s, sum(num_tokens for _, num_tokens in self._came[1:]))

    async def read(self) -> None:
        """To its end. Raises `ShuttingDown` when the engine breaks it off, and what it fails with."""
        async for delta in self.generation:
            if delta.finish_reason is FinishReason.ABORT:
                raise ShuttingDown
            if delta.token_ids:
                self._came.append((self._clock() - self._asked_at, len(delta.token_ids)))
