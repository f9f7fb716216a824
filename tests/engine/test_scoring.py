"""Log-probabilities of a prompt: the same however it is cut up, and whoever else is there."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vmm_adapters.echo import EchoRunner, Gate
from vmm_adapters.types import Batch, Chunk, FinishReason, SamplingParams, TokenLogprob
from vmm_server.engine import Delta, Generation
from vmm_server.engine.stream import merge
from vmm_server.errors import GenerationFailed

Run = Callable[..., Any]
TEXT = list(b"the quick brown fox jumps over the lazy dog, again and again: abcdefghijklm")
SCORE = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=3)


async def read(generation: Generation) -> Delta:
    return merge([delta async for delta in generation])


def reference(tokens: list[int], num_top: int) -> list[tuple[int, float, list[int]]]:
    """(token, log-softmax, most likely ones) of each token but the first, by one plain call in float64."""
    runner = EchoRunner()
    table = range(-(-len(tokens) // runner.block_size))
    rows = runner.execute(Batch((Chunk(tokens, 0, table, num_logits=len(tokens)),)))[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return [
        (token, row[token], np.argsort(-row, kind="stable")[:num_top].tolist())
        for token, row in zip(tokens[1:], rows, strict=True)
    ]


def check(scores: tuple[TokenLogprob, ...], tokens: list[int]) -> None:
    expected = reference(tokens, 3)
    assert [item.token_id for item in scores] == [token for token, _, _ in expected]
    assert [[token for token, _ in item.top] for item in scores] == [top for _, _, top in expected]
    assert [item.logprob for item in scores] == pytest.approx([logprob for _, logprob, _ in expected], abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"max_batched_tokens": 7}, {"max_score_bytes": 4 * 261 * 5}])
def test_a_prompt_is_scored_the_same_in_any_chunks(run: Run, engine_over: Run, options: dict[str, int]) -> None:
    batches: list[Batch] = []

    async def scenario() -> None:
        async with engine_over(EchoRunner(gate=batches.append), **options) as engine:
            answer = await read(engine.submit(TEXT, SCORE))
            check(answer.prompt_logprobs, TEXT)
            assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), FinishReason.LENGTH)
            assert answer.usage.num_generated_tokens == 0
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(scenario())
    assert max(batch.num_logits for batch in batches) <= {0: 512, 7: 7}.get(options.get("max_batched_tokens", 0), 5)
    if "max_score_bytes" in options:
        assert max(batch.num_logits for batch in batches) == 5


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 75])
def test_cached_blocks_are_scored_all_the_same(run: Run, engine_over: Run, length: int) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            for sampling in (SamplingParams(temperature=0, max_tokens=1), SCORE, SCORE):
                answer = await read(engine.submit(TEXT[:length], sampling))
            check(answer.prompt_logprobs, TEXT[:length])
            assert answer.usage.num_cached_tokens == 0
            drawn = await read(engine.submit(TEXT[:length], SamplingParams(temperature=0, max_tokens=1)))
            assert drawn.usage.num_cached_tokens == (min(length // 16 * 16, length - 1) if length >= 16 else 0)

    run(scenario())


def test_scores_come_before_an_answer_that_is_drawn_as_ever(run: Run, engine_over: Run) -> None:
    lively = SamplingParams(temperature=6.0, seed=3, max_tokens=9, logprobs=1)
    scored = SamplingParams(temperature=6.0, seed=3, max_tokens=9, logprobs=1, prompt_logprobs=3)

    async def scenario() -> None:
        async with engine_over(EchoRunner(), max_batched_tokens=32) as engine:
            plain = await read(engine.submit(TEXT, lively))
            deltas = [delta async for delta in engine.submit(TEXT, scored)]
            answer = merge(deltas)
            check(answer.prompt_logprobs, TEXT)
            assert (answer.token_ids, answer.logprobs, answer.text) == (plain.token_ids, plain.logprobs, plain.text)

    run(scenario())


def test_scores_do_not_depend_on_the_company(run: Run, engine_over: Run) -> None:
    """Prompts being scored, others generating, too few blocks for all: whoever is preempted is scored once."""
    prompts = [TEXT[i : i + 60] for i in range(8)]
    lively = SamplingParams(temperature=6.0, seed=5, max_tokens=60)

    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            alone = [await read(engine.submit([i, *TEXT[:9]], lively)) for i in range(8)]
        gate = Gate()
        runner = EchoRunner(num_blocks=16, gate=gate)
        async with engine_over(runner, max_batched_tokens=32, max_score_bytes=4 * 261 * 20) as engine:
            both = SamplingParams(temperature=0, max_tokens=40, prompt_logprobs=3)
            drawing = [engine.submit([i, *TEXT[:9]], lively) for i in range(8)]
            scoring = [engine.submit(prompt, both) for prompt in prompts]
            gate.open()
            answers = await asyncio.gather(*(read(generation) for generation in [*drawing, *scoring]))
            assert [one.token_ids for one in answers[:8]] == [one.token_ids for one in alone]
            for prompt, answer in zip(prompts, answers[8:], strict=True):
                check(answer.prompt_logprobs, prompt)
                assert len(answer.token_ids) == 40
            assert engine.stats.num_preempted > 0

    run(scenario())


def test_a_prompt_without_an_answer_ends_when_it_is_computed(run: Run, engine_over: Run) -> None:
    batches: list[Batch] = []

    async def scenario() -> None:
        async with engine_over(EchoRunner(gate=batches.append), max_batched_tokens=50) as engine:
            answer = await read(engine.submit(TEXT, SamplingParams(temperature=0, max_tokens=0)))
            assert answer == Delta("", finish_reason=FinishReason.LENGTH, usage=answer.usage)
            assert sum(batch.num_logits for batch in batches) == 0
            warm = await read(engine.submit(TEXT, SamplingParams(temperature=0, max_tokens=1)))
            assert warm.usage.num_cached_tokens == len(TEXT) // 16 * 16

    run(scenario())


def test_scores_that_are_no_numbers_fail_their_sequence_only(run: Run, engine_over: Run) -> None:
    class Sick(EchoRunner):
        def execute(self, batch: Batch) -> Any:
            logits = super().execute(batch)
            row = 0
            for chunk in batch.chunks:
                if ord("!") in chunk.token_ids:
                    logits[row] = np.nan
                row += chunk.num_logits
            return logits

    async def scenario() -> None:
        async with engine_over(Sick()) as engine:
            bad, good = (engine.submit(list(text), SCORE) for text in (b"a!b", b"a?b"))
            assert len((await read(good)).prompt_logprobs) == 2
            with pytest.raises(GenerationFailed, match="not a number"):
                await read(bad)
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(scenario())
