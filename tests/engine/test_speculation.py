"""Drafts change how long an answer takes, and nothing about it: on runners whose steps take what a test says."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.echo import ASSISTANT, END, USER, VOCAB_SIZE, EchoRunner
from vmm_adapters.openvino.runner import load_runner
from vmm_adapters.types import Batch, FinishReason, RunnerOptions, SamplingParams
from vmm_server.engine import Delta, Engine, EngineOptions
from vmm_server.engine.executor import Outcome
from vmm_server.engine.grammar import CompiledGrammar, GrammarCompiler
from vmm_server.engine.paged_executor import PagedExecutor
from vmm_server.engine.sampler import SamplingState
from vmm_server.engine.sequence import Sequence as Answering
from vmm_server.engine.sequence import SequenceStatus
from vmm_server.engine.speculation import Speculator, measured_costs
from vmm_server.engine.stream import merge
from vmm_server.models.store import InstalledModel
from vmm_server.requests import JsonSchema

Run = Callable[..., Any]
GREEDY = SamplingParams(temperature=0)
SONG = "row, row, row your boat, gently down the stream; merrily, merrily, merrily, merrily, "


class Clock:
    """Counts steps and makes them last: a token more in a step makes it a tenth longer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_steps = 0

    def __call__(self) -> float:
        return self.now

    def pass_step(self, batch: Batch) -> None:
        self.num_steps += 1
        self.now += 1 + batch.num_tokens / 10


def chat(text: str) -> list[int]:
    return [USER, *text.encode(), END, ASSISTANT]


class Bench:
    """A paged executor that is stepped by hand."""

    def __init__(self, *, speculate: bool, num_blocks: int = 64, **options: int) -> None:
        self.clock = Clock()
        self.executor = PagedExecutor(
            EchoRunner(num_blocks=num_blocks, block_size=4, gate=self.clock.pass_step),
            eos_token_ids=frozenset({END}),
            max_batched_tokens=options.get("max_batched_tokens", 64),
            max_sequences=4,
            max_score_bytes=options.get("max_score_bytes", 2**20),
            clock=self.clock,
            speculator=Speculator(VOCAB_SIZE) if speculate else None,
        )
        self.outcomes: dict[Answering, list[Outcome]] = {}

    def add(
        self,
        prompt: list[int],
        sampling: SamplingParams,
        grammar: CompiledGrammar | None = None,
        prediction: tuple[int, ...] = (),
    ) -> Answering:
        sequence = Answering(
            prompt,
            sampling,
            max_length=self.executor.context_length,
            eos_token_ids=frozenset({END}),
            prediction=prediction,
        )
        self.executor.add(sequence, grammar)
        return sequence

    def step(self) -> None:
        for outcome in self.executor.step():
            self.outcomes.setdefault(outcome.sequence, []).append(outcome)

    def drain(self) -> None:
        for _ in range(5_000):
            if not self.executor.has_work:
                stats = self.executor.stats
                assert stats.num_free_blocks == stats.num_blocks
                return
            self.step()
        pytest.fail("livelock")


def answer(sequence: Answering) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]


def varied(random: Random) -> SamplingParams:
    """At this temperature a bit more than half of what is drawn is what the model expects, and so the drafts' fate."""
    params = SamplingParams(
        temperature=random.choice([0, 4.8, 4.8]),
        seed=random.randrange(100),
        max_tokens=random.randrange(1, 90),
        min_tokens=random.randrange(20),
        stop_token_ids=random.choice([(), (ord("b"),)]),
        logprobs=random.choice([None, 2]),
    )
    several: dict[str, Any] = {"top_k": 40, "repetition_penalty": 1.02, "presence_penalty": 0.5}
    chosen = random.sample(sorted(several), random.randrange(3))
    return replace(params, **{name: several[name] for name in chosen})


