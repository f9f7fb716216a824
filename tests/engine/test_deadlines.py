"""Deadlines and tenants, as engines and batchers see them: refused at once, ended in time, blocks given back."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vmm_adapters.base import TextBackend
from vmm_adapters.echo import EchoRunner, Gate
from vmm_adapters.echo_backend import EchoBackend
from vmm_adapters.types import Batch, SamplingParams
from vmm_server.callers import Caller
from vmm_server.engine import Engine, Generation
from vmm_server.errors import DeadlineExceeded, DeadlineUnreachable

Run = Callable[..., Any]


def up_to(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def within(seconds: float, **fields: Any) -> Caller:
    return Caller(deadline_at=time.monotonic() + seconds, **fields)


async def read(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


class Clock:
    """A second passes with each step."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def step(self, batch: Batch) -> None:
        self.now += 1


def test_what_runs_past_its_deadline_fails_and_gives_its_blocks_back(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with engine_over(EchoRunner(gate=clock.step), clock=clock) as engine:
            late = engine.submit([97], up_to(500), caller=within(20.5))
            other = engine.submit([97], up_to(40))
            with pytest.raises(DeadlineExceeded):
                await read(late)
            assert 15 <= late.num_generated_tokens <= 22
            assert len(await read(other)) == 40
            stats = engine.stats
            assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)

    run(scenario())


@pytest.mark.parametrize("make", [EchoRunner, EchoBackend])
def test_what_waits_past_its_deadline_is_never_computed(
    run: Run, engine_over: Run, make: Callable[..., EchoRunner | TextBackend]
) -> None:
    async def scenario() -> None:
        clock, gate = Clock(), Gate()
        async with engine_over(make(gate=gate), clock=clock, max_sequences=1) as engine:
            first = engine.submit([97], up_to(2))
            await asyncio.to_thread(gate.wait_entered)
            waiting = engine.submit([97], up_to(2), caller=within(60))
            clock.now += 100
            gate.open()
            with pytest.raises(DeadlineExceeded):
                await read(waiting)
            assert waiting.queued_s is None
            assert await read(first) == "bc"

    run(scenario())


async def measured(engine: Engine) -> None:
    """It knows how long things take."""
    for _ in range(3):
        await read(engine.submit([97] * 40, up_to(4)))


def test_what_cannot_be_begun_in_time_is_refused_at_once(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        clock = Clock()
        held = Gate()
        runner = EchoRunner(num_blocks=400, gate=clock.step)
        async with engine_over(runner, clock=clock, max_sequences=4, max_batched_tokens=16) as engine:
            await measured(engine)
            runner.gate = held
            many = [engine.submit([number] * 60, up_to(20), caller=Caller("many")) for number in range(30)]
            await asyncio.to_thread(held.wait_entered)
            with pytest.raises(DeadlineUnreachable) as refused:
                engine.submit([98] * 60, up_to(4), caller=within(10, tenant="many"))
            assert 1 <= refused.value.retry_after_s <= 60
            assert engine.load.num_waiting + engine.load.num_running == 30, "it left nothing behind"
            alone = engine.submit([99] * 10, up_to(4), caller=within(3000, tenant="one"))
            urgent = engine.submit([99] * 10, up_to(4), caller=within(10, tenant="many", priority=-1))
            for generation in (*many, alone, urgent):
                await generation.aclose()
            held.open()

    run(scenario())


def test_a_deadline_that_is_over_is_refused(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            with pytest.raises(DeadlineExceeded):
                engine.submit([97], up_to(2), caller=within(-1))

    run(scenario())


def test_three_tenants_that_ask_too_much_get_what_their_weights_say(run: Run, engine_over: Run) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    told: Counter[str] = Counter()

    async def client(engine: Engine, tenant: str, number: int) -> None:
        for turn in range(100):
            prompt = [97 + number, *tenant.encode(), *f"{turn:02}".encode()] * 3
            generation = engine.submit(prompt, up_to(10 + 3 * number), caller=Caller(tenant, weights[tenant]))
            async for delta in generation:
                told[tenant] += len(delta.token_ids)
            if told.total() > 12_000:
                return

    async def scenario() -> None:
        async with engine_over(EchoRunner(num_blocks=400), max_sequences=6) as engine:
            await asyncio.gather(*(client(engine, tenant, number) for tenant in weights for number in range(8)))
            shares = {tenant: told[tenant] / told.total() / (weights[tenant] / 6) for tenant in weights}
            assert all(0.9 < share < 1.1 for share in shares.values()), shares

    run(scenario())


def test_a_runtime_that_schedules_is_given_what_is_fair(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoBackend(gate=gate), max_sequences=1) as engine:
            ended: list[str] = []

            async def ask(tenant: str) -> None:
                await read(engine.submit([97], up_to(2), caller=Caller(tenant)))
                ended.append(tenant)

            asking = [asyncio.create_task(ask("many")) for _ in range(5)]
            await asyncio.to_thread(gate.wait_entered)
            asking.append(asyncio.create_task(ask("one")))
            await asyncio.sleep(0)
            gate.open()
            await asyncio.gather(*asking)
            assert ended.index("one") <= 2

    run(scenario())
