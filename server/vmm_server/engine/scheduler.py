"""Who computes what in the next step. Pure: no threads, no clocks, no tensors."""

from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from itertools import count
from operator import attrgetter

from vmm_server.engine.block_pool import BlockPool, block_key
from vmm_server.engine.sequence import Sequence, SequenceStatus
from vmm_server.engine.step import Step, StepBuilder
from vmm_server.engine.turns import Turns

_by_rank = attrgetter("rank")
_by_last_step = attrgetter("last_step")
_UNDISTURBED = 1000
"""Steps after which background work is not expected to be disturbed again."""


Drafter = Callable[[List[Sequence], int], Mapping[Sequence, List[int]]]
"""`(sequences that decode, most drafts in all) -> what may follow`: `Sequence.num_draftable_tokens` at most of each."""


class Scheduler:
    """Waiting and running sequences over one block pool.

    There is no prefill or decode phase. Each sequence has tokens, of which some are computed; every step lets
    the computed ones catch up, `max_batched_tokens` in all. Sequences that lack one token (they decode) go
    first, then prompts, a chunk at a time, those that run and those that are let in while they fit. Prompts go in order
    of `Sequence.turn`: the tenant that got least is next (`turns`).

    The best priority is served first. While it has prompts to compute, whatever is worse sits the step out, so that an
    urgent request waits for one step of others at most. So that this one is short, priorities above 0 are background:
    as long as there was something else lately, a step has `background_tokens` of a prompt, or half as many that decode,
    in turns.

    When blocks run out, the running sequence with the highest rank (lowest priority, youngest) is preempted: it gives
    its blocks back and waits to be computed again, which costs little while they stay cached. Rank is told by arrival
    and does not change, so that two sequences never take blocks from each other in turns. The sequence with the
    lowest rank can take every block there is, any sequence that is let in fits into all blocks, and the
    budget has a token for each running sequence. So somebody advances in every step, what was let in is computed
    whole but for what is drawn meanwhile, and all finish.

    A prompt that is to be scored takes no cached blocks. At most `max_scores` positions are scored in a step, and one
    more where the first in rank would have none.

    A step that only decodes may have drafts: guessed tokens behind each last one, for which there are budget, rows of
    logits and free blocks left. They make nobody wait and preempt nobody; a draft counts as computed once it was drawn
    (`append`), and blocks that hold nothing but what was not are given back (`settle`).
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batched_tokens: int,
        max_sequences: int,
        max_scores: int | None = None,
        background_tokens: int | None = None,
    ) -> None:
        self.pool = pool
        self.max_batched_tokens = max_batched_tokens
        self.max_scores = max_batched_tokens if max_scores is None else max(1, max_scores)
        self.max_sequences = min(max_sequences, max_batched_tokens)  # a token in each step for each of them
        self.background_tokens = background_tokens or max_batched_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preempted = 0
        self._turns = Turns()
        self._arrivals = count(1)
        self._num_steps = 0
        self._num_undisturbed = _UNDISTURBED
        """Steps since the last one with something urgent."""
        self._prompts_are_next = False

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would find anything."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its `max_length` must fit into the pool's blocks."""
        sequence.rank = (sequence.priority, next(self._arrivals))
        self._turns.join(sequence, (self.waiting, self.running))
        insort(self.waiting, sequence, key=_by_rank)

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """Take a sequence out, whatever it is doing, and free its blocks; only sets the status if it is out."""
        queue = self.waiting if sequence.status < SequenceStatus.RUNNING else self.running
        if sequence in queue:
            self._leave(queue, sequence)
        sequence.status = status

    def schedule(self, drafter: Drafter | None = None) -> Step:
        """Choose the next step. It is empty only when there is no work."""
        step = StepBuilder(self.max_batched_tokens, self.max_scores)
        priorities = self._turns.priorities
        self._num_steps += 1
        self._num_undisturbed = 0 if priorities and priorities[0] <= 0 else self._num_undisturbed + 1
        for priority in priorities:
            self._serve(priority, step)
            if step.has_prompts:
                break  # what is worse sits out
        if drafter is not None and step.budget > 0 and (drafting := step.decoding):
            self._add_drafts(drafter(drafting, min(step.budget, self.max_scores)), step)
        return step.build()

    def update(self, step: Step) -> None:
        """Book a computed step, all but its draws and drafts: those are for `append` and `settle`."""
        for sequence, chunk in zip(step.sequences, step.batch.chunks, strict=True):
            self._mark_computed(sequence, min(len(chunk.token_ids), sequence.num_pending_tokens))
            sequence.finish_prompt()
            self._let_go(sequence)

    def append(self, sequence: Sequence, token_id: int, *, is_drafted: bool = False) -> None:
        """Book a drawn token, computed already if it was drafted. If this ends the sequence, its blocks are free."""
        sequence.append(token_id)
        if is_drafted and not sequence.is_finished:
            self._mark_computed(sequence, 1)
        self._let_go(sequence)

    def settle(self, sequence: Sequence) -> None:
        """Give back the blocks that only drafts needed which were not drawn."""
        num_blocks = self.pool.num_blocks_for(len(sequence.token_ids))
        self.pool.release(sequence.block_table[num_blocks:])
        del sequence.block_table[num_blocks:]

    def _let_go(self, sequence: Sequence) -> None:
        if sequence.is_finished and sequence in self.running:
            self._leave(self.running, sequence)

    def _leave(self, queue: list[Sequence], sequence: Sequence) -> None:
        queue.remove(sequence)
        self._release(sequence)
        self._turns.leave(sequence)

    def _add_drafts(self, drafts: Mapping[Sequence, List[int]], step: StepBuilder) -> None:
        """As many of the drafts as free blocks have places for."""
        pool = self.pool
        for sequence, draft_ids in drafts.items():
            table, num_computed = sequence.block_table, sequence.num_computed_tokens + 1
            while pool.num_free and len(table) * pool.block_size < num_computed + len(draft_ids):
                table.append(pool.allocate())
            num_places = len(table) * pool.block_size - num_computed
            if min(num_places, len(draft_ids)) > 0:
                step.add_drafts(sequence, draft_ids[:num_places])

    def _serve(self, priority: int, step: StepBuilder) -> None:
        """What a step does for the sequences of one priority."""
        decoding: list[Sequence] = []
        catching_up: list[Sequence] = []
        for sequence in self.running:
            if sequence.priority == priority:
                (decoding if sequence.num_pending_tokens == 1 else catching_up).append(sequence)
        self._turns.sort(catching_up)
        if priority > 0 and self._num_undisturbed < _UNDISTURBED:
            self._serve_background(priority, decoding, deque(catching_up), step)
        else:
            self._serve_decodes(decoding, step)
            self._serve_prompts(priority, deque(catching_up), step)

    def _serve_background(
        self, priority: int, decoding: list[Sequence], catching_up: deque[Sequence], step: StepBuilder
    ) -> None:
        """Some of those that decode, whoever waited longest, or a piece of a prompt: by turns where there is both."""
        budget = step.budget
        self._prompts_are_next = not self._prompts_are_next
        for is_prompt in (self._prompts_are_next, not self._prompts_are_next):
            if is_prompt:
                step.cuts_blocks = not any(sequence.is_scoring for sequence in catching_up)
                least = 1 if step.cuts_blocks else self.pool.block_size
                step.budget = min(budget, max(least, self.background_tokens))
                self._serve_prompts(priority, catching_up, step)
                if step.has_prompts:
                    break
                step.budget = budget
            else:
                decoding.sort(key=_by_last_step)
                self._serve_decodes(decoding, step, max(1, self.background_tokens // 2))
                if step.budget < budget:
                    break

    def _serve_decodes(self, decoding: list[Sequence], step: StepBuilder, most: int | None = None) -> None:
        """`most` of them; one that has no block leaves its turn to the next."""
        end = 0 if most is None else step.budget - most
        for sequence in decoding:
            if step.budget <= max(0, end):
                break
            if sequence.is_running:  # not preempted for one before it
                sequence.last_step = self._num_steps
                self._advance(sequence, step)

    def _serve_prompts(self, priority: int, catching_up: deque[Sequence], step: StepBuilder) -> None:
        """Go on with prompts and begin new ones, whoever's turn it is, until the budget is used up."""
        may_admit = True
        while step.budget > 0:
            new = self._next_waiting(priority) if may_admit else None
            if new is not None and (not catching_up or new.turn < catching_up[0].turn):
                may_admit = self._admit(new, step)
                sequence = new
            elif catching_up:
                sequence = catching_up.popleft()
                self._turns.go_on(sequence)
            else:
                break
            if sequence.is_running:
                step.has_prompts |= self._advance(sequence, step)

    def _next_waiting(self, priority: int) -> Sequence | None:
        """Whose turn it is of those that wait; nobody's while one of a better priority does not fit."""
        if not self.waiting or self.waiting[0].priority != priority:
            return None
        return self._turns.first(self.waiting)

    def _advance(self, sequence: Sequence, step: StepBuilder) -> bool:
        """Give a running sequence its share of the step: as many tokens as budget and blocks allow.

        Returns whether that is any.
        """
        self._reuse_cached(sequence, step)
        wanted = min(sequence.num_pending_tokens, step.budget)
        if sequence.is_scoring:
            # the first in rank has a row, even one just let in, when those before it in the step took them all
            num_rows = max(step.score_budget, int(sequence is self.running[0]))
            wanted -= max(0, sequence.num_scores(wanted) - num_rows)
        if wanted < sequence.num_pending_tokens:
            wanted = self._whole_blocks(sequence, wanted, step)
        num_places = self._make_room(sequence, sequence.num_computed_tokens + wanted, step)
        num_tokens = min(wanted, num_places - sequence.num_computed_tokens)
        if num_tokens <= 0:
            return False
        step.add(sequence, num_tokens)
        self._turns.charge(sequence, sequence.num_computed_tokens + num_tokens)
        return True

    def _whole_blocks(self, sequence: Sequence, wanted: int, step: StepBuilder) -> int:
        """Of the wanted tokens of a prompt, those up to the last block that they fill.

        A runtime that quantises blocks rounds one that is filled in two goes twice, and what the model says should
        not depend on the step's other work. Less than a block is for the first in rank, which has to advance, and
        for prompts that are not scored when those that run would hardly ever leave them a block.
        """
        size = self.pool.block_size
        whole = wanted - (sequence.num_computed_tokens + wanted) % size
        if whole > 0:
            return whole
        is_crowded = step.cuts_blocks or self.max_batched_tokens - len(self.running) < size
        return wanted if (is_crowded and not sequence.is_scoring) or sequence is self.running[0] else 0

    def _make_room(self, sequence: Sequence, num_tokens: int, step: StepBuilder) -> int:
        """Grow the block table to hold `num_tokens`, preempting those behind; returns the positions it has now.

        A sequence that has nobody behind it keeps its blocks and waits for those before it to move on.
        """
        pool, table = self.pool, sequence.block_table
        for _ in range(pool.num_blocks_for(num_tokens) - len(table)):
            while not pool.num_free and self.running[-1] is not sequence:
                self._preempt(self.running[-1], step)
            if not pool.num_free:
                break
            table.append(pool.allocate())
        return len(table) * pool.block_size

    def _admit(self, sequence: Sequence, step: StepBuilder) -> bool:
        """Start a waiting sequence if there is room for all of its tokens; those of lower priority make room."""
        self._extend_keys(sequence)
        while len(self.running) >= self.max_sequences or not self._fits(sequence):
            if not self.running or self.running[-1].priority <= sequence.priority:
                return False
            self._preempt(self.running[-1], step)
        self.waiting.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=_by_rank)
        self._turns.begin(sequence)
        return True

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there are blocks for the sequence, for what the running ones still lack, and one more for each."""
        pool = self.pool
        cached = [pool.lookup(key) for key in sequence.block_keys[: sequence.num_skippable_tokens // pool.block_size]]
        num_shared = sum(block is not None and pool.num_holders(block) > 0 for block in cached)
        lacking = pool.num_blocks_for(len(sequence.token_ids)) - num_shared
        for other in self.running:
            lacking += pool.num_blocks_for(len(other.token_ids)) - len(other.block_table) + 1
        return lacking <= pool.num_free

    def _preempt(self, sequence: Sequence, step: StepBuilder) -> None:
        step.drop(sequence)
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.PREEMPTED
        sequence.num_computed_tokens = 0
        insort(self.waiting, sequence, key=_by_rank)
        sequence.num_preemptions += 1
        self.num_preempted += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []

    def _reuse_cached(self, sequence: Sequence, step: StepBuilder) -> None:
        """Skip the full blocks that are in the pool already, one that another sequence filled just now included.

        One token must be left to compute, for its logits. Where everything is cached, the last block is
        copied, since a full block is never written, and its last position computed again.
        """
        if sequence.num_pending_tokens == 1:
            return
        pool, table, before = self.pool, sequence.block_table, sequence.num_computed_tokens
        self._extend_keys(sequence)
        num_skippable = min(len(sequence.block_keys), sequence.num_skippable_tokens // pool.block_size)
        for i in range(before // pool.block_size, num_skippable):
            block, end = pool.lookup(sequence.block_keys[i]), (i + 1) * pool.block_size
            if block is None:
                break
            if end < len(sequence.token_ids):
                pool.share(block)
                pool.release(table[i:])  # its own, which it had begun to fill
                table[i:] = [block]
                sequence.num_computed_tokens = end
            elif self._make_room(sequence, end, step) == end:
                step.copy(sequence, block)
                sequence.num_computed_tokens = end - 1
        sequence.num_served_tokens = max(sequence.num_served_tokens, sequence.num_computed_tokens)  # found for free
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens += sequence.num_computed_tokens - before

    def _extend_keys(self, sequence: Sequence) -> None:
        keys, size = sequence.block_keys, self.pool.block_size
        for start in range(len(keys) * size, len(sequence.token_ids) - size + 1, size):
            parent = keys[-1] if keys else b""
            keys.append(block_key(parent, sequence.token_ids[start : start + size], sequence.salt))

    def _mark_computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Move on, and let others share the blocks that became full."""
        size = self.pool.block_size
        first = sequence.num_computed_tokens // size
        sequence.num_computed_tokens += num_tokens
        sequence.num_scored_tokens = max(sequence.num_scored_tokens, sequence.num_computed_tokens)
        if sequence.num_computed_tokens // size > first:
            self._extend_keys(sequence)
            for i in range(first, sequence.num_computed_tokens // size):
                self.pool.register(sequence.block_table[i], sequence.block_keys[i])