@pytest.mark.parametrize("seed", range(25))
def test_answers_are_the_same_with_and_without(seed: int) -> None:
    """Token for token and with their log-probabilities, under preemption, aborts and shared prefixes."""
    said, drafted = [], []
    for speculate in (False, True):
        random = Random(seed)
        options = {"num_blocks": random.choice([30, 40, 64]), "max_batched_tokens": random.choice([8, 16, 64])}
        bench = Bench(speculate=speculate, **options)
        sequences = []
        for _ in range(6):
            prompt = chat(SONG[: random.randrange(8, 86)])
            sequences.append(bench.add(prompt, varied(random)))
        for sequence in sequences[::3]:
            bench.step()
            if random.random() < 0.3 and not sequence.is_finished:
                bench.executor.finish(sequence, SequenceStatus.ABORTED)
                bench.outcomes.pop(sequence, None)
        bench.drain()
        whole = {i: s for i, s in enumerate(sequences) if s.status is not SequenceStatus.ABORTED}
        said.append({i: (answer(s), s.status, [o.drawn for o in bench.outcomes[s]]) for i, s in whole.items()})
        drafted.append(bench.executor.stats.num_drafted_tokens)
        for sequence in whole.values():
            assert sequence.num_accepted_tokens <= min(sequence.num_drafted_tokens, sequence.num_generated_tokens)
            assert [o.drawn.token_id for o in bench.outcomes[sequence] if o.drawn] == answer(sequence)
    for index in said[0].keys() & said[1].keys():
        assert said[0][index] == said[1][index]
    assert drafted[0] == 0 < drafted[1]


def test_an_echo_takes_fewer_steps_and_says_what_was_accepted() -> None:
    plain, bench = Bench(speculate=False), Bench(speculate=True)
    for each in (plain, bench):
        sequence = each.add(chat(SONG), GREEDY)
        each.drain()
        assert bytes(answer(sequence)[:-1]).decode() == SONG
    assert bench.clock.num_steps < plain.clock.num_steps / 2
    assert bench.clock.now < plain.clock.now
    usage = sequence.usage(bench.clock.now)
    stats = bench.executor.stats
    assert (stats.num_drafted_tokens, stats.num_accepted_tokens) == (
        usage.num_drafted_tokens,
        usage.num_accepted_tokens,
    )
    # each step but the first, which computes a part of the prompt, draws one token beyond the accepted ones
    assert usage.num_generated_tokens == usage.num_accepted_tokens + bench.clock.num_steps - 1
    assert plain.executor.stats.num_drafted_tokens == 0


def test_a_preempted_sequence_drafts_again_and_its_blocks_hold_no_wrong_draft() -> None:
    """The runner finds any block that holds what the sequence did not say."""
    bench = Bench(speculate=True, num_blocks=50)
    sequences = [bench.add(chat(SONG), replace(GREEDY, max_tokens=80)) for _ in range(2)]
    sequences += [bench.add(chat(SONG[5:]), SamplingParams(temperature=4.8, seed=3, max_tokens=80))]
    bench.drain()
    assert bench.executor.stats.num_preempted > 0
    assert min(sequence.num_accepted_tokens for sequence in sequences[:2]) > 20
    again = bench.add(chat(SONG) + answer(sequences[0])[:-1], replace(GREEDY, max_tokens=1))
    bench.drain()
    assert answer(again) == [ord(SONG[79])]


class MarkovRunner(EchoRunner):
    """Says what the last token alone makes likely."""

    def __init__(self, table: NDArray[np.float32], gate: Callable[[Batch], None]) -> None:
        super().__init__(num_blocks=128, block_size=16, context_length=2048, vocab_size=len(table), gate=gate)
        self._table = table

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        assert self.gate is not None
        self.gate(batch)
        for chunk in batch.chunks:
            self._store(chunk)
        return np.concatenate([self._table[list(chunk.token_ids[-chunk.num_logits :])] for chunk in batch.chunks])


def test_what_is_drawn_is_distributed_as_without_drafts() -> None:
    table = np.random.default_rng(5).normal(scale=1.5, size=(4, 4)).astype(np.float32)
    clock, counts, num_accepted = Clock(), Counter[tuple[int, int]](), 0
    executor = PagedExecutor(
        MarkovRunner(table, clock.pass_step),
        eos_token_ids=frozenset(),
        max_batched_tokens=64,
        max_sequences=4,
        max_score_bytes=2**20,
        clock=clock,
        speculator=Speculator(VOCAB_SIZE),
    )
    for seed in range(4):
        sequence = Answering([0], SamplingParams(seed=seed, max_tokens=1500), max_length=1501)
        executor.add(sequence, None)
        while executor.has_work:
            list(executor.step())
        counts.update(zip(sequence.token_ids, sequence.token_ids[1:], strict=False))
        num_accepted += sequence.num_accepted_tokens
    assert num_accepted > 1_000
    shares = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    seen = np.array([[counts[before, after] for after in range(4)] for before in range(4)])
    expected = shares * seen.sum(axis=1, keepdims=True)
    assert ((seen - expected) ** 2 / expected).sum() < 32.9, "chi-square of 12 degrees of freedom at 0.1 %"


