"""One generation in flight: its tokens, where they are stored, and when it is over."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.callers import Caller
from vmm_server.engine.fairness import Account
from vmm_server.engine.stream import Usage


class SequenceStatus(IntEnum):
    """In the order of a life: anything from `STOPPED` on is finished."""

    WAITING = 0
    PREEMPTED = 1
    RUNNING = 2
    STOPPED = 3
    LENGTH_CAPPED = 4
    ABORTED = 5
    FAILED = 6


FINISH_REASONS = {
    SequenceStatus.STOPPED: FinishReason.STOP,
    SequenceStatus.LENGTH_CAPPED: FinishReason.LENGTH,
    SequenceStatus.ABORTED: FinishReason.ABORT,
    SequenceStatus.FAILED: FinishReason.ERROR,
}


@dataclass(frozen=True, slots=True, eq=False)
class SeenPrompt:
    """A prompt with images, for a runtime that tokenises it itself."""

    text: str
    """Rendered, with whatever stands for an image in the model's template."""
    images: tuple[NDArray[np.uint8], ...]
    """RGB `[height, width, 3]`, in the order in which the text speaks of them."""
    num_text_tokens: int = 0
    """Those of the text alone: the whole prompt has more."""


_ANYBODY = Caller()


class Sequence:
    """Prompt and generated tokens in one list, of which the first `num_computed_tokens` are in the KV blocks.

    Belongs to the worker's thread once it was submitted. Times are seconds on the clock of whoever sets them.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: SamplingParams,
        *,
        max_length: int,
        eos_token_ids: frozenset[int] = frozenset(),
        caller: Caller = _ANYBODY,
        salt: bytes = b"",
        submitted_at: float = 0.0,
        seen: SeenPrompt | None = None,
        prediction: tuple[int, ...] = (),
        may_draft: bool = True,
    ) -> None:
        self.token_ids = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self.seen = seen
        """Stands for the prompt, which then has no tokens here."""
        self.num_seen_tokens = 0 if seen is None else seen.num_text_tokens
        """Of `seen`: those of its text, until the runtime has told what it counted."""
        self.prediction = prediction
        """What the answer may say, in whole or in part: drafts are looked up there too."""
        self.may_draft = may_draft
        self.sampling = sampling
        self.context_length = self.max_length = max_length
        if sampling.max_tokens is not None:
            self.max_length = min(max_length, len(prompt) + sampling.max_tokens)
        self.eos_token_ids = frozenset() if sampling.ignore_eos else eos_token_ids
        self.priority = caller.priority
        self.weight = caller.weight
        self.account = Account(caller.priority, caller.tenant)
        """Its tenant's, shared with other sequences once it is queued."""
        self.salt = salt
        self.status = SequenceStatus.WAITING
        self.rank = (caller.priority, 0)
        """Lower is preempted last: priority, then order of arrival."""
        self.deadline_at: float | None = None
        """When nobody wants it any more, on the same clock as its other times."""

        self.block_table: list[int] = []
        self.block_keys: list[bytes] = []
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        """Of the prompt, found in the prefix cache before any preemption."""
        self.num_scored_tokens = 0
        """Positions whose logits were seen, if they are to score the prompt token behind them."""
        self.num_served_tokens = 0
        """First tokens that its tenant was charged for, or found computed: none is paid twice."""
        self.num_expected_tokens = 0
        """Of the answer, guessed and not computed yet; its tenant's account has them."""
        self.last_step = 0
        """The number of the last step in which it decoded."""
        self.num_preemptions = 0
        self.num_drafted_tokens = 0
        """Guessed and computed."""
        self.num_accepted_tokens = 0
        """Of them, those that were drawn."""
        self.num_drafted_predictions = 0
        """Drafted tokens that stood in the prediction."""
        self.num_accepted_predictions = 0

        self.submitted_at = submitted_at
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None

    @property
    def turn(self) -> tuple[int, float, int]:
        """Lower is served first: priority, what its tenant got and began, then arrival. It changes with every step."""
        return self.priority, self.account.level, self.rank[1]

    @property
    def num_generated_tokens(self) -> int:
        """Tokens drawn so far, the one that ends the answer included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that are not computed yet: 1 while decoding, more while a prompt is catching up."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_draftable_tokens(self) -> int:
        """Tokens that may be guessed behind the last one: one less than can be drawn, as one is drawn in any case."""
        return max(0, self.max_length - len(self.token_ids) - 1) if self.may_draft else 0

    def draws_after(self, num_tokens: int) -> bool:
        """Whether a token is drawn once the next `num_tokens` tokens are computed."""
        return num_tokens == self.num_pending_tokens and self.sampling.max_tokens != 0

    @property
    def is_scoring(self) -> bool:
        """Whether there are prompt tokens still to be scored. None is drawn before that."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and self.num_scored_tokens < self.num_prompt_tokens - 1

    @property
    def num_skippable_tokens(self) -> int:
        """First tokens whose cached blocks may stand for computing them: their logits are of no use any more."""
        return self.num_scored_tokens if self.is_scoring else len(self.token_ids)

    def num_scores(self, num_tokens: int) -> int:
        """Rows of logits that the next `num_tokens` tokens give for scoring the prompt."""
        if not self.is_scoring:
            return 0
        return max(0, self.num_computed_tokens + num_tokens - self.num_scored_tokens)

    @property
    def has_started(self) -> bool:
        """Whether anything was computed for it, or drawn. One that has not may be begun elsewhere."""
        return self.num_generated_tokens > 0 or self.num_computed_tokens > self.num_cached_tokens

    @property
    def is_running(self) -> bool:
        """Whether it has a place among those that are computed."""
        return self.status is SequenceStatus.RUNNING

    @property
    def is_finished(self) -> bool:
        """Nothing more will come of it."""
        return self.status >= SequenceStatus.STOPPED

    def ends_with(self, token_id: int) -> bool:
        """Whether this token would end the answer (it is then not part of it)."""
        return token_id in self.eos_token_ids or token_id in self.sampling.stop_token_ids

    def append(self, token_id: int) -> None:
        """Add a drawn token; sets the status when it is the last one.

        `max_length` may be passed by one token, when the prompt alone fills the context: the last token
        drawn is never computed, so it needs no place.
        """
        self.token_ids.append(token_id)
        if self.ends_with(token_id):  # the sampler draws none before `min_tokens`
            self.status = SequenceStatus.STOPPED
        elif len(self.token_ids) >= self.max_length:
            self.status = SequenceStatus.LENGTH_CAPPED

    def finish_prompt(self) -> None:
        """End an answer of no tokens (`max_tokens` is 0) once its prompt is computed."""
        if self.num_pending_tokens == 0 and self.sampling.max_tokens == 0:
            self.status = SequenceStatus.LENGTH_CAPPED

    def stamp(self, now: float) -> None:
        """Note when a token was drawn."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now

    def usage(self, now: float) -> Usage:
        """What it took until `now`; phases it did not reach are 0 s long."""
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        last = first if self.last_token_at is None else self.last_token_at
        return Usage(
            num_prompt_tokens=self.num_prompt_tokens + self.num_seen_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_drafted_tokens=self.num_drafted_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            num_drafted_predictions=self.num_drafted_predictions,
            num_accepted_predictions=self.num_accepted_predictions,
            queued_s=started - self.submitted_at,
            prefill_s=first - started,
            decode_s=last - first,
        )
