"""One call of the runner in the making: who computes what, and draws from which rows. Pure."""

from collections.abc import Sequence as List
from dataclasses import dataclass

from vmm_adapters.types import Batch, Chunk
from vmm_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of logits, from `first_row` on, that score these tokens of a prompt."""

    sequence: Sequence
    first_row: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DrawRows:
    """A sequence draws from this row of logits and, while that gives what was drafted, from the rows behind it."""

    sequence: Sequence
    first_row: int
    draft_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of the runner computes: `batch.chunks[i]` is the share of `sequences[i]`."""

    sequences: tuple[Sequence, ...]
    batch: Batch
    block_copies: tuple[tuple[int, int], ...]
    """(source, target) blocks to copy, in order, before the batch is computed."""
    draws: tuple[DrawRows, ...]
    """Of the sequences that get tokens from this step. All rows there are, unless something is `scored`."""
    scored: tuple[PromptRows, ...] = ()

    @property
    def num_drafts(self) -> int:
        """Of the batch's tokens, those that are guessed."""
        return sum(len(rows.draft_ids) for rows in self.draws)

    @property
    def only_decodes(self) -> bool:
        """Whether each sequence computes its last token and draws."""
        return self.batch.num_tokens - self.num_drafts == len(self.sequences) == len(self.draws)


class StepBuilder:
    """A step in the making: a preempted sequence can still be taken out of it."""

    def __init__(self, budget: int, score_budget: int) -> None:
        self.budget = budget
        self.score_budget = score_budget
        self.cuts_blocks = False
        """Whether prompts get less than a block, as there is not more for them."""
        self.has_prompts = False
        """Whether a prompt is computed, or the rest of one."""
        self._num_scores: dict[Sequence, int] = {}
        self._num_tokens: dict[Sequence, int] = {}
        self._drafts: dict[Sequence, List[int]] = {}
        self._copies: dict[Sequence, tuple[int, int]] = {}

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self._num_tokens[sequence] = num_tokens
        self.budget -= num_tokens
        self._num_scores[sequence] = sequence.num_scores(num_tokens)
        self.score_budget -= self._num_scores[sequence]

    def copy(self, sequence: Sequence, source: int) -> None:
        """Fill the sequence's newest block with `source` (which may be the very same one, just taken over)."""
        if source != sequence.block_table[-1]:
            self._copies[sequence] = (source, sequence.block_table[-1])

    def drop(self, sequence: Sequence) -> None:
        self.budget += self._num_tokens.pop(sequence, 0)
        self.score_budget += self._num_scores.pop(sequence, 0)
        self._copies.pop(sequence, None)

    @property
    def decoding(self) -> list[Sequence]:
        """Whoever computes its last token, if that is all that the step does."""
        sequences = [each for each in self._num_tokens if each.draws_after(1)]
        return sequences if len(sequences) == len(self._num_tokens) else []

    def add_drafts(self, sequence: Sequence, draft_ids: List[int]) -> None:
        """Guesses to be computed behind its last token, for which it has places."""
        self._drafts[sequence] = draft_ids
        self.budget -= len(draft_ids)

    def build(self) -> Step:
        chunks: list[Chunk] = []
        draws: list[DrawRows] = []
        scored: list[PromptRows] = []
        num_rows = 0
        for sequence, num_tokens in self._num_tokens.items():
            start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens
            drafts = self._drafts.get(sequence, ())
            num_draws = len(drafts) + 1 if sequence.draws_after(num_tokens) else 0
            if num_scores := self._num_scores[sequence]:
                # the last position of a prompt scores nothing, but may be drawn from
                followers = sequence.token_ids[end - num_scores + 1 : end + 1]
                scored.append(PromptRows(sequence, num_rows, tuple(followers)))
            num_logits = max(num_scores, num_draws)
            chunks.append(Chunk([*sequence.token_ids[start:end], *drafts], start, sequence.block_table, num_logits))
            num_rows += num_logits
            if num_draws:
                draws.append(DrawRows(sequence, num_rows - num_draws, tuple(drafts)))
        copies = tuple(self._copies.values())
        return Step(tuple(self._num_tokens), Batch(tuple(chunks)), copies, tuple(draws), tuple(scored))
