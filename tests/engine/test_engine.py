"""The whole engine on the echo runner, which fails on any block mix-up."""

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from vmm_adapters.echo import END, EchoRunner, Gate
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch, FinishReason, SamplingParams
from vmm_server.engine import Delta, Engine, EngineOptions, Generation
from vmm_server.engine.stream import merge
from vmm_server.errors import (
    ContextLengthExceeded,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
)

Run = Callable[..., Any]
GREEDY = SamplingParams(temperature=0)
LIVELY = SamplingParams(temperature=6.0, seed=7, max_tokens=40)


def tokens(text: str) -> list[int]:
    return list(text.encode())


def chat(text: str) -> list[int]:
    return [257, *text.encode(), END, 258]


async def read(generation: Generation) -> Delta:
    """The whole answer as one delta."""
    return merge([delta async for delta in generation])


async def held(gate: Gate) -> Batch:
    return await asyncio.to_thread(gate.wait_entered)


def test_a_chat_is_echoed(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            generation = engine.submit(chat("Grüße, 你好"), GREEDY)
            answer = await read(generation)
            assert answer.text == "Grüße, 你好"
            assert answer.token_ids == tuple("Grüße, 你好".encode()), "the token that ends it is no part of it"
            assert answer.finish_reason is FinishReason.STOP
            assert generation.usage == answer.usage
            assert generation.usage is not None
            assert generation.usage.num_prompt_tokens == generation.num_prompt_tokens == 18
            assert generation.usage.num_generated_tokens == 16

    run(scenario())


async def received(engine: Engine) -> None:
    """The worker has read all that was submitted."""
    while engine._worker.num_received < engine._num_submitted:  # noqa: ASYNC110 - the worker has no event for it
        await asyncio.sleep(0)


def test_an_idle_engine_waits_for_a_request_in_the_making(run: Run, engine_over: Run) -> None:
    batches: list[int] = []

    async def scenario() -> None:
        runner = EchoRunner(gate=lambda batch: batches.append(len(batch.chunks)))
        async with engine_over(runner, gather_s=3600) as engine:
            with engine.preparing():
                first = engine.submit(chat("a"), GREEDY)
                await received(engine)
                second = engine.submit(chat("b"), GREEDY)
            await asyncio.gather(read(first), read(second))
            assert batches[0] == 2

    run(scenario())


def test_a_request_that_fails_in_the_making_holds_nobody_up(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner(), gather_s=3600) as engine:
            with suppress(InvalidRequest), engine.preparing():
                first = engine.submit(chat("a"), GREEDY)
                await received(engine)
                raise InvalidRequest("its template cannot be rendered")
            assert (await read(first)).text == "a"

    run(scenario())


def test_usage_times_are_on_the_clock_that_was_passed_in(run: Run, engine_over: Run) -> None:
    now = [100.0]

    def advance(batch: Batch) -> None:
        now[0] += len(batch.chunks[0].token_ids)

    async def scenario() -> None:
        async with engine_over(EchoRunner(gate=advance), clock=lambda: now[0], max_batched_tokens=8) as engine:
            answer = await read(engine.submit(tokens("a" * 20), SamplingParams(temperature=0, max_tokens=5)))
            assert answer.usage is not None
            usage = answer.usage
            assert (usage.queued_s, usage.prefill_s, usage.decode_s) == (0, 20, 4)

    run(scenario())


@pytest.mark.parametrize("length", [31, 32, 33, 48])
def test_cached_and_cold_answers_are_equal(run: Run, engine_over: Run, length: int) -> None:
    prompt = tokens("the quick brown fox jumps over the lazy dog, again and again"[:length])

    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            cold, warm = [await read(engine.submit(prompt, LIVELY)) for _ in range(2)]
            assert warm.usage.num_cached_tokens == min(length // 16 * 16, length - 1)
            assert cold.usage.num_cached_tokens == 0
            assert warm.token_ids == cold.token_ids
            assert len(set(cold.token_ids)) > 5, "the draw should be lively"

    run(scenario())


def test_a_seed_says_the_same_alone_and_in_a_batch(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner(num_blocks=64)) as engine:
            alone = await read(engine.submit(tokens("tell me"), LIVELY))
        gate = Gate()
        runner = EchoRunner(num_blocks=40, gate=gate)  # too few: some are preempted
        async with engine_over(runner, max_batched_tokens=48) as engine:
            others = [engine.submit(tokens(f"{i} others"), SamplingParams(max_tokens=60)) for i in range(15)]
            same = engine.submit(tokens("tell me"), LIVELY)
            gate.open()
            answers = await asyncio.gather(*(read(generation) for generation in [*others, same]))
            assert answers[-1].token_ids == alone.token_ids
            assert engine.stats.num_preempted > 0

    run(scenario())


def test_logprobs_come_with_each_token(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            answer = await read(engine.submit(chat("hello"), SamplingParams(temperature=0, logprobs=2)))
            assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids) == tokens("hello")
            assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in answer.logprobs)
            assert all(-1e-3 < entry.logprob <= 0 for entry in answer.logprobs)

    run(scenario())


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        (SamplingParams(temperature=0, stop=("hij",)), "defg", FinishReason.STOP),
        (SamplingParams(temperature=0, stop=("zz", "g", "fg")), "de", FinishReason.STOP),
        (SamplingParams(temperature=0, stop_token_ids=(ord("h"),)), "defg", FinishReason.STOP),
        (SamplingParams(temperature=0, max_tokens=3), "def", FinishReason.LENGTH),
        (SamplingParams(temperature=0, max_tokens=3, stop=("fx",)), "def", FinishReason.LENGTH),
        (SamplingParams(temperature=0, max_tokens=3, stop=("f",)), "de", FinishReason.STOP),
        (SamplingParams(temperature=0, stop=("e", "j"), min_tokens=4), "defghi", FinishReason.STOP),
        (SamplingParams(temperature=0), "defghijklmnop", FinishReason.LENGTH),
    ],
    ids=["stop", "stops", "stop_token", "max_tokens", "held_back", "stop_at_max", "min_tokens", "context"],
)
def test_an_answer_ends(run: Run, engine_over: Run, sampling: SamplingParams, text: str, reason: FinishReason) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner(context_length=16)) as engine:
            answer = await read(engine.submit(tokens("abc"), sampling))
            assert (answer.text, answer.finish_reason) == (text, reason)
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(scenario())


