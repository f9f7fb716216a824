"""The scheduler on the echo runner, without threads: it checks every block it reads."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmm_server.engine.scheduler import Drafter
from vmm_server.engine.sequence import Sequence, SequenceStatus
from vmm_server.engine.step import Step

from .scheduler_bench import Bench, alphabet_after, answer, shape


def test_a_prompt_is_computed_in_chunks_of_the_budget_and_sampled_at_its_end() -> None:
    bench = Bench(max_batched_tokens=8)
    sequence = bench.add("a" * 19)
    steps = [bench.step() for _ in range(3)]
    assert [shape(step) for step in steps] == [[(sequence, 8)], [(sequence, 8)], [(sequence, 3)]]
    assert [step.batch.num_logits for step in steps] == [0, 0, 1]
    assert answer(sequence) == "b"


def test_decodes_go_before_prompt_chunks_and_new_sequences_fill_the_budget() -> None:
    bench = Bench(max_batched_tokens=8)
    first = bench.add("abc", 9)
    bench.step()
    second, third = bench.add("x" * 10), bench.add("hi")
    assert shape(bench.step()) == [(first, 1), (second, 4), (third, 2)], "a prompt is cut where a block ends"
    assert shape(bench.step()) == [(first, 1), (third, 1), (second, 6)]


def test_lower_priority_value_goes_first_and_equals_in_order_of_arrival() -> None:
    bench = Bench(max_sequences=1)
    order = [bench.add("a", 1, priority=priority) for priority in (1, 0, 1, 0)]
    seen = [bench.step().sequences[0] for _ in order]
    assert seen == [order[1], order[3], order[0], order[2]]


def test_lower_priority_makes_room_for_higher() -> None:
    bench = Bench(max_sequences=1)
    low = bench.add("abc", priority=5)
    bench.step()
    high = bench.add("stuvwxyz", priority=1)
    assert shape(bench.step()) == [(high, 8)], "the budget of the one that left is free again"
    assert low.status is SequenceStatus.PREEMPTED
    bench.drain()
    assert (answer(high), answer(low)) == ("abcd", "defg")


def test_a_new_sequence_leaves_a_block_for_each_running_one() -> None:
    bench = Bench(num_blocks=4)
    bench.add("abcd", 12)
    bench.step()
    tight = bench.add("abcdefghijk", 2)
    bench.step()
    assert tight.status is SequenceStatus.WAITING
    bench.drain()
    assert bench.scheduler.num_preempted == 0


def test_there_are_never_more_sequences_than_tokens_in_a_step() -> None:
    assert Bench(max_batched_tokens=2, max_sequences=8).scheduler.max_sequences == 2


def test_when_blocks_run_out_the_youngest_is_preempted_and_still_answers_the_same() -> None:
    bench = Bench(num_blocks=6, max_batched_tokens=16)
    old, young = bench.add("abcd", 16), bench.add("mnop", 16)
    bench.drain()
    assert bench.scheduler.num_preempted > 0
    assert old.num_preemptions == 0
    assert young.num_cached_tokens == 0, "its own blocks, found again, are no cached prompt"
    assert (answer(old), answer(young)) == (alphabet_after("d", 16), alphabet_after("p", 16))


def test_a_repeated_prefix_is_looked_up() -> None:
    bench = Bench()
    bench.add("abcdefgh" + "xyz", 1)
    bench.drain()
    bench.num_computed = 0
    again = bench.add("abcdefgh" + "klm", 1)
    bench.drain()
    assert again.num_cached_tokens == 8
    assert bench.num_computed == 3


def test_an_answer_is_a_prefix_too() -> None:
    bench = Bench()
    bench.add("abcd", 9)
    bench.drain()
    again = bench.add("abcd" + alphabet_after("d", 9) + "!", 1)
    bench.drain()
    assert again.num_cached_tokens == 12


def test_a_wholly_cached_prompt_copies_its_last_block_and_computes_one_token() -> None:
    bench = Bench()
    bench.add("abcdefgh", 1)
    bench.drain()
    bench.num_computed = 0
    again = bench.add("abcdefgh", 4)
    step = bench.scheduler.schedule()
    cached = bench.pool.lookup(again.block_keys[1])
    assert step.block_copies == ((cached, again.block_table[1]),)
    bench.compute(step)
    bench.drain()
    assert (again.num_cached_tokens, bench.num_computed, answer(again)) == (7, 4, "ijkl")


def test_a_wholly_cached_prompt_that_fills_all_blocks_takes_its_last_one_over() -> None:
    bench = Bench(num_blocks=2)
    bench.add("abcdefgh", 1)
    bench.drain()
    again = bench.add("abcdefgh", 1)
    step = bench.step()
    assert step.block_copies == ()
    assert (again.num_cached_tokens, answer(again)) == (7, "i")


@pytest.mark.parametrize("prompt", ["abcdefghijklmnopqrstuvwxyzab", "abcdefghijklmnopqrstuvwxyzabcd"])
def test_sequences_that_compute_the_same_prompt_share_blocks_as_they_fill(prompt: str) -> None:
    bench = Bench(max_batched_tokens=16, num_blocks=32)
    first, second, third = (bench.add(prompt, 1) for _ in range(3))
    assert shape(bench.step()) == [(first, 16)]
    whole = (32 - len(prompt)) // 4 * 4  # what is left is a block, or less than one
    computed = [(first, len(prompt) - 16), *([(second, whole)] if whole else [])]  # shares the 16, …
    assert shape(bench.step()) == computed
    rest = len(prompt) - 28 or 1  # … and the others
    assert shape(bench.step()) == [(second, rest), (third, rest)]
    assert answer(first) == answer(second) == answer(third)
    assert (second.num_cached_tokens, third.num_cached_tokens) == (len(prompt) - rest - whole, len(prompt) - rest)
    assert bench.pool.num_free == 32


def test_a_prompt_gets_less_than_a_block_where_there_is_never_more() -> None:
    bench = Bench(block_size=16, max_batched_tokens=17)
    prompt = "abcdefghijklmnopqrstuvwxyzabcdefgh"
    first, second = (bench.add(prompt, 1) for _ in range(2))
    assert shape(bench.step()) == [(first, 16), (second, 1)]
    assert shape(bench.step()) == [(first, 16), (second, 1)], "the block it had begun is given back for the shared one"
    assert shape(bench.step()) == [(first, 2), (second, 2)]
    assert (answer(first), answer(second)) == ("i", "i")
    assert bench.pool.num_free == 16


def test_salts_do_not_share() -> None:
    bench = Bench()
    bench.add("abcdefgh" + "x", 1, salt=b"one")
    bench.drain()
    again = bench.add("abcdefgh" + "x", 1, salt=b"two")
    bench.drain()
    assert again.num_cached_tokens == 0


@pytest.mark.parametrize("num_steps", [0, 1, 4], ids=["queue", "prefill", "decode"])
def test_abort_frees_blocks_at_once(num_steps: int) -> None:
    bench = Bench(max_batched_tokens=8)
    sequence = bench.add("a" * 20, 20)
    for _ in range(num_steps):
        bench.step()
    assert (bench.pool.num_free < 16) == (num_steps > 0)
    bench.scheduler.finish(sequence, SequenceStatus.ABORTED)
    assert bench.pool.num_free == 16
    assert not bench.scheduler.has_work
    bench.scheduler.finish(sequence, SequenceStatus.ABORTED)
    assert bench.pool.num_free == 16


def test_a_token_that_could_not_be_drawn_fails_only_its_sequence() -> None:
    bench = Bench()
    bad, good = bench.add("abc"), bench.add("xyz")
    step = bench.scheduler.schedule()
    bench.runner.execute(step.batch)
    bench.scheduler.update(step)
    bench.scheduler.finish(bad, SequenceStatus.FAILED)
    bench.scheduler.append(good, ord("a"))
    bench.drain()
    assert answer(good) == "abcd"
    assert bench.pool.num_free == 16


def test_more_sequences_than_budget_never_starve_a_decode() -> None:
    bench = Bench(num_blocks=64, max_batched_tokens=2, max_sequences=8)
    sequences = [bench.add(letter, 5) for letter in "abcdefgh"]
    bench.drain()
    assert [answer(s) for s in sequences] == [alphabet_after(letter, 5) for letter in "abcdefgh"]


def test_a_scored_prompt_is_cut_where_blocks_end() -> None:
    bench = Bench(max_batched_tokens=16, max_scores=10)
    first, second = (bench.add(letter * 19, 0, prompt_logprobs=0) for letter in "ab")
    steps = [shape(bench.step()) for _ in range(5)]
    assert steps == [
        [(first, 8)],
        [(first, 8)],
        [(first, 3), (second, 4)],
        [(second, 8)],
        [(second, 7)],
    ]
    assert not bench.scheduler.has_work


def test_a_scored_prompt_that_is_first_in_rank_advances_when_others_took_all_rows() -> None:
    bench = Bench(max_sequences=2, max_scores=4)
    first = bench.add("a" * 10, 0, tenant="a", prompt_logprobs=0)
    other = bench.add("b" * 10, 0, tenant="b", prompt_logprobs=0)
    assert shape(bench.step()) == [(first, 4)]
    assert shape(bench.step()) == [(other, 4), (first, 1)]
    bench.drain()


def drafting(**drafts: str) -> Drafter:
    """Draft for a sequence what the last letter of its text says."""
    return lambda sequences, budget: {
        s: list(drafts[chr(s.token_ids[-1])].encode())[:budget] for s in sequences if chr(s.token_ids[-1]) in drafts
    }


def test_drafts_are_taken_up_to_the_first_wrong_one() -> None:
    bench = Bench(drafter=drafting(c="de?g"))
    sequence = bench.add("abc", 9)
    step = bench.step()
    assert (shape(step), step.num_drafts) == ([(sequence, 3)], 0), "nothing is drafted behind a prompt"
    bench.drafter = drafting(d="ef?h")
    step = bench.step()
    assert (shape(step), step.num_drafts, step.batch.num_logits) == ([(sequence, 5)], 4, 5)
    assert answer(sequence) == "defg"
    assert sequence.num_computed_tokens == 6
    bench.drain()
    assert answer(sequence) == alphabet_after("c", 9)


def test_drafts_leave_the_budget_to_tokens_and_the_blocks_to_others() -> None:
    bench = Bench(num_blocks=3, max_batched_tokens=3, drafter=drafting(d="efghijkl"))
    sequence = bench.add("abc", 9)
    bench.step()
    assert shape(bench.step()) == [(sequence, 3)], "the last token and two drafts"
    bench = Bench(num_blocks=3, drafter=drafting(d="efghijk", z="abcdefg"))
    first, second = bench.add("abc", 2), bench.add("xy", 2)
    bench.step()
    step = bench.scheduler.schedule(bench.drafter)
    assert shape(step) == [(first, 5), (second, 2)], "the first takes the free block, the other what its own has left"
    bench.compute(step)
    assert bench.pool.num_free == 3


def test_a_block_that_only_drafts_fill_is_given_back_and_never_shared() -> None:
    bench = Bench(drafter=drafting(d="eXXXXXX"))
    sequence = bench.add("abc", 12)
    bench.step()
    bench.step()
    assert (answer(sequence), len(sequence.block_table), len(sequence.block_keys)) == ("def", 2, 1)
    assert bench.pool.num_free == 14
    bench.drain()
    other = bench.add("abcdeXXXXXXXX", 1)
    bench.step()
    assert other.num_cached_tokens == 4


def test_nothing_is_drafted_while_a_prompt_is_computed() -> None:
    bench = Bench(max_batched_tokens=16, drafter=drafting(c="defg"))
    first = bench.add("a", 9)
    bench.step()
    second = bench.add("xyz" * 4)
    assert shape(bench.step()) == [(first, 1), (second, 12)]
    assert bench.step().num_drafts == 4


class SchedulerMachine(RuleBasedStateMachine):
    """Random traffic on pools of random size. After each step the books must balance."""

    @initialize(
        num_blocks=st.integers(2, 12),
        budget=st.integers(1, 12),
        max_sequences=st.integers(1, 5),
        max_scores=st.integers(1, 12),
        background_tokens=st.integers(1, 12),
        seed=st.integers(0, 2**32),
    )
    def start(self, num_blocks: int, budget: int, seed: int, **limits: int) -> None:
        self.bench = Bench(num_blocks, max_batched_tokens=budget, **limits)
        self.random = Random(seed)
        self.scheduler, self.pool = self.bench.scheduler, self.bench.pool
        self.sequences: list[Sequence] = []

    @rule(
        prompt=st.text(alphabet="ab", min_size=1, max_size=48),
        max_tokens=st.integers(0, 20),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from("abc"),
        salt=st.sampled_from([b"", b"s"]),
        prompt_logprobs=st.sampled_from([None, 0]),
    )
    def add(self, prompt: str, **fields: Any) -> None:
        prompt = prompt[: self.pool.num_positions]
        weight = {"a": 1.0, "b": 2.0, "c": 0.5}[fields["tenant"]]
        self.sequences.append(self.bench.add(prompt, weight=weight, **fields))

    @precondition(lambda self: any(not s.is_finished for s in self.sequences))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([s for s in self.sequences if not s.is_finished]))
        self.scheduler.finish(sequence, SequenceStatus.ABORTED)
        assert sequence.block_table == []

    @precondition(lambda self: self.scheduler.has_work)
    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.scheduler.has_work:
                self._step()

    def _draft(self, sequences: list[Sequence], budget: int) -> dict[Sequence, list[int]]:
        """For some of them what will be said, or what begins so and goes wrong."""
        drafts = {}
        self.running_when_drafting = list(self.scheduler.running)
        for sequence in sequences:
            count = min(budget, sequence.num_draftable_tokens, self.random.randrange(7))
            if count > 0:
                right = list(alphabet_after(bytes(sequence.token_ids).decode(), count).encode())
                num_right = self.random.randrange(count + 1)
                drafts[sequence] = right[:num_right] + [ord("?")] * (count - num_right)
                budget -= count
        return drafts

    def _step(self) -> None:
        self.running_when_drafting = []
        running = list(self.scheduler.running)
        decoding = [s for s in running if s.num_pending_tokens == 1]
        num_paid = {s: s.num_served_tokens for s in self.sequences}
        step = self.scheduler.schedule(self._draft)
        assert all(num_paid[s] <= s.num_served_tokens <= len(s.token_ids) for s in self.sequences)
        assert self.running_when_drafting in ([], self.scheduler.running), "a draft preempts"
        assert 0 < step.batch.num_tokens <= self.scheduler.max_batched_tokens
        assert len(set(step.sequences)) == len(step.sequences) <= self.scheduler.max_sequences
        urgent = min(s.priority for s in self.scheduler.running)
        assert any(s.priority == urgent for s in step.sequences), "the best priority must advance"
        prompts = [s for s in step.sequences if s not in decoding]
        assert all(s.priority == min(p.priority for p in prompts) for s in prompts), "worse prompts sit out"
        drawing = {rows.sequence for rows in step.draws} - {rows.sequence for rows in step.scored}
        assert step.batch.num_logits - len(drawing) <= self.scheduler.max_scores + 1
        drawn_rows = [rows.first_row + i for rows in step.draws for i in range(len(rows.draft_ids) + 1)]
        assert step.scored or drawn_rows == list(range(step.batch.num_logits))
        targets = [target for _, target in step.block_copies]
        for sequence, chunk in zip(step.sequences, step.batch.chunks, strict=True):
            assert chunk.start == sequence.num_computed_tokens
            end = chunk.start + len(chunk.token_ids)
            if end < len(sequence.token_ids) and self.scheduler.max_batched_tokens - self.scheduler.max_sequences >= 4:
                stayed = [each for each in running if each.is_running and each is not sequence]
                was_first = all(sequence.rank < each.rank for each in stayed)  # those let in later may be before it
                may_cut = was_first or sequence in (*running[:1], self.scheduler.running[0])
                may_cut |= sequence.priority > 0 and not sequence.is_scoring
                assert may_cut or end % 4 == 0, "a prompt is cut inside a block"
            written = range(chunk.start // 4, -(-(chunk.start + len(chunk.token_ids)) // 4))
            for block in (chunk.block_table[i] for i in written):
                assert self.pool.num_holders(block) == 1, "a block is written that others read"
                assert block not in self._registered(), "a full block is written"
        assert all(self.pool.num_holders(target) == 1 for target in targets)
        for sequence in decoding:
            stalled = sequence.num_computed_tokens == 4 * len(sequence.block_table) and not self.pool.num_free
            preempted = sequence.status is SequenceStatus.PREEMPTED or sequence.num_computed_tokens == 0
            sits_out = sequence.priority > 0 or any(prompt.priority < sequence.priority for prompt in prompts)
            assert sequence in step.sequences or stalled or preempted or sits_out, "a decode starves"
        self._check_nothing_is_idle(step)
        self.bench.compute(step)

    def _check_nothing_is_idle(self, step: Step) -> None:
        """Whoever could compute something does, while there are budget, blocks and places."""
        urgent = min(s.priority for s in self.scheduler.running)
        left = self.scheduler.max_batched_tokens - step.batch.num_tokens
        idle = [s for s in self.scheduler.running if s.priority == urgent and s not in step.sequences]
        if urgent <= 0 and left >= 4 and self.pool.num_free and not any(s.is_scoring for s in idle):
            assert not idle, "one that runs has nothing to do"

    def _registered(self) -> set[int]:
        keys = {key for s in self.sequences for key in s.block_keys}
        return {block for key in keys if (block := self.pool.lookup(key)) is not None}

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "bench"):
            return
        held = [block for s in self.sequences for block in s.block_table]
        assert all(len(s.block_table) <= self.pool.num_blocks_for(len(s.token_ids)) for s in self.sequences)
        holders = [self.pool.num_holders(block) for block in range(self.pool.num_blocks)]
        assert holders == [held.count(block) for block in range(self.pool.num_blocks)]
        assert self.pool.num_free == holders.count(0)
        queues = self.scheduler.waiting + self.scheduler.running
        assert {id(s) for s in queues} == {id(s) for s in self.sequences if not s.is_finished}
        assert len(queues) == len(set(queues))
        for queue in (self.scheduler.waiting, self.scheduler.running):
            assert [s.rank for s in queue] == sorted(s.rank for s in queue)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for _ in range(5_000):
            if not self.scheduler.has_work:
                break
            self._step()
        assert not self.scheduler.has_work, "livelock"
        assert self.pool.num_free == self.pool.num_blocks
        for sequence in self.sequences:
            assert sequence.is_finished
            text = bytes(sequence.token_ids[: sequence.num_prompt_tokens]).decode()
            assert answer(sequence) == alphabet_after(text, sequence.num_generated_tokens)
            scores = self.bench.scores.get(sequence, [])
            expected = [(ord(after), ord(before) + 1) for before, after in pairwise(text)]
            if sequence.sampling.prompt_logprobs is None:
                assert scores == []
            elif sequence.status is SequenceStatus.ABORTED:
                assert scores == expected[: len(scores)]
            else:
                assert scores == expected, "each prompt token is scored once, in order"


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRandomTraffic = SchedulerMachine.TestCase
