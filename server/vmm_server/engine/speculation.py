"""Speculative decoding: tokens are guessed, computed together with the last one, and checked by drawing as ever.

A sequence with the drafts d1 … dk computes its last token and these, and gets k + 1 rows of logits. A token is drawn
from each row in turn, just as it would be without drafts: penalties, grammar and seed see the tokens accepted so far.
While it is the draft, the next row is good, for it was computed from what the answer really says; the first one that
differs is itself the next token, and what was computed behind it is written over. So nothing depends on how good drafts
are, neither a greedy text nor what is drawn, not even with a seed. For drafts without a distribution of their own this
is what the rejection sampling of Leviathan et al. (2023) and Chen et al. (2023, "Accelerating Large Language Model
Decoding with Speculative Sampling") comes to: a draft x is accepted with the probability p(x) that the model gives it,
and a token in its place comes from p without x, normalised.

Drafts are what a grammar forces, what followed the same tokens before (`ngrams`), or, where that is less likely to be
right, what a smaller model says (`draft_model`). How many are worth it is `drafting`'s to say.
"""

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import NamedTuple

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import Batch, Chunk
from vmm_server.engine.draft_model import DraftModel
from vmm_server.engine.drafting import MAX_DRAFTS, Chance, DraftPlanner, DraftRecord, Evidence, StepCosts
from vmm_server.engine.ngrams import MAX_MATCH, NGramProposer
from vmm_server.engine.sampler import SamplingState
from vmm_server.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_NUM_TRIALS = 4  # the first of which may compile kernels


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

    def chance(self, evidence: Evidence, num_tokens: int) -> Chance:
        """What so many tokens on such evidence could bring."""
        return Chance(num_tokens, self.record.probability(evidence), self.record.credit)


def measured_costs(runner: CausalLMRunner, clock: Callable[[], float], limit_s: float = 0.5) -> StepCosts:
    """What steps of one sequence take with 0 to 15 drafts, for as many as can be tried in `limit_s`.

    To be called before an engine has the runner: so its first answer need not find out. Writes to the first blocks.
    """
    costs, started = StepCosts(), clock()
    table = list(range(min(runner.num_blocks, -(-(MAX_DRAFTS + 1) // runner.block_size))))
    room = min(len(table) * runner.block_size, runner.context_length)
    for num_drafts in (0, 1, 3, 7, MAX_DRAFTS):
        batch = Batch((Chunk([0] * (num_drafts + 1), 0, table, num_drafts + 1),))
        for _ in range(_NUM_TRIALS):
            if num_drafts >= room or (before := clock()) - started > limit_s:
                return costs
            runner.execute(batch)
            costs.note(1, num_drafts, clock() - before)
    return costs


class Speculator:
    """Drafts for the sequences of one engine. Knows no clock: it is told what steps took."""

    def __init__(self, vocab_size: int, draft_model: DraftModel | None = None, costs: StepCosts | None = None) -> None:
        self._vocab_size = vocab_size
        self._draft_model = draft_model
        self._costs = costs or StepCosts()
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
        if self._draft_model is not None:
            self._draft_model.forget(sequence)

    def close(self) -> None:
        """Close the draft model. Idempotent."""
        if self._draft_model is not None:
            self._draft_model.close()

    def draft(self, sequences: List[Sequence], budget: int) -> dict[Sequence, list[int]]:
        """See `scheduler.Drafter`."""
        for sequence in sequences:
            kept = self._sequences[sequence]
            kept.proposal = _propose(kept, min(MAX_DRAFTS, sequence.num_draftable_tokens))
        if self._draft_model is not None:
            self._ask(self._draft_model, sequences)
        chosen: list[tuple[Sequence, list[int]]] = []
        chances: list[Chance] = []
        for sequence in sequences:
            kept = self._sequences[sequence]
            if (proposal := kept.proposal) is not None:
                chosen.append((sequence, proposal.token_ids))
                chances.append(kept.chance(proposal.evidence, len(proposal.token_ids)))
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

    def _ask(self, draft_model: DraftModel, sequences: List[Sequence]) -> None:
        """Let the draft model propose where it is likelier to be right. One that fails is not asked again."""
        asking = [each for each in sequences if self._prefers_model(draft_model, each)]
        chances = [self._sequences[each].chance(Evidence.MODEL, each.num_draftable_tokens) for each in asking]
        draft_s = draft_model.step_s(len(asking))
        depth, chosen = self._planner.depth(chances, len(sequences), draft_s)
        if not depth:
            return
        asking = [asking[index] for index in chosen]
        try:
            drafts = draft_model.draft(asking, depth, self._vocab_size)
        except AdapterError:
            logger.exception("the draft model failed and is given up")
            draft_model.close()
            self._draft_model = None
            return
        plain_s = self._costs.plain_s(len(sequences))
        price = depth * (draft_s or 0.0) / plain_s * len(sequences) / len(asking)
        for sequence, token_ids in drafts.items():
            kept = self._sequences[sequence]
            kept.record.pay(price)
            if plausible := kept.sampling.plausible(token_ids):
                kept.proposal = Proposal(plausible, Evidence.MODEL)

    def _prefers_model(self, draft_model: DraftModel, sequence: Sequence) -> bool:
        if not (sequence.num_draftable_tokens and draft_model.is_at_hand(sequence)):
            return False
        record, proposal = self._sequences[sequence].record, self._sequences[sequence].proposal
        by_lookup = 0.0 if proposal is None else record.probability(proposal.evidence)
        return by_lookup < record.probability(Evidence.MODEL)


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
