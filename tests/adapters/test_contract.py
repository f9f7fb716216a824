"""What every `CausalLMRunner` promises, whatever computes it (`vmm_adapters/base.py`)."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import Batch, Chunk

from .conftest import Subject

Logits = NDArray[np.float32]
Same = Callable[[Logits, Logits], None]


@pytest.fixture
def same(subject: Subject) -> Same:
    def check(left: Logits, right: Logits) -> None:
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=0, atol=subject.tolerance)

    return check


def tokens_of(seed: int, length: int) -> list[int]:
    """Ids that every vocabulary under test has."""
    return np.random.default_rng(seed).integers(0, 80, length).tolist()


def table_for(runner: CausalLMRunner, length: int, first: int = 0) -> list[int]:
    return list(range(first, first + -(-length // runner.block_size)))


def run(runner: CausalLMRunner, tokens: Sequence[int], sizes: Sequence[int], table: Sequence[int]) -> Logits:
    """Logits of every position, computed in chunks of these sizes."""
    rows, start = [], 0
    for size in sizes:
        chunk = Chunk(tokens[start : start + size], start, table, size)
        rows.append(runner.execute(Batch((chunk,))).copy())
        start += size
    assert start == len(tokens)
    return np.concatenate(rows)


def random_sizes(seed: int, total: int) -> list[int]:
    cuts = np.random.default_rng(seed).choice(np.arange(1, total), 6, replace=False)
    return np.diff([0, *sorted(cuts), total]).tolist()


def test_the_sizes_are_sane(runner: CausalLMRunner) -> None:
    assert runner.block_size > 0
    assert runner.num_blocks * runner.block_size >= 100
    assert runner.vocab_size >= 80
    assert runner.context_length >= 100
    assert runner.memory_bytes > 0
    assert runner.device == "CPU"


def test_logits_are_float32_rows(runner: CausalLMRunner) -> None:
    logits = runner.execute(Batch((Chunk([1, 2, 3], 0, table_for(runner, 3), 2),)))
    assert logits.dtype == np.float32
    assert logits.shape == (2, runner.vocab_size)
    assert np.isfinite(logits).all()
    assert (logits[0] != logits[1]).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_chunked_prompt_gives_the_logits_of_the_whole_one(runner: CausalLMRunner, same: Same, seed: int) -> None:
    tokens = tokens_of(seed, 90)
    table = table_for(runner, 90)
    whole = run(runner, tokens, [90], table)
    same(run(runner, tokens, random_sizes(seed, 90), table), whole)
    same(run(runner, tokens, [1] * 90, table), whole)


def test_the_order_of_blocks_does_not_matter(runner: CausalLMRunner, same: Same) -> None:
    tokens = tokens_of(3, 90)
    plain = run(runner, tokens, [90], table_for(runner, 90))
    shuffled = np.random.default_rng(3).permutation(runner.num_blocks)[: -(-90 // runner.block_size)].tolist()
    same(run(runner, tokens, [40, 50], shuffled), plain)


def test_a_table_may_hold_more_blocks_than_are_filled(runner: CausalLMRunner, same: Same) -> None:
    tokens = tokens_of(4, 20)
    exact = run(runner, tokens, [20], table_for(runner, 20))
    same(run(runner, tokens, [20], table_for(runner, 100)), exact)


def test_blocks_of_a_shared_prefix_serve_another_sequence(runner: CausalLMRunner, same: Same) -> None:
    shared = 2 * runner.block_size
    prefix, first, second = tokens_of(5, shared), tokens_of(6, 17), tokens_of(7, 17)
    table = table_for(runner, shared + 17)
    run(runner, prefix + first, [shared + 17], table)
    other = [*table[:2], *table_for(runner, 17, first=len(table))]
    reused = runner.execute(Batch((Chunk(second, shared, other, 17),))).copy()
    cold = run(runner, prefix + second, [shared + 17], table_for(runner, shared + 17, first=8))[shared:]
    same(reused, cold)


def test_both_sharers_of_a_prefix_may_run_in_one_step(runner: CausalLMRunner, same: Same) -> None:
    shared = runner.block_size
    prefix, left, right = tokens_of(8, shared), tokens_of(9, 3), tokens_of(10, 3)
    run(runner, prefix, [shared], [0])
    both = runner.execute(Batch((Chunk(left, shared, [0, 1], 3), Chunk(right, shared, [0, 2], 3)))).copy()
    same(both[:3], run(runner, prefix + left, [shared + 3], [3, 4])[shared:])
    same(both[3:], run(runner, prefix + right, [shared + 3], [3, 4])[shared:])


def test_copied_blocks_go_on_as_the_originals_do(runner: CausalLMRunner, same: Same) -> None:
    length = runner.block_size + 5
    tokens, more = tokens_of(11, length), tokens_of(12, 4)
    run(runner, tokens, [length], [0, 1])
    runner.copy_blocks([(0, 5), (1, 2), (2, 6)])
    original = runner.execute(Batch((Chunk(more, length, [0, 1], 4),))).copy()
    same(runner.execute(Batch((Chunk(more, length, [5, 6], 4),))), original)


def test_a_copied_block_is_independent(runner: CausalLMRunner, same: Same) -> None:
    tokens, left, right = tokens_of(13, 5), tokens_of(14, 4), tokens_of(15, 4)
    expected = run(runner, tokens + left, [9], [3])[5:]
    run(runner, tokens, [5], [0])
    runner.copy_blocks([(0, 1)])
    runner.execute(Batch((Chunk(right, 5, [1], 4),)))
    same(runner.execute(Batch((Chunk(left, 5, [0], 4),))), expected)


def test_rows_come_in_the_order_of_chunks_and_positions(runner: CausalLMRunner, same: Same) -> None:
    parts = [tokens_of(seed, length) for seed, length in ((16, 7), (17, 1), (18, 40), (19, 5))]
    wanted = [2, 1, 0, 5]
    tables = [table_for(runner, 40, first=10 * index) for index in range(4)]
    expected = [run(runner, part, [len(part)], table) for part, table in zip(parts, tables, strict=True)]
    chunks = tuple(Chunk(part, 0, table, count) for part, table, count in zip(parts, tables, wanted, strict=True))
    rows = [logits[len(logits) - count :] for logits, count in zip(expected, wanted, strict=True)]
    same(runner.execute(Batch(chunks)), np.concatenate(rows))


@pytest.mark.parametrize("seed", range(3))
def test_the_company_in_a_batch_does_not_matter(runner: CausalLMRunner, same: Same, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [60, 33, 50, 41]
    sequences = [tokens_of(20 + index, length) for index, length in enumerate(lengths)]
    tables = [table_for(runner, 64, first=6 * index) for index in range(4)]
    alone = [run(runner, each, [len(each)], table) for each, table in zip(sequences, tables, strict=True)]
    done = [0] * 4
    together: list[list[Logits]] = [[] for _ in range(4)]
    while any(count < length for count, length in zip(done, lengths, strict=True)):
        going = [index for index in range(4) if done[index] < lengths[index] and rng.random() < 0.7]
        sizes = [min(int(rng.choice([1, 1, 9, 20])), lengths[index] - done[index]) for index in going]
        chunks = tuple(
            Chunk(sequences[index][done[index] : done[index] + size], done[index], tables[index], size)
            for index, size in zip(going, sizes, strict=True)
        )
        logits, begin = runner.execute(Batch(chunks)).copy(), 0
        for index, size in zip(going, sizes, strict=True):
            together[index].append(logits[begin : begin + size])
            done[index] += size
            begin += size
    for rows, expected in zip(together, alone, strict=True):
        same(np.concatenate(rows), expected)


def test_a_step_without_logits_still_stores_its_tokens(runner: CausalLMRunner, same: Same) -> None:
    tokens = tokens_of(30, 40)
    whole = run(runner, tokens, [40], table_for(runner, 40))
    table = table_for(runner, 40, first=10)
    empty = runner.execute(Batch((Chunk(tokens[:39], 0, table, 0),)))
    assert empty.shape == (0, runner.vocab_size)
    same(runner.execute(Batch((Chunk(tokens[39:], 39, table),))), whole[39:])


def test_an_empty_batch_gives_no_rows(runner: CausalLMRunner) -> None:
    assert runner.execute(Batch(())).shape == (0, runner.vocab_size)


def test_a_table_that_is_too_short_is_refused_and_harms_nothing(runner: CausalLMRunner, same: Same) -> None:
    tokens = tokens_of(31, 10)
    expected = run(runner, tokens, [10], [0])
    run(runner, tokens[:9], [9], [0])
    with pytest.raises(AdapterError):
        runner.execute(Batch((Chunk([1] * (runner.block_size + 1), 0, [3]),)))
    same(runner.execute(Batch((Chunk(tokens[9:], 9, [0]),))), expected[9:])


def test_warming_up_changes_no_answer(subject: Subject, same: Same) -> None:
    loaded = subject.load()
    tokens = tokens_of(32, 20)
    before = run(loaded, tokens, [20], [1, 0])
    loaded.warm_up()
    same(run(loaded, tokens, [20], [1, 0]), before)
    loaded.close()


def test_closing_twice_is_fine(subject: Subject) -> None:
    loaded = subject.load()
    loaded.close()
    loaded.close()