@pytest.mark.parametrize(("stop", "found"), [(("zz", "g", "fg"), "fg"), (("zz",), None)])
def test_usage_says_which_stop_string_ended_the_answer(
    run: Run, engine_over: Run, stop: tuple[str, ...], found: str | None
) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            answer = await read(engine.submit(tokens("abc"), SamplingParams(temperature=0, max_tokens=5, stop=stop)))
            assert answer.usage is not None
            assert answer.usage.stop_string == found

    run(scenario())


def test_ignore_eos_goes_on(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=9)
            answer = await read(engine.submit(chat("hi"), sampling))
            assert (len(answer.token_ids), answer.finish_reason) == (9, FinishReason.LENGTH)

    run(scenario())


@pytest.mark.parametrize("num_steps", [0, 1, 3], ids=["queue", "prefill", "decode"])
def test_abort_frees_blocks_before_the_next_step(run: Run, engine_over: Run, num_steps: int) -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = EchoRunner(gate=gate, num_blocks=8)
        async with engine_over(runner, max_batched_tokens=16, max_sequences=1 if num_steps == 0 else 2) as engine:
            other = engine.submit(tokens("x"), SamplingParams(temperature=0, max_tokens=12))
            await held(gate)
            doomed = engine.submit(tokens("a" * 30), GREEDY)
            for _ in range(num_steps):
                gate.release()
                await held(gate)
            assert engine.stats.num_free_blocks == 8 - 1 - (num_steps > 0) - (num_steps > 1)
            assert (engine.stats.num_waiting, engine.stats.num_running) == ((1, 1) if num_steps == 0 else (0, 2))
            await doomed.aclose()
            await doomed.aclose()
            gate.release()
            batch = await held(gate)
            assert len(batch.chunks) == 1
            assert (engine.stats.num_free_blocks, engine.stats.num_running) == (7, 1)
            assert [delta async for delta in doomed] == []
            gate.open()
            assert (await read(other)).text == "yzabcdefghij"

    run(scenario())


