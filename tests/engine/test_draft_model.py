"""A second model that drafts: its blocks hold what it should, whatever becomes of its drafts."""

from collections.abc import Callable
from dataclasses import replace
from string import ascii_letters, digits

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_adapters.echo import ASSISTANT, END, USER, VOCAB_SIZE, EchoRunner
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch, SamplingParams
from vmm_server.engine.draft_model import DraftModel
from vmm_server.engine.drafting import Chance, DraftPlanner, StepCosts
from vmm_server.engine.paged_executor import PagedExecutor
from vmm_server.engine.sequence import Sequence
from vmm_server.engine.speculation import Speculator

GREEDY = SamplingParams(temperature=0, max_tokens=100)


class Clock:
    """A step of the large model takes 1 s and a tenth for each token, one of the small model a twentieth of that."""

    def __init__(self) -> None:
        self.now = 0.0
        self.batches: list[Batch] = []
        self.small: list[Batch] = []

    def __call__(self) -> float:
        return self.now

    def pass_large(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.now += 1 + batch.num_tokens / 10

    def pass_small(self, batch: Batch) -> None:
        assert all(chunk.token_ids for chunk in batch.chunks)
        self.small.append(batch)
        self.now += 0.05 + batch.num_tokens / 200


def sequence_of(text: str, *, max_length: int = 200) -> Sequence:
    return Sequence(list(text.encode()), GREEDY, max_length=max_length)


def said_after(sequence: Sequence, count: int) -> list[int]:
    """What the echo model says next outside of a chat: the alphabet."""
    last = sequence.token_ids[-1] - ord("a") + 1
    return [ord("a") + (last + i) % 26 for i in range(count)]


def draft_model(clock: Clock | None = None, *, num_blocks: int = 64, max_batched_tokens: int = 16) -> DraftModel:
    clock = clock or Clock()
    runner = EchoRunner(num_blocks=num_blocks, block_size=4, gate=clock.pass_small, context_length=120)
    return DraftModel(runner, clock, max_batched_tokens=max_batched_tokens)


@settings(max_examples=60)
@given(data=st.data())
def test_drafts_follow_sequences_wherever_they_go(data: st.DataObject) -> None:
    """The echo runner fails on any block that does not hold what the sequence says."""
    model = draft_model(num_blocks=40)
    letters = st.text("abc", min_size=1, max_size=30)
    sequences = [sequence_of(data.draw(letters)) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 12))):
        asking = [each for each in sequences if data.draw(st.booleans())]
        num_drafts = data.draw(st.integers(1, 5))
        drafts = model.draft(asking, num_drafts, VOCAB_SIZE)
        for each in drafts:
            assert drafts[each] == said_after(each, num_drafts)
        for each in sequences:
            kept = drafts.get(each, [])[: data.draw(st.integers(0, 5))]
            each.token_ids += [*kept, data.draw(st.sampled_from(list(b"abcxyz")))]
        if data.draw(st.integers(0, 5)) == 0:
            gone = sequences.pop(0)
            model.forget(gone)
            model.forget(gone)
            sequences.append(sequence_of(data.draw(letters)))
    for each in sequences:
        model.forget(each)
    assert model.num_free_blocks == 40


def test_a_prompt_is_read_once_and_found_again() -> None:
    clock = Clock()
    model = draft_model(clock, max_batched_tokens=8)
    first, second = (sequence_of("abcdefghijklmnopqrstuvw") for _ in range(2))
    model.draft([first], 2, VOCAB_SIZE)
    assert [batch.num_tokens for batch in clock.small] == [8, 8, 7, 1]
    clock.small.clear()
    first.token_ids += said_after(first, 3)
    model.draft([first], 2, VOCAB_SIZE)
    assert [batch.num_tokens for batch in clock.small] == [2, 1], "one of the drafts was computed already"
    clock.small.clear()
    model.draft([second], 1, VOCAB_SIZE)
    assert sum(batch.num_tokens for batch in clock.small) == len(second.token_ids) - 20, "what fills blocks is shared"
    model.forget(first)
    assert model.num_free_blocks == 64 - 6
    assert model.draft([second], 2, VOCAB_SIZE) == {second: list(b"xy")}
    model.forget(second)
    assert model.num_free_blocks == 64


def test_nothing_is_drafted_without_room_or_beyond_the_vocabulary() -> None:
    model = draft_model(num_blocks=4)
    wide, narrow = sequence_of("a" * 12), sequence_of("abc")
    assert model.draft([wide, narrow], 2, VOCAB_SIZE).keys() == {wide}
    assert model.draft([narrow], 2, VOCAB_SIZE) == {}
    model.forget(wide)
    assert model.draft([narrow], 3, VOCAB_SIZE) == {narrow: list(b"def")}
    assert model.draft([narrow], 3, ord("f")) == {narrow: list(b"de")}
    assert draft_model().draft([sequence_of("a" * 118)], 4, VOCAB_SIZE) == {}, "the draft model's context is 120"


def test_a_prompt_is_not_read_for_a_short_answer() -> None:
    model = draft_model()
    assert not model.is_at_hand(sequence_of("a" * 60, max_length=70))
    assert model.is_at_hand(sequence_of("a" * 60, max_length=90))
    read = sequence_of("a" * 60, max_length=70)
    model.draft([read], 1, VOCAB_SIZE)
    assert model.is_at_hand(read)


