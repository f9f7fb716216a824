"""What engines and batchers count while they work."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from vmm_adapters.echo import EchoRunner, Gate
from vmm_adapters.types import Batch, SamplingParams
from vmm_server.engine import Generation
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions

Run = Callable[..., Any]


def tokens(text: str) -> list[int]:
    return list(text.encode())


def five() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=5)


async def read(generation: Generation) -> None:
    async for _ in generation:
        pass


def test_pauses_waits_and_steps_of_an_engine(run: Run, engine_over: Run) -> None:
    """A second passes with each token that is computed; the second answer waits for the first one."""
    now = [100.0]

    def advance(batch: Batch) -> None:
        now[0] += batch.num_tokens

    async def scenario() -> None:
        runner = EchoRunner(gate=advance)
        async with engine_over(runner, clock=lambda: now[0], max_batched_tokens=32, max_sequences=1) as engine:
            with engine.preparing():
                both = [engine.submit(tokens(letter * 20), five()) for letter in "ab"]
            await asyncio.gather(*map(read, both))
            usages = [generation.usage for generation in both]
            counted = engine.histograms
            assert counted.queue_s.distribution.count == 2
            assert counted.queue_s.distribution.total == sum(usage.queued_s for usage in usages if usage)
            assert counted.inter_token_s.distribution.count == 2 * (5 - 1)
            assert counted.inter_token_s.distribution.total == sum(usage.decode_s for usage in usages if usage) == 8
            assert counted.step_sequences.distribution.total == counted.step_sequences.distribution.count == 2 * 5
            assert counted.step_tokens.distribution.total == now[0] - 100

    run(scenario())


def test_who_leaves_the_queue_has_waited_too(run: Run, engine_over: Run) -> None:
    now = [100.0]
    gate = Gate()

    async def scenario() -> None:
        async with engine_over(EchoRunner(gate=gate), clock=lambda: now[0], max_sequences=1) as engine:
            first = engine.submit(tokens("a" * 20), five())
            await asyncio.to_thread(gate.wait_entered)
            second = engine.submit(tokens("b" * 20), five())
            now[0] += 7
            await second.aclose()
            gate.open()
            await read(first)
            assert engine.histograms.queue_s.distribution.count == 2
            assert engine.histograms.queue_s.distribution.total == 7

    run(scenario())


def test_batches_and_waits_of_a_batcher(run: Run) -> None:
    entered, permit = threading.Event(), threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        entered.set()
        assert permit.wait(30)
        return items

    async def scenario() -> None:
        options = BatcherOptions(BatchLimits(max_items=2), gather_s=0.0)
        batcher: Batcher[int, int] = Batcher(compute, size=lambda _: 1, close=lambda: None, options=options)
        try:
            first = asyncio.create_task(batcher.timed_call([1]))
            await asyncio.to_thread(entered.wait, 30)
            second = asyncio.create_task(batcher.timed_call([2, 3, 4]))
            await asyncio.sleep(0)
            permit.set()
            waited_s = [(await each).queued_s for each in (first, second)]
            (counted,) = batcher.stats.histograms
            assert counted.batch_items.distribution.counts[:2] == (2, 1)  # 1 | 2 3 | 4
            assert counted.queue_s.distribution.count == 2  # calls, not batches
            assert counted.queue_s.distribution.total == sum(waited_s)
        finally:
            permit.set()
            await batcher.aclose()

    run(scenario())