def test_a_slow_reader_gets_merged_deltas(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            slow = engine.submit(tokens("a"), SamplingParams(temperature=0, max_tokens=100))
            await read(engine.submit(tokens("b"), SamplingParams(temperature=0, max_tokens=110)))
            deltas = [delta async for delta in slow]
            assert len(deltas) == 1
            assert len(deltas[0].token_ids) == 100
            assert deltas[0].usage is not None

    run(scenario())


class FailsOn:
    """A runner's gate that raises for steps in which a token occurs."""

    def __init__(self, token: str, error: Exception) -> None:
        self.token, self.error = ord(token), error

    def __call__(self, batch: Batch) -> None:
        if any(self.token in chunk.token_ids for chunk in batch.chunks):
            raise self.error


@pytest.mark.parametrize("error", [RuntimeFailed("no power", hint="plug it in"), ValueError("a bug")])
def test_a_failing_step_fails_its_sequences_and_no_others(
    run: Run, engine_over: Run, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner(gate=FailsOn("!", error)), max_batched_tokens=4) as engine:
            # "!" is the first one's eighth token; the second waits for the budget
            first = engine.submit(tokens("aaaaaaa!"), GREEDY)
            second = engine.submit(tokens("x"), SamplingParams(temperature=0, max_tokens=3))
            with pytest.raises(GenerationFailed, match=str(error)) as failed:
                await read(first)
            assert failed.value.hint
            assert [delta async for delta in first] == []
            assert (await read(second)).text == "yza"
            assert (await read(engine.submit(tokens("x"), SamplingParams(temperature=0, max_tokens=3)))).text == "yza"
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(scenario())
    assert "an engine step failed" in caplog.text


def test_logits_that_are_not_numbers_fail_one_sequence(run: Run, engine_over: Run) -> None:
    class Broken(EchoRunner):
        def execute(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
            logits = super().execute(batch)
            logits[[chunk.token_ids[-1] == ord("!") for chunk in batch.chunks]] = np.nan
            return logits

    async def scenario() -> None:
        async with engine_over(Broken()) as engine:
            bad, good = (engine.submit(tokens(text), SamplingParams(temperature=0, max_tokens=3)) for text in "!x")
            with pytest.raises(GenerationFailed, match="not a number"):
                await read(bad)
            assert (await read(good)).text == "yza"

    run(scenario())


def test_a_full_queue_is_refused_at_once(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoRunner(gate=gate), max_sequences=2, max_queue=1) as engine:
            running = [engine.submit(tokens("a"), SamplingParams(temperature=0, max_tokens=2)) for _ in range(3)]
            with pytest.raises(Overloaded) as refused:
                engine.submit(tokens("a"), GREEDY)
            assert 1 <= refused.value.retry_after_s <= 60
            gate.open()
            for generation in running:
                await read(generation)
            assert (await read(engine.submit(tokens("a"), SamplingParams(temperature=0, max_tokens=1)))).text == "b"

    run(scenario())


def test_what_cannot_work_is_refused_before_anything(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner(num_blocks=4, context_length=512)) as engine:
            with pytest.raises(ContextLengthExceeded) as refused:
                engine.submit(tokens("a" * 65), GREEDY, param="messages")
            assert (refused.value.limit, refused.value.asked, refused.value.param) == (64, 65, "messages")
            with pytest.raises(ContextLengthExceeded) as refused:
                engine.submit(tokens("a" * 11), GREEDY, context_length=10)
            assert refused.value.limit == 10
            for prompt, sampling, param in [
                ([], GREEDY, "prompt"),
                ([261], GREEDY, "prompt"),
                ([-1], GREEDY, "prompt"),
                ([0], SamplingParams(logit_bias={261: 1.0}), "logit_bias"),
                ([0], SamplingParams(stop_token_ids=(999,)), "stop_token_ids"),
                ([0], SamplingParams(max_tokens=-1), "max_tokens"),
            ]:
                with pytest.raises(InvalidRequest) as invalid:
                    engine.submit(prompt, sampling)
                assert invalid.value.param == param
            assert (await read(engine.submit(tokens("a" * 64), GREEDY))).text == "b"

    run(scenario())


def test_closing_aborts_what_is_left_and_closes_the_runner(run: Run, tokenizer: Tokenizer) -> None:
    async def scenario() -> None:
        gate = Gate()
        runner = EchoRunner(gate=gate)
        engine = Engine(
            runner,
            tokenizer,
            eos_token_ids=frozenset({END}),
            options=EngineOptions(max_sequences=1),
            context_length=512,
        )
        running, waiting = (engine.submit(tokens("abc"), GREEDY) for _ in range(2))
        await held(gate)
        closing = asyncio.gather(engine.aclose(), engine.aclose())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            engine.submit(tokens("abc"), GREEDY)
        gate.open()
        await closing
        assert runner.is_closed
        for generation, text in ((running, "d"), (waiting, "")):
            answer = await read(generation)
            assert (answer.text, answer.finish_reason) == (text, FinishReason.ABORT)
            assert answer.usage is not None
        assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(scenario())


def test_a_dropped_generation_is_aborted_with_a_warning(
    run: Run, engine_over: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoRunner(gate=gate)) as engine:
            generation = engine.submit(tokens("abc"), GREEDY)
            await held(gate)
            del generation
            gc.collect()
            kept = engine.submit(tokens("x"), SamplingParams(temperature=0, max_tokens=2))
            gate.release()
            assert len((await held(gate)).chunks) == 1
            gate.open()
            await read(kept)

    run(scenario())
    assert "without aclose" in caplog.text


def test_a_finished_or_closed_generation_is_dropped_silently(
    run: Run, engine_over: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            await read(engine.submit(chat("x"), GREEDY))
            await engine.submit(tokens("x"), GREEDY).aclose()
            gc.collect()

    with caplog.at_level(logging.DEBUG, logger="vmm_server"):
        run(scenario())
    assert "aclose" not in caplog.text


def test_the_worker_outlives_an_event_loop_that_went_away(run: Run, tokenizer: Tokenizer) -> None:
    gate = Gate()
    runner = EchoRunner(gate=gate)
    left: list[Generation] = []

    def make() -> Engine:
        return Engine(runner, tokenizer, eos_token_ids=frozenset(), options=EngineOptions(), context_length=512)

    engine = make()

    async def leave() -> None:
        left.append(engine.submit(tokens("abc"), GREEDY))
        await held(gate)

    async def come() -> None:
        gate.open()
        answer = await read(engine.submit(tokens("x"), SamplingParams(temperature=0, max_tokens=3)))
        assert answer.text == "yza"
        assert engine.stats.num_running == 0
        await left[0].aclose()
        await engine.aclose()

    run(leave())
    run(come())


def test_cancelling_a_reader_loses_nothing(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoRunner(gate=gate)) as engine:
            generation = engine.submit(tokens("a"), SamplingParams(temperature=0, max_tokens=3))
            reader = asyncio.create_task(anext(generation))
            await held(gate)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            gate.open()
            assert (await read(generation)).text == "bcd"

    run(scenario())


def test_an_idle_engine_lets_a_request_in_the_making_catch_up(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with engine_over(EchoRunner(gate=gate), gather_s=10) as engine:
            with engine.preparing(), engine.preparing():
                first = engine.submit(chat("one"), GREEDY)
                await asyncio.to_thread(int)  # the worker has the first one now
                second = engine.submit(chat("two"), GREEDY)
            assert len((await held(gate)).chunks) == 2
            gate.open()
            await first.aclose()
            await second.aclose()

    run(scenario())
