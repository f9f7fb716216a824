"""Speculative decoding: tokens are guessed, computed together with the last one, and checked by drawing as ever.

A sequence with the drafts d1 … dk computes its last token and these, and gets k + 1 rows of logits. A token is drawn
from each row in turn, just as it would be without drafts: penalties, grammar and seed see the tokens accepted so far.
While it is the draft, the next row is good, for it was computed from what the answer really says; the first one that
differs is itself the next token, and what was computed behind it is written over. So nothing depends on how good drafts
are, neither a greedy text nor what is drawn, not even with a seed. For drafts without a distribution of their own this
is what the rejection sampling of Leviathan et al. (2023) and Chen et al. (2023, "Accelerating Large Language Model
Decoding with Speculative Sampling") comes to: a draft x is accepted with the probability p(x) that the model gives it,
and a token in its place comes from p without x, normalised.

Drafts are, in this order: what a grammar forces, and what followed the same tokens before (`ngrams`). How many are
worth it is `drafting`'s to say.
"""

from collections.abc import Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import NamedTuple

from vmm_server.engine.drafting import MAX_DRAFTS, Chance, DraftPlanner, DraftRecord, Evidence, StepCosts
from vmm_server.engine.ngrams import MAX_MATCH, NGramProposer
from vmm_server.engine.sampler import SamplingState
from vmm_server.engine.sequence import Sequence


class Proposal(NamedTuple):
    """Tokens that may come next, and why."""

    token_ids: list[int]
    evidence: Evidence
    is_predicted: bool = False
    """Whether they stand in the prediction that came with the request."""


@dataclass(slots=True, eq=False)
class _Speculation:
    """What is kept of one sequence."""

    sampling: SamplingState
    ngrams: NGramProposer
    record: DraftRecord = field(default_factory=DraftRecord)
    proposal: Proposal | None = None
    """For the step under way, drafted or not."""


class Speculator:
    """Drafts for the sequences of one engine. Knows no clock: it is told what steps took."""

    def __init__(self) -> None:
        self._costs = StepCosts()
        self._planner = DraftPlanner(self._costs)
        self._sequences: dict[Sequence, _Speculation] = {}
        self._price = 0.0

    def add(self, sequence: Sequence, sampling: SamplingState) -> None:
        """Begin with a sequence, before its first token is drawn."""
        ngrams = NGramProposer(sequence.token_ids, sequence.prediction)
        self._sequences[sequence] = _Speculation(sampling, ngrams)

    def forget(self, sequence: Sequence) -> None:
        """It is over. Idempotent."""
        self._sequences.pop(sequence, None)

    def draft(self, sequences: List[Sequence], budget: int) -> dict[Sequence, list[int]]:
        """See `scheduler.Drafter`."""
        chosen: list[tuple[Sequence, list[int]]] = []
        chances: list[Chance] = []
        for sequence in sequences:
            kept = self._sequences[sequence]
            kept.proposal = proposal = _propose(kept, min(MAX_DRAFTS, sequence.num_draftable_tokens))
            if proposal is not None:
                chosen.append((sequence, proposal.token_ids))
                probability = kept.record.probability(proposal.evidence)
                chances.append(Chance(len(proposal.token_ids), probability, kept.record.credit))
        counts = self._planner.plan(chances, len(sequences), budget) if chances else []
        return {sequence: ids[:count] for (sequence, ids), count in zip(chosen, counts, strict=True) if count}

    def note_step(self, num_sequences: int, num_drafts: int, seconds: float) -> None:
        """What the step took, in which so many sequences had a token computed and drafts; nothing else was in it."""
        self._costs.note(num_sequences, num_drafts, seconds)
        self._price = self._planner.price(num_drafts, num_sequences) if num_drafts else 0.0

    def is_predicted(self, sequence: Sequence) -> bool:
        """Whether its drafts of the step under way stand in its prediction."""
        proposal = self._sequences[sequence].proposal
        return proposal is not None and proposal.is_predicted

    def settle(self, sequence: Sequence, num_drafts: int, drawn: List[int]) -> None:
        """Learn from what the step gave a sequence."""
        if (kept := self._sequences.get(sequence)) is None:
            return
        proposal, kept.proposal = kept.proposal, None
        if proposal is not None:
            num_right = _num_equal(proposal.token_ids, drawn)
            num_tried = min(num_right + 1, len(proposal.token_ids), len(drawn))
            kept.record.note(proposal.evidence, num_right, num_tried)
        kept.record.book(len(drawn), self._price * num_drafts)


def _propose(kept: _Speculation, count: int) -> Proposal | None:
    if count <= 0:
        return None
    if forced := kept.sampling.forced_tokens():
        return Proposal(forced[:count], Evidence.GRAMMAR)
    found = kept.ngrams.propose(count)
    token_ids = kept.sampling.plausible(found.token_ids) if found.token_ids else ()
    if not token_ids:
        return None
    return Proposal(list(token_ids), _evidence(found.match), found.is_predicted)


def _evidence(match: int) -> Evidence:
    """The longer the text is the same, the likelier it stays so."""
    if match >= MAX_MATCH:
        return Evidence.LONGEST
    return Evidence.LONG if match >= 8 else Evidence.SHORT if match >= 4 else Evidence.PAIR


def _num_equal(first: Iterable[int], second: Iterable[int]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