class Counting(EchoRunner):
    """Says how many tokens there are, so that nothing comes twice and nothing can be looked up."""

    def __init__(self, gate: Callable[[Batch], None], error: int = 0) -> None:
        super().__init__(num_blocks=64, block_size=4, gate=gate, context_length=240)
        self._error = error

    def _next_token(self, tokens: NDArray[np.int32], hashes: NDArray[np.uint64]) -> int:
        return len(tokens) + self._error


def answers(clock: Clock, drafting: DraftModel | None, sampling: SamplingParams = GREEDY) -> list[Sequence]:
    """Two, one after the other."""
    executor = PagedExecutor(
        Counting(clock.pass_large),
        eos_token_ids=frozenset(),
        max_batched_tokens=64,
        max_sequences=4,
        max_score_bytes=2**20,
        clock=clock,
        speculator=Speculator(VOCAB_SIZE, drafting),
    )
    sequences = [Sequence([token], sampling, max_length=240) for token in (250, 251)]
    for sequence in sequences:
        executor.add(sequence, None)
        while executor.has_work:
            list(executor.step())
        executor.finish(sequence, sequence.status)  # as the worker does
    executor.close()
    return sequences


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_answers_are_the_same_and_sooner(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=3, max_tokens=100)
    plain, drafted = Clock(), Clock()
    model = DraftModel(Counting(drafted.pass_small), drafted, max_batched_tokens=16)
    alone, together = answers(plain, None, sampling), answers(drafted, model, sampling)
    assert [each.token_ids for each in alone] == [each.token_ids for each in together]
    assert all(each.num_accepted_tokens for each in together)
    assert model.num_free_blocks == 64
    assert drafted.now < plain.now * (0.5 if temperature == 0 else 0.9)


def test_it_is_not_asked_where_a_lookup_is_likelier_to_be_right() -> None:
    clock = Clock()
    executor = PagedExecutor(
        EchoRunner(num_blocks=64, block_size=4, gate=clock.pass_large),
        eos_token_ids=frozenset({END}),
        max_batched_tokens=200,
        max_sequences=4,
        max_score_bytes=2**20,
        clock=clock,
        speculator=Speculator(VOCAB_SIZE, DraftModel(Counting(clock.pass_small), clock, max_batched_tokens=200)),
    )
    prompt = [USER, *ascii_letters.encode(), *digits.encode(), END, ASSISTANT]
    executor.add(Sequence(prompt, GREEDY, max_length=200, eos_token_ids=frozenset({END})), None)
    while executor.has_work:
        list(executor.step())
    asked_late = [chunk.start for batch in clock.small for chunk in batch.chunks if chunk.start > len(prompt) + 12]
    assert asked_late == []


def test_a_draft_model_that_is_always_wrong_is_asked_a_few_times() -> None:
    clock, plain = Clock(), Clock()
    runner = Counting(clock.pass_small, error=1)
    drafted = answers(clock, DraftModel(runner, clock, max_batched_tokens=16))
    assert [each.token_ids for each in drafted] == [each.token_ids for each in answers(plain, None)]
    assert 0 < sum(each.num_drafted_tokens for each in drafted) < 40
    assert clock.now < plain.now * 1.03
    assert runner.is_closed


def test_one_that_fails_is_given_up_and_nobody_notices(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()

    def fail(batch: Batch) -> None:
        if len(clock.small) > 20:
            raise RuntimeFailed("out of order")
        clock.pass_small(batch)

    runner = Counting(fail)
    drafted = answers(clock, DraftModel(runner, clock, max_batched_tokens=16))
    assert [each.token_ids for each in drafted] == [[250, *range(1, 101)], [251, *range(1, 101)]]
    assert runner.is_closed
    assert caplog.text.count("the draft model failed and is given up") == 1


Plan = Callable[..., tuple[int, list[int]]]


@pytest.fixture
def depth() -> Plan:
    costs = StepCosts()
    for num_drafts, seconds in ((0, 1.0), (1, 1.1), (4, 1.5), (8, 2.2)) * 4:
        costs.note(1, num_drafts, seconds)
    return DraftPlanner(costs).depth


@pytest.mark.parametrize(
    ("probability", "draft_s", "expected"),
    [(0.9, 0.05, 6), (0.9, 0.3, 2), (0.5, 0.05, 2), (0.3, 0.3, 0), (0.9, 2.0, 0)],
)
def test_the_dearer_a_draft_the_fewer(depth: Plan, probability: float, draft_s: float, expected: int) -> None:
    found, _ = depth([Chance(20, probability, 9.0)], 1, draft_s)
    assert abs(found - expected) <= (expected > 0)


def test_who_cannot_pay_is_not_asked_for(depth: Plan) -> None:
    chance = Chance(20, 0.9, 9.0)
    assert depth([chance], 1, None) == (1, [0]), "what a draft takes has to be found out"
    assert depth([replace(chance, probability=0.2)], 1, None)[0] == 0
    assert depth([replace(chance, credit=0.1)], 1, 0.05) == (0, [])
    assert depth([replace(chance, credit=0.5)], 1, 0.05)[0] < depth([chance], 1, 0.05)[0]
    assert depth([chance], 2, 0.05) == (0, []), "no plain step of two was measured"
    assert depth([], 1, 0.05) == (0, [])