SCHEMA = JsonSchema(
    json.dumps(
        {
            "type": "object",
            "properties": {"name_of_the_person": {"enum": ["a", "b"]}, "year_of_birth": {"type": "integer"}},
            "required": ["name_of_the_person", "year_of_birth"],
            "additionalProperties": False,
        }
    ),
    "response_format",
)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_grammar_drafts_what_it_forces_and_forbids_the_rest(
    run: Run, tokenizer: Tokenizer, temperature: float
) -> None:
    compiler = GrammarCompiler(tokenizer, (END,), VOCAB_SIZE)
    grammar = run(compiler.compile(SCHEMA))
    compiler.close()
    plain, bench = Bench(speculate=False), Bench(speculate=True)
    said = []
    for each in (plain, bench):
        for prompt in (chat("warm up"), chat('{"name_of_the_person": "a", "year_of_death": 1')):
            sequence = each.add(prompt, SamplingParams(temperature=temperature, seed=4, max_tokens=120), grammar)
            each.drain()
            said.append(answer(sequence))
    assert said[:2] == said[2:]
    assert json.loads(bytes(said[1]).decode().rstrip("\x00").strip() if said[1][-1] != END else bytes(said[1][:-1]))
    assert bench.clock.num_steps < plain.clock.num_steps / 1.5
    assert sequence.num_accepted_tokens >= 0.9 * sequence.num_drafted_tokens


def test_drafts_end_before_what_may_not_be_drawn_or_ends_the_answer(run: Run, tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, (END,), VOCAB_SIZE)
    grammar = run(compiler.compile(SCHEMA))
    compiler.close()
    params = SamplingParams(stop_token_ids=(ord("t"),))
    state = SamplingState(params, [1], (END,), grammar)
    assert state.plausible(list(b'{"name_of_a')) == list(b'{"name_of_')
    assert state.plausible(list(b"[1]")) == []
    assert state.plausible(list(b'{"name_of_the')) == list(b'{"name_of_')
    for token in b'{"n':
        state.accept(token)
    assert bytes(state.forced_tokens()) == b'ame_of_the_person"'
    free = SamplingState(params, [1], (END,))
    assert (free.plausible([5, END, 6]), free.plausible([END]), free.forced_tokens()) == ([5], [], [])


def test_a_prediction_is_drafted_from_and_counted_apart() -> None:
    bench = Bench(speculate=True)
    bench.add(chat("warm up the clock"), GREEDY)
    bench.drain()
    text = "abcdefghijklmnopqrstuvwxyz0123456789"  # nothing in it comes twice
    sequence = bench.add(chat(text), GREEDY, prediction=tuple(text.replace("m", "M").encode()))
    bench.drain()
    assert bytes(answer(sequence)[:-1]).decode() == text
    assert sequence.num_drafted_tokens >= sequence.num_drafted_predictions > sequence.num_accepted_predictions > 5


async def read(engine: Engine, prompt: list[int], sampling: SamplingParams) -> Delta:
    return merge([delta async for delta in engine.submit(prompt, sampling)])


@pytest.mark.parametrize("stop", ["gently", "merrily, mer", "boat", "y, "])
def test_a_stop_string_in_the_middle_of_drafts_ends_the_answer_there(run: Run, engine_over: Run, stop: str) -> None:
    async def scenario() -> None:
        answers, steps = [], []
        for speculation in (False, True):
            clock = Clock()
            runner = EchoRunner(gate=clock.pass_step)
            async with engine_over(runner, clock=clock, speculation=speculation) as engine:
                await read(engine, chat(SONG), replace(GREEDY, max_tokens=30))
                clock.num_steps = 0
                delta = await read(engine, chat(SONG), replace(GREEDY, stop=(stop,)))
                answers.append((delta.text, delta.token_ids, delta.finish_reason))
                assert delta.usage is not None
                assert delta.usage.stop_string == stop
                assert delta.usage.num_generated_tokens == len(delta.token_ids), "what came behind it is not counted"
                steps.append(clock.num_steps)
                assert engine.stats.num_free_blocks == engine.stats.num_blocks
        assert answers[0] == answers[1]
        assert answers[0][0] == SONG[: SONG.index(stop)]
        assert answers[0][2] is FinishReason.STOP
        assert steps[1] < steps[0]

    run(scenario())


