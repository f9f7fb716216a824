"""Logits → the next token of each sequence.

Greedy rows are an argmax of the runner's own array. Every other row goes through the steps of `SamplingParams`,
one row at a time: a row of logits stays in the processor's second-level cache where a batch would not, and what
a sequence draws cannot depend on its neighbours. No row is ever sorted whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.types import SamplingParams, TokenLogprob
from vmm_server.engine.grammar import CompiledGrammar, TokenMatcher

Row = NDArray[np.float32]
TokenIds = NDArray[np.intp]

_LOWEST_TEMPERATURE = 1e-4  # below it only exact ties could still differ from greedy
_GROUPS = 64
_FIRST_NUCLEUS = 256


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token, and its log-probabilities if the sequence asked for them."""

    token_id: int
    logprob: TokenLogprob | None = None


class SamplingState:
    """What the sampler keeps of one sequence: its generator, the tokens its penalties look at, its grammar.

    `token_ids` is the sequence's own growing list; new tokens are taken from it at the next draw.
    """

    def __init__(
        self,
        params: SamplingParams,
        token_ids: list[int],
        eos_token_ids: Iterable[int] = frozenset(),
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self.params = params
        self.token_ids = token_ids
        self.num_prompt_tokens = len(token_ids)
        seed = None if params.seed is None else params.seed % 2**64
        self.random = None if params.temperature == 0 else np.random.default_rng(seed)
        self._eos = np.array(sorted(eos_token_ids), np.intp)
        self._endings = np.union1d(self._eos, np.array(params.stop_token_ids, np.intp)).astype(np.intp)
        self._ending_ids = frozenset(self._endings.tolist())
        self._bias_ids = np.array(list(params.logit_bias), np.intp)
        self._biases = np.array(list(params.logit_bias.values()), np.float32)
        self._seen = _TokenCounts() if params.repetition_window is None else None
        self._generated = _TokenCounts(self.num_prompt_tokens) if self._penalises_answer else None
        self._matcher = None if grammar is None else TokenMatcher(grammar)

    @property
    def is_complete(self) -> bool:
        """The grammar allows nothing more."""
        return self._matcher is not None and self._matcher.is_complete

    @property
    def failure(self) -> str | None:
        """Why the grammar cannot go on, if so."""
        return None if self._matcher is None else self._matcher.failure

    def accept(self, token_id: int) -> None:
        """Move the grammar on by a drawn token; the one that ends the answer is no part of it."""
        if self._matcher is not None and token_id not in self._ending_ids:
            self._matcher.accept(token_id)

    def forced_tokens(self) -> list[int]:
        """What the grammar leaves no choice about."""
        return [] if self._matcher is None else self._matcher.forced()

    def plausible(self, token_ids: list[int]) -> list[int]:
        """The first of these tokens, up to one that ends the answer or that the grammar forbids."""
        for index, token_id in enumerate(token_ids):
            if token_id in self._ending_ids:
                token_ids = token_ids[:index]
                break
        if self._matcher is None or not token_ids:
            return token_ids
        return token_ids[: self._matcher.num_allowed(token_ids)]

    @property
    def _penalises_answer(self) -> bool:
        return self.params.presence_penalty != 0 or self.params.frequency_penalty != 0

    @property
    def is_raw(self) -> bool:
        """Whether the logits are used as they come."""
        params = self.params
        return not (
            params.repetition_penalty != 1
            or self._matcher is not None
            or self._penalises_answer
            or len(self._bias_ids)
            or params.ignore_eos
            or len(self.token_ids) - self.num_prompt_tokens < params.min_tokens
        )

    def adjust(self, logits: Row) -> Row:
        """Penalties, bias, forbidden endings, the grammar's mask; a copy, unless there is nothing to do.

        Repetition penalty as in transformers (divide what is positive, multiply what is negative; prompt
        included), presence and frequency as in OpenAI's formula (subtract; generated tokens only).
        """
        if self.is_raw:
            return logits
        params, row = self.params, logits.copy()
        if params.repetition_penalty != 1:
            ids = self._repeated()
            values, penalty = row[ids], np.float32(params.repetition_penalty)
            row[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._generated is not None:
            ids, counts = self._generated.read(self.token_ids)
            row[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
        row[self._bias_ids] += self._biases
        forbidden = self._eos[:0]
        if len(self.token_ids) - self.num_prompt_tokens < params.min_tokens:
            forbidden = self._endings
        elif params.ignore_eos:
            forbidden = self._eos
        if self._matcher is not None:
            return self._masked(row, self._matcher.allowed(len(row)), forbidden)
        row[forbidden] = -np.inf
        return row

    def _masked(self, row: Row, allowed: NDArray[np.bool_], forbidden: TokenIds) -> Row:
        """What the grammar allows. `forbidden` endings are allowed after all where nothing else is."""
        if allowed[self._eos].any():
            allowed[self._endings] = True  # whatever ends this answer may, once the grammar has all it needs
        rest = allowed.copy() if len(forbidden) else allowed
        rest[forbidden] = False
        return np.where(rest if rest.any() else allowed, row, np.float32(-np.inf))

    def _repeated(self) -> TokenIds:
        """Distinct tokens in the repetition window."""
        if self._seen is not None:
            return self._seen.read(self.token_ids)[0]
        start = max(0, len(self.token_ids) - (self.params.repetition_window or 0))
        return np.array(list(set(self.token_ids[start:])), np.intp)


class _TokenCounts:
    """Distinct tokens of a growing list, from `start` on, and how often each came; reads only what is new."""

    def __init__(self, start: int = 0) -> None:
        self._read = start
        self._slots: dict[int, int] = {}
        self._ids = np.empty(64, np.intp)
        self._counts = np.zeros(64, np.float32)

    def read(self, token_ids: list[int]) -> tuple[TokenIds, NDArray[np.float32]]:
        for token_id in token_ids[self._read :]:
            slot = self._slots.setdefault(token_id, len(self._slots))
            if slot == len(self._ids):
                self._ids = np.concatenate((self._ids, self._ids))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[slot] = token_id
            self._counts[slot] += 1
        self._read = len(token_ids)
        return self._ids[: len(self._slots)], self._counts[: len(self._slots)]


def draw(logits: Row, state: SamplingState) -> Sampled | None:
    """The next token of a sequence, from its row of float32 `[vocabulary]`.

    `None` where nothing can be drawn: NaN in the row, or no token left that is not forbidden.
    """
    row = state.adjust(logits)
    token_id = int(row.argmax())  # of the first NaN, if there is one
    if not np.isfinite(row[token_id]):
        return None
    if state.random is not None:
        token_id = _pick_token(row, row[token_id], state.params, state.random.random())
    state.accept(token_id)
    if state.params.logprobs is None:
        return Sampled(token_id)
    return Sampled(token_id, logprobs_of(logits, token_id, state.params.logprobs))


def _pick_token(row: Row, peak: np.float32, params: SamplingParams, uniform: float) -> int:
    """Temperature, `top_k`, `typical_p`, `top_p`, `min_p`, then the token at `uniform` (in [0, 1)) of what is left.

    `top_p` keeps the most likely tokens up to and with the one that reaches it, of the mass that `top_k` left;
    `min_p` keeps tokens that are at least so likely as `min_p` times the most likely one.
    """
    scale = np.float32(1 / max(params.temperature, _LOWEST_TEMPERATURE))
    if params.top_k is not None and 0 < params.top_k < len(row):
        ids = top_ids(row, params.top_k)
        weights = np.exp((row[ids] - peak) * scale)
        total = weights.sum(dtype=np.float64)
    elif params.typical_p < 1:
        ids = top_ids(row, len(row))
        weights = np.exp((row[ids] - peak) * scale)
        total = weights.sum(dtype=np.float64)
    elif params.top_p < 1:
        total = np.exp((row - peak) * scale).sum(dtype=np.float64)
        ids, weights = _nucleus(row, peak, scale, params.top_p * total)
    else:
        weights = np.exp((row - peak) * scale)
        if params.min_p > 0:
            weights[weights < params.min_p] = 0
        return _pick(weights, uniform)
    if params.typical_p < 1:
        kept = _typical(weights / total, params.typical_p)
        ids, weights = ids[kept], weights[kept]
        total = weights.sum(dtype=np.float64)
    cumulative = np.cumsum(weights, dtype=np.float64)
    num_kept = len(ids)
    if params.top_p < 1:
        num_kept = min(num_kept, int(np.searchsorted(cumulative, params.top_p * total)) + 1)
    if params.min_p > 0:
        num_kept = min(num_kept, max(1, int(np.count_nonzero(weights >= params.min_p * weights[0]))))
    return int(ids[_position(cumulative[:num_kept], uniform)])


def _typical(shares: NDArray[np.float64], mass: float) -> TokenIds:
    """Indices, in order, of the tokens nearest in surprise to the entropy, until they reach `mass`; one at least."""
    surprise = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    entropy = (shares * surprise).sum()
    nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(shares[nearest]), mass)) + 1
    return np.sort(nearest[:count])


def _nucleus(row: Row, peak: np.float32, scale: np.float32, mass: float) -> tuple[TokenIds, Row]:
    """The most likely tokens, best first, until their weights reach `mass`."""
    count = _FIRST_NUCLEUS
    while True:
        ids = top_ids(row, count)
        weights = np.exp((row[ids] - peak) * scale)
        if len(ids) < count or weights.sum(dtype=np.float64) >= mass:
            return ids, weights
        count *= 8


def _pick(weights: Row, uniform: float) -> int:
    """The index at `uniform` of the cumulative weights, without summing up all of them one by one."""
    starts = np.arange(0, len(weights), 256)
    blocks = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    block = _position(blocks, uniform)
    before = blocks[block - 1] if block else 0.0
    inside = np.cumsum(weights[starts[block] : starts[block] + 256], dtype=np.float64)
    within = (uniform * blocks[-1] - before) / inside[-1]
    return int(starts[block]) + _position(inside, min(max(within, 0.0), 1.0))


def _position(cumulative: NDArray[np.float64], uniform: float) -> int:
    """First index whose cumulative weight exceeds `uniform` of the total; never one of weight 0."""
    position = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    if position == len(cumulative):  # uniform rounded up to the total: the last index that adds anything
        position = int(np.searchsorted(cumulative, cumulative[-1]))
    return position


def top_ids(row: Row, count: int) -> TokenIds:
    """Ids of the `count` largest logits, largest first; ids in order where logits are equal, -inf never.

    The row is folded into groups. The `count`-th largest group maximum cannot be above the `count`-th largest
    logit, so only the few logits that reach it need to be sorted.
    """
    width = len(row) // _GROUPS
    if count < width:
        maxima = row[: width * _GROUPS].reshape(_GROUPS, width).max(axis=0)
        floor = np.partition(maxima, width - count)[width - count]
        ids = np.flatnonzero(row >= floor)
    else:
        ids = np.arange(len(row))
    if len(ids) > 4 * count:
        floor = np.partition(row[ids], len(ids) - count)[len(ids) - count]
        above, ties = np.flatnonzero(row > floor), np.flatnonzero(row == floor)
        ids = np.concatenate((above, ties[: count - len(above)]))
    values = row[ids]
    order = np.argsort(-values, kind="stable")[:count]
    return ids[order][values[order] > -np.inf]


def logprobs_of(logits: Row, token_id: int, num_top: int) -> TokenLogprob:
    """Log-softmax of the raw logits, at the drawn token and at the `num_top` most likely ones."""
    peak = logits.max()
    log_total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    top = top_ids(logits, num_top) if num_top else ()
    return TokenLogprob(
        token_id,
        float(logits[token_id]) - log_total,
        tuple((int(i), float(logits[i]) - log_total) for i in top),
    )
