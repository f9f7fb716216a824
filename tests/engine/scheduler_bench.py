"""A scheduler over the echo runner, which checks every block it reads, stepped by hand."""

from itertools import zip_longest

import pytest

from vmm_adapters.echo import EchoRunner
from vmm_adapters.types import SamplingParams
from vmm_server.callers import Caller
from vmm_server.engine.block_pool import BlockPool
from vmm_server.engine.scheduler import Drafter, Scheduler
from vmm_server.engine.sequence import Sequence
from vmm_server.engine.step import DrawRows, Step


class Bench:
    """A scheduler and its runner, stepped by hand, greedily."""

    def __init__(
        self,
        num_blocks: int = 16,
        *,
        block_size: int = 4,
        max_batched_tokens: int = 8,
        max_sequences: int = 4,
        max_scores: int | None = None,
        background_tokens: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.drafter = drafter
        self.runner = EchoRunner(num_blocks=num_blocks, block_size=block_size)
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.pool,
            max_batched_tokens=max_batched_tokens,
            max_sequences=max_sequences,
            max_scores=max_scores,
            background_tokens=background_tokens,
        )
        self.scores: dict[Sequence, list[tuple[int, int]]] = {}
        """Of the prompts that were scored: each token, and what the model would have said there."""
        self.num_computed = 0
        self.num_copied = 0

    def add(
        self,
        text: str,
        max_tokens: int | None = 4,
        *,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        salt: bytes = b"",
        prompt_logprobs: int | None = None,
    ) -> Sequence:
        sequence = Sequence(
            list(text.encode()),
            SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs),
            max_length=self.pool.num_positions,
            caller=Caller(tenant, weight, priority),
            salt=salt,
        )
        self.scheduler.add(sequence)
        return sequence

    def compute(self, step: Step) -> None:
        self.runner.copy_blocks(list(step.block_copies))
        logits = self.runner.execute(step.batch)
        for rows in step.scored:
            seen = [int(row.argmax()) for row in logits[rows.first_row : rows.first_row + len(rows.token_ids)]]
            self.scores.setdefault(rows.sequence, []).extend(zip(rows.token_ids, seen, strict=True))
        self.scheduler.update(step)
        for rows in step.draws:
            self.draw(rows, logits[rows.first_row : rows.first_row + len(rows.draft_ids) + 1].argmax(axis=1).tolist())
        self.num_computed += step.batch.num_tokens
        self.num_copied += len(step.block_copies)

    def draw(self, rows: DrawRows, token_ids: list[int]) -> None:
        """Take the tokens up to the first one that was not drafted."""
        for token_id, draft_id in zip_longest(token_ids, rows.draft_ids):
            self.scheduler.append(rows.sequence, token_id, is_drafted=token_id == draft_id)
            if token_id != draft_id or rows.sequence.is_finished:
                break
        if not rows.sequence.is_finished:
            self.scheduler.settle(rows.sequence)

    def step(self) -> Step:
        step = self.scheduler.schedule(self.drafter)
        self.compute(step)
        return step

    def drain(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            assert self.step().sequences, "a step without progress"
        pytest.fail(f"still busy after {max_steps} steps")


def answer(sequence: Sequence) -> str:
    return bytes(sequence.token_ids[sequence.num_prompt_tokens :]).decode()


def alphabet_after(text: str, count: int) -> str:
    """What the echo model says after a text that ends in a small letter."""
    start = ord(text[-1]) - ord("a") + 1
    return "".join(chr(ord("a") + (start + i) % 26) for i in range(count))


def shape(step: Step) -> list[tuple[Sequence, int]]:
    return [(s, len(chunk.token_ids)) for s, chunk in zip(step.sequences, step.batch.chunks, strict=True)]