def test_a_row_that_is_no_number_ends_its_sequence_after_what_was_drawn_before() -> None:
    class Broken(EchoRunner):
        def execute(self, batch: Batch) -> NDArray[np.float32]:
            logits = super().execute(batch)
            if len(logits) > 3:
                logits[2] = np.nan
            return logits

    bench = Bench(speculate=True)
    bench.executor._runner = Broken(num_blocks=64, block_size=4, gate=bench.clock.pass_step)
    sequence = bench.add(chat(SONG), GREEDY)
    while not (outcomes := bench.outcomes.get(sequence, [])) or outcomes[-1].error is None:
        bench.step()
    bench.executor.finish(sequence, SequenceStatus.FAILED)
    assert bytes(answer(sequence)).decode() == SONG[: len(outcomes) - 1]
    assert bench.executor.stats.num_free_blocks == 64


def test_where_nothing_can_be_drafted_nothing_is() -> None:
    bench = Bench(speculate=True)
    sequences: Sequence[Answering] = [bench.add(chat(SONG), replace(GREEDY, max_tokens=count)) for count in (0, 1, 1)]
    bench.drain()
    assert [len(answer(sequence)) for sequence in sequences] == [0, 1, 1]
    assert bench.executor.stats.num_drafted_tokens == 0


CODE = """def total_price(items):
    total = 0
    for item in items:
        price = item.price
        quantity = item.quantity
        total = total + price * quantity
    return total
"""
EDIT = f"<|im_start|>user\nRepeat this code twice, word for word:\n{CODE * 2}<|im_end|>\n<|im_start|>assistant\n{CODE}"


@pytest.mark.runtime
def test_the_real_model_says_the_same_and_sooner(run: Run, smollm2: InstalledModel) -> None:
    """In float32, where what a row is computed with makes no difference but in its last digits."""
    exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))

    async def scenario(speculation: bool) -> Delta:
        on_cpu = RunnerOptions("CPU", kv_cache_bytes=64 << 20, num_threads=2)
        runner = load_runner(smollm2.folder, on_cpu, properties=exact)
        options = EngineOptions(speculation=speculation)
        engine = Engine(runner, tokenizer, eos_token_ids=frozenset({2}), options=options, context_length=1024)
        try:
            prompt = tokenizer.encode(EDIT, add_special_tokens=False).ids
            return await read(engine, prompt, replace(GREEDY, max_tokens=60, logprobs=2))
        finally:
            await engine.aclose()

    plain, drafted = run(scenario(False)), run(scenario(True))
    assert drafted.usage is not None
    assert drafted.usage.num_accepted_tokens > 0
    pairs = zip(plain.token_ids, drafted.token_ids, strict=False)
    parting = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if parting is None:
        assert (plain.text, plain.finish_reason) == (drafted.text, drafted.finish_reason)
    else:
        (_, first), (_, second) = plain.logprobs[parting].top
        assert first - second < 1e-2, "only a tie may be broken differently"


def test_what_drafts_cost_can_be_known_before_the_first_answer() -> None:
    clock = Clock()
    costs = measured_costs(EchoRunner(num_blocks=4, gate=clock.pass_step), clock, limit_s=1000)
    assert costs.is_known(1)
    assert costs.knows_drafts(1)
    assert costs.ratios(1, 15) == pytest.approx([(1.1 + drafts / 10) / 1.1 for drafts in range(16)])


@pytest.mark.parametrize(("limit_s", "knows_drafts"), [(6.0, False), (20.0, True)])
def test_a_slow_model_is_not_tried_for_long(limit_s: float, knows_drafts: bool) -> None:
    clock = Clock()
    costs = measured_costs(EchoRunner(num_blocks=4, gate=clock.pass_step), clock, limit_s=limit_s)
    assert clock.now < limit_s + 3
    assert costs.is_known(1)
    assert costs.knows_drafts(1) is knows_drafts


def test_a_runner_with_few_positions_is_tried_as_far_as_they_go() -> None:
    clock = Clock()
    runner = EchoRunner(num_blocks=1, block_size=4, gate=clock.pass_step)
    assert measured_costs(runner, clock, limit_s=1000).knows_drafts(1)
