"""A second, smaller model of the same vocabulary that says, greedily, what the first one may say next.

It has KV blocks of its own, and of each sequence the tokens that they hold: those of the sequence up to some point, and
behind them what it drafted last. Whatever of that the sequence went on with counts; the rest is written over. Full
blocks of what a sequence says are found again by their keys, so the next turn of a chat is not read anew.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.types import Batch, Chunk
from vmm_server.engine.block_pool import BlockPool, block_key
from vmm_server.engine.drafting import StepCosts
from vmm_server.engine.sequence import Sequence

_FEW_TOKENS = 8
"""So many unread tokens of each sequence are computed in one step with others' single ones."""


@dataclass(slots=True, eq=False)
class _Read:
    """What the blocks hold of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    num_agreed: int = 0
    """Of them, the first ones that are the sequence's own for certain; full blocks of those may be shared."""
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)


class DraftModel:
    """Drafts for sequences of an engine, the same number of tokens for each. Belongs to the engine's worker."""

    def __init__(self, runner: CausalLMRunner, clock: Callable[[], float], *, max_batched_tokens: int) -> None:
        self._runner = runner
        self._clock = clock
        self._max_batched_tokens = max_batched_tokens
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self._reads: dict[Sequence, _Read] = {}
        self._costs = StepCosts()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_free

    def step_s(self, num_sequences: int) -> float | None:
        """What a token for each of so many sequences takes; `None` before it was measured."""
        return self._costs.plain_s(num_sequences) or None

    def is_at_hand(self, sequence: Sequence) -> bool:
        """Whether it has read most of it, or may have so much to draft that reading it pays."""
        read = self._reads.get(sequence)
        num_unread = len(sequence.token_ids) - (0 if read is None else len(read.token_ids))
        return num_unread <= max(_FEW_TOKENS, 4 * sequence.num_draftable_tokens)

    def draft(self, sequences: List[Sequence], num_drafts: int, vocab_size: int) -> dict[Sequence, list[int]]:
        """Up to `num_drafts` tokens for each, in that many steps; none where blocks or context do not suffice.

        What is no token of the engine's model (`vocab_size`) ends a sequence's drafts. Raises `AdapterError`.
        """
        drafts: dict[Sequence, list[int]] = {each: [] for each in sequences if self._catch_up(each, num_drafts)}
        wanted = {each: each.token_ids[len(self._reads[each].token_ids) :] for each in drafts}
        for _ in range(num_drafts):
            if not wanted:
                break
            drawn = self._compute(wanted, num_logits=1).argmax(axis=1).tolist()
            wanted = {each: [token] for each, token in zip(wanted, drawn, strict=True) if token < vocab_size}
            for each, (token,) in wanted.items():
                drafts[each].append(token)
        return {each: found for each, found in drafts.items() if found}

    def forget(self, sequence: Sequence) -> None:
        """Free its blocks. Idempotent."""
        if (read := self._reads.pop(sequence, None)) is not None:
            self._pool.release(read.block_table)

    def close(self) -> None:
        """Close the runner. Idempotent."""
        self._runner.close()

    def _catch_up(self, sequence: Sequence, num_drafts: int) -> bool:
        """Keep of the last drafts what came true, and read on, up to a few tokens; false without room for it all."""
        read = self._reads.setdefault(sequence, _Read())
        tokens, pool = sequence.token_ids, self._pool
        if not read.token_ids:
            self._reuse_cached(read, sequence)
        most = min(len(read.token_ids), len(tokens) - 1)  # the last one is computed again, for its logits
        while read.num_agreed < most and read.token_ids[read.num_agreed] == tokens[read.num_agreed]:
            read.num_agreed += 1
        del read.token_ids[read.num_agreed :]
        self._share(read, sequence)
        num_tokens = len(tokens) + num_drafts - 1
        lacking = pool.num_blocks_for(num_tokens) - len(read.block_table)
        if num_tokens > self._runner.context_length or lacking > pool.num_free:
            return False
        read.block_table += [pool.allocate() for _ in range(lacking)]
        while (num_unread := len(tokens) - len(read.token_ids)) > _FEW_TOKENS:
            start = len(read.token_ids)
            count = min(num_unread - 1, self._max_batched_tokens)
            self._compute({sequence: tokens[start : start + count]}, num_logits=0)
        return True

    def _compute(self, token_ids: Mapping[Sequence, list[int]], num_logits: int) -> NDArray[np.float32]:
        """Compute these tokens behind what there is of their sequences."""
        reads = {sequence: self._reads[sequence] for sequence in token_ids}
        chunks = (
            Chunk(token_ids[sequence], len(read.token_ids), read.block_table, num_logits)
            for sequence, read in reads.items()
        )
        batch, started = Batch(tuple(chunks)), self._clock()
        logits = self._runner.execute(batch)
        if num_logits and batch.num_tokens <= 2 * len(reads):
            self._costs.note(len(reads), 0, self._clock() - started)
        for sequence, read in reads.items():
            read.token_ids += token_ids[sequence]
        return logits

    def _reuse_cached(self, read: _Read, sequence: Sequence) -> None:
        """Begin with the full blocks that are there already."""
        pool, tokens = self._pool, sequence.token_ids
        for start in range(0, len(tokens) - pool.block_size, pool.block_size):
            key = self._key(read, sequence, start)
            if (block := pool.lookup(key)) is None:
                break
            pool.share(block)
            read.block_table.append(block)
            read.block_keys.append(key)
            read.token_ids += tokens[start : start + pool.block_size]
            read.num_agreed = len(read.token_ids)

    def _share(self, read: _Read, sequence: Sequence) -> None:
        """Name the blocks that hold nothing but what the sequence says, for others to find."""
        size = self._pool.block_size
        for index in range(len(read.block_keys), read.num_agreed // size):
            read.block_keys.append(self._key(read, sequence, index * size))
            self._pool.register(read.block_table[index], read.block_keys[index])

    def _key(self, read: _Read, sequence: Sequence, start: int) -> bytes:
        parent = read.block_keys[-1] if read.block_keys else b""
        return block_key(parent, sequence.token_ids[start : start + self._pool.block_size], sequence.salt)
