"""Whose turn it is among the sequences of one engine, and what their tenants pay (`fairness`). Pure.

A tenant pays for each token when it is computed. What the answers that it has begun will probably take counts in its
turn all the same: a tenant whose answers are young would else seem to have had little, and get all places that become
free together (Sheng et al. foretell lengths for the same reason). Found prefixes, and tokens that are computed again
after a preemption, cost nothing.
"""

from collections.abc import Iterator
from collections.abc import Sequence as List
from itertools import takewhile
from operator import attrgetter

from vmm_server.engine.fairness import Account, Accounts
from vmm_server.engine.sequence import Sequence

_by_turn = attrgetter("turn")
_FIRST_GUESS = 64.0  # tokens of an answer


class Turns:
    """Of sequences from `join` to `leave`."""

    def __init__(self) -> None:
        self._accounts = Accounts()
        self._answer_tokens = 0.0
        """Running mean; 0: none has ended."""

    @property
    def priorities(self) -> List[int]:
        """Those of all sequences, best first."""
        return self._accounts.priorities

    def join(self, sequence: Sequence, queues: List[List[Sequence]]) -> None:
        """A sequence has come. `queues` hold the others; those whose prompts are not computed wait for their turn."""
        sequence.account = self._accounts.open(sequence.priority, sequence.account.tenant, _backlog(queues))

    def first(self, waiting: List[Sequence]) -> Sequence:
        """Who is next, of some that are in order of rank."""
        first = waiting[0]
        if not self._accounts.are_shared(first.priority):
            return first
        return min(takewhile(lambda each: each.priority == first.priority, waiting), key=_by_turn)

    def sort(self, sequences: list[Sequence]) -> None:
        """Put sequences of one priority, which are in order of rank, in the order of their turns."""
        if sequences and self._accounts.are_shared(sequences[0].priority):
            sequences.sort(key=_by_turn)

    def begin(self, sequence: Sequence) -> None:
        """It is let in, for the first time or again."""
        self._accounts.note_turn(sequence.account)
        if sequence.num_served_tokens == sequence.num_expected_tokens == 0:
            longest = sequence.max_length - len(sequence.token_ids) - 1  # the last token is never computed
            sequence.num_expected_tokens = max(0, min(longest, round(self._answer_tokens or _FIRST_GUESS)))
            sequence.account.expect(sequence.num_expected_tokens, sequence.weight)

    def go_on(self, sequence: Sequence) -> None:
        """A prompt that has begun is gone on with."""
        self._accounts.note_turn(sequence.account)

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Have its tenant pay for the first `num_tokens`, as far as it did not."""
        new = num_tokens - sequence.num_served_tokens
        if new <= 0:
            return
        sequence.num_served_tokens = num_tokens
        sequence.account.charge(new, sequence.weight)
        if num_tokens > sequence.num_prompt_tokens and (expected := min(new, sequence.num_expected_tokens)):
            sequence.num_expected_tokens -= expected
            sequence.account.expect(-expected, sequence.weight)

    def leave(self, sequence: Sequence) -> None:
        """It is over."""
        if sequence.num_expected_tokens:
            sequence.account.expect(-sequence.num_expected_tokens, sequence.weight)
            sequence.num_expected_tokens = 0
        if sequence.num_generated_tokens:
            weight = 0.1 if self._answer_tokens else 1.0
            self._answer_tokens += weight * (sequence.num_generated_tokens - self._answer_tokens)
        self._accounts.close(sequence.account)


def _backlog(queues: List[List[Sequence]]) -> Iterator[Account]:
    return (each.account for queue in queues for each in queue if each.num_pending_tokens > 1 or not each.is_running)
