"""Speeds of a loaded model: the arithmetic, the number of tokens spent on it, and what is left behind."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
from tokenizers import Tokenizer

from vmm_adapters.echo import END, VOCAB_SIZE, EchoRunner, Gate, write_echo_model
from vmm_adapters.echo_backend import EchoBackend
from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import GenerationFailed, ShuttingDown
from vmm_server.models.loading import ReadyModel
from vmm_server.models.measuring import Growth, Speeds, measure, tokens_per_s


@pytest.mark.parametrize(
    ("answers", "rate"),
    [
        ([Growth(1, 3, 2)], 1),
        ([Growth(1, 2, 4)], 4),
        ([Growth(1, 3, 2), Growth(1.5, 3.5, 4)], 3),
        # one after the other: all of the time counts, and the first token of the second
        ([Growth(1, 2, 1), Growth(3, 5, 1)], 3 / 4),
        # one never began
        ([Growth(1, 3, 1), None], 1 / 2),
        ([Growth(1, 1, 0)], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_rates_of_answers(answers: list[Growth | None], rate: float | None) -> None:
    assert tokens_per_s(answers) == (None if rate is None else pytest.approx(rate))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Whole:
    """Answers whole: `first_s` for the first time, then `step_s` for as many as are asked for at a time."""

    clock: Clock
    step_s: float
    first_s: float = 30.0
    num_tried: int = 0
    _num_waiting: int = 0
    placement: Any = None
    context_length: int = 0
    memory_bytes: int = 0
    load: Any = None
    failure: str | None = None
    stats: Any = None

    async def aclose(self) -> None: ...

    async def try_once(self) -> None:
        self._num_waiting += 1
        await asyncio.sleep(0)
        if self._num_waiting:  # the first to come back computes for all
            self.clock.now += self.step_s if self.num_tried else self.first_s
            self.num_tried += self._num_waiting
            self._num_waiting = 0


@pytest.mark.parametrize("step_s", [0.01, 2.0])
def test_what_answers_whole_is_tried_alone_and_eight_together(step_s: float) -> None:
    clock = Clock()
    whole = Whole(clock, step_s)
    speeds = asyncio.run(measure(whole, Random(0), clock=clock))
    # the very first round took its time, and was the only one of its kind
    assert speeds.decode_8 == pytest.approx(8 / 30)
    assert speeds == Speeds(pytest.approx(1 / step_s), speeds.decode_8, speeds.decode_8)
    again = asyncio.run(measure(whole, Random(0), clock=clock))
    assert again == Speeds(pytest.approx(1 / step_s), pytest.approx(8 / step_s), pytest.approx(8 / step_s))


@dataclass
class FakeEngine:
    """Draws a token for every stream each `step_s`, after `prefill_s` a prompt token."""

    clock: Clock
    step_s: float
    prefill_s: float
    context_length: int = 4096
    submitted: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    open: list["FakeGeneration"] = field(default_factory=list)
    error: Exception | None = None
    hangs_after: int = 1000
    """Tokens of an answer."""

    def preparing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, *, may_draft: bool) -> "FakeGeneration":
        assert not may_draft, "what a token takes is measured without luck"
        assert sampling.ignore_eos
        assert sampling.max_tokens is not None
        assert len(prompt) + sampling.max_tokens <= self.context_length
        self.submitted.append((tuple(prompt), sampling.max_tokens))
        generation = FakeGeneration(self, len(prompt), sampling.max_tokens, leads=not self.open)
        self.open.append(generation)
        return generation


@dataclass
class FakeGeneration:
    engine: FakeEngine
    num_prompt_tokens: int
    num_tokens: int
    leads: bool
    """Of those under way the one that moves the clock."""
    num_drawn: int = 0
    usage: Usage | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        await asyncio.sleep(0)
        if self.engine.error:
            raise self.engine.error
        if self.num_drawn == self.engine.hangs_after:
            await asyncio.Event().wait()
        if self.num_drawn == self.num_tokens:
            raise StopAsyncIteration
        prefill_s = self.num_prompt_tokens * self.engine.prefill_s
        if self.leads:
            self.engine.clock.now += self.engine.step_s if self.num_drawn else prefill_s
        self.num_drawn += 1
        if self.num_drawn < self.num_tokens:
            return Delta("", (1,))
        decode_s = (self.num_tokens - 1) * self.engine.step_s
        self.usage = Usage(self.num_prompt_tokens, 0, self.num_tokens, 0.0, prefill_s, decode_s)
        return Delta("", (1,), finish_reason=FinishReason.LENGTH, usage=self.usage)

    async def aclose(self) -> None:
        self.engine.open.remove(self)


def fake_ready(engine: FakeEngine, folder: Path) -> ReadyModel:
    write_echo_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return cast(ReadyModel, SimpleNamespace(engine=engine, tokenizer=tokenizer, vocab_size=VOCAB_SIZE))


def measured(engine: FakeEngine, folder: Path) -> Speeds:
    return asyncio.run(measure(fake_ready(engine, folder), Random(0), clock=engine.clock))


def test_a_fast_model_is_measured_in_several_rounds_of_many_tokens(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), step_s=0.005, prefill_s=0.0001)
    speeds = measured(engine, tmp_path)
    assert speeds.decode_1 == pytest.approx(200)
    assert speeds.decode_8 == pytest.approx(1600)
    assert speeds.prefill == pytest.approx(10_000)
    asked = [(len(prompt), num_tokens) for prompt, num_tokens in engine.submitted]
    assert asked == [
        (16, 8), *[(16, 64)] * 3, *[(16, 8)] * 8, *[(16, 64)] * 24, (32, 1), *[(512, 1)] * 3,
    ]  # fmt: skip
    assert engine.clock.now - 100 < 4
    assert engine.open == []


def test_a_slow_model_is_measured_on_few_tokens(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), step_s=0.25, prefill_s=0.05)
    speeds = measured(engine, tmp_path)
    assert speeds.decode_1 == pytest.approx(4)
    assert speeds.prefill == pytest.approx(20)
    asked = [(len(prompt), num_tokens) for prompt, num_tokens in engine.submitted]
    assert asked == [(16, 8), *[(16, 8)] * 8, (32, 1)]


def test_what_came_until_a_round_is_broken_off_counts_but_something_has_to_come(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), step_s=1.0, prefill_s=0.01, hangs_after=3)
    ready = fake_ready(engine, tmp_path)
    speeds = asyncio.run(measure(ready, Random(0), clock=engine.clock, longest_s=0.05))
    assert speeds.decode_1 == pytest.approx(1)
    engine.hangs_after = 0
    with pytest.raises(GenerationFailed, match="gave no two tokens"):
        asyncio.run(measure(ready, Random(0), clock=engine.clock, longest_s=0.05))
    assert engine.open == []


def test_prompts_are_new_every_time_and_have_no_special_tokens(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), step_s=0.005, prefill_s=0.0001)
    ready, random = fake_ready(engine, tmp_path), Random(0)
    for _ in range(2):
        asyncio.run(measure(ready, random, clock=engine.clock))
    prompts = [prompt[:16] for prompt, _ in engine.submitted]
    assert len(set(prompts)) == len(prompts)
    assert all(token_id < 256 for prompt, _ in engine.submitted for token_id in prompt)


@pytest.mark.parametrize("context_length", [18, 20, 100, 513])
def test_a_short_context_is_not_overrun(tmp_path: Path, context_length: int) -> None:
    engine = FakeEngine(Clock(), 0.005, 0.0001, context_length)
    measured(engine, tmp_path)
    assert max(len(prompt) for prompt, _ in engine.submitted) == min(512, context_length - 1)


def test_a_context_of_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(GenerationFailed, match="a context of 17 tokens is too short"):
        measured(FakeEngine(Clock(), 0.005, 0.0001, 17), tmp_path)


@pytest.mark.parametrize("error", [GenerationFailed("no"), ShuttingDown()])
def test_an_error_of_the_engine_is_the_measurements(tmp_path: Path, error: Exception) -> None:
    engine = FakeEngine(Clock(), 0.005, 0.0001, error=error)
    with pytest.raises(type(error)):
        measured(engine, tmp_path)
    assert engine.open == []


def real(folder: Path, runtime: Any) -> ReadyModel:
    """The echo model behind a real engine."""
    write_echo_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine = Engine(
        runtime,
        tokenizer,
        eos_token_ids=frozenset((END,)),
        options=EngineOptions(),
        context_length=runtime.context_length,
    )
    return cast(ReadyModel, SimpleNamespace(engine=engine, tokenizer=tokenizer, vocab_size=VOCAB_SIZE))


@pytest.mark.parametrize("make", [EchoRunner, EchoBackend])
def test_a_real_engine_is_measured_and_left_idle(tmp_path: Path, make: Callable[[], Any]) -> None:
    async def body() -> None:
        ready = real(tmp_path, make())
        try:
            speeds = await measure(ready, Random(0))
            assert min(speeds.decode_1, speeds.decode_8, speeds.prefill) > 0
            assert ready.engine.load.num_running == ready.engine.load.num_waiting == 0
        finally:
            await ready.engine.aclose()

    asyncio.run(body())


def test_a_model_that_says_nothing_is_given_up_and_a_cancelled_measurement_leaves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        ready = real(tmp_path, EchoRunner(gate=gate))
        try:
            with pytest.raises(GenerationFailed, match="1 streams gave no two tokens"):
                await measure(ready, Random(0), longest_s=0.05)
            task = asyncio.create_task(measure(ready, Random(0)))
            await asyncio.sleep(0)
            assert ready.engine.load.num_waiting
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gate.open()
            generation = ready.engine.submit([1, 2], SamplingParams(max_tokens=2))
            assert [delta async for delta in generation][-1].usage
            assert (ready.engine.load.num_running, ready.engine.load.num_waiting) == (0, 0)
        finally:
            gate.open()
            await ready.engine.aclose()

    asyncio.run(body())
