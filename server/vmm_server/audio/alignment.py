"""When each token was said: what the decoder looked at while it wrote.

Some of Whisper's cross-attention heads look where the sound of the token is. Their weights are made comparable between
tokens, smoothed, and averaged; the path through tokens and frames that goes forwards only and gathers the most of them
(dynamic time warping) says in which frame each token begins. As in openai-whisper's `timing.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.02
"""Of the encoder: half as many as of the spectrogram."""

Cost = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Attention:
    """What a window's text was written by."""

    tokens: tuple[int, ...]
    """Text alone, in order."""
    probabilities: tuple[float, ...]
    """Of each token."""
    weights: NDArray[np.float32]
    """`[heads, given + tokens + 1, frames]`: from the first token given to the last of the text. The row of a token
    is what the next one was written by."""
    num_given: int
    """Tokens in front whose rows write no text: all that were given but the last."""


def token_times(attention: Attention) -> NDArray[np.float64]:
    """Seconds from the window's beginning at which each token begins, and, at the end, where the last one ends.

    Float64 `[tokens + 1]`, not descending.
    """
    weights = attention.weights
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)  # frames behind the sound were cut off
    spread = np.maximum(weights.std(axis=-2, keepdims=True), 1e-9)
    weights = (weights - weights.mean(axis=-2, keepdims=True)) / spread
    smooth = median_of_seven(weights).mean(axis=0)[attention.num_given :]
    times: NDArray[np.float64] = first_columns(-smooth).astype(np.float64) * FRAME_S
    return times


def median_of_seven(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of each value and the three on either side of it on the last axis, which is mirrored at its ends.

    Sorts by exchanges of whole arrays: the 13 that are enough for a median of seven (N. Devillard, Fast median search,
    1998). What is no longer than three is given back as it is.
    """
    if values.shape[-1] <= 3:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(3, 3)], mode="reflect")
    length = values.shape[-1]
    sorted_ = [padded[..., shift : shift + length] for shift in range(7)]
    for low, high in _EXCHANGES:
        one, other = sorted_[low], sorted_[high]
        sorted_[low], sorted_[high] = np.minimum(one, other), np.maximum(one, other)
    return sorted_[3]


_EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))


def first_columns(cost: Cost) -> NDArray[np.int64]:
    """Where the cheapest path enters each row of `cost` `[rows, columns]`: int64 `[rows]`, not descending.

    The path goes from the first corner to the last by one row, one column, or both; all cells of an anti-diagonal
    depend on the two before it alone, so each is computed at once.
    """
    rows, columns = cost.shape
    skewed = np.full((rows + columns - 1, rows), np.inf, np.float64)
    for row in range(rows):
        skewed[row : row + columns, row] = cost[row]
    steps = np.zeros(skewed.shape, np.int8)
    before_last = np.full(rows + 1, np.inf)
    last = np.full(rows + 1, np.inf)
    before_last[0] = 0.0  # index r + 1 is row r: the first one has a cell in front of the corner
    for diagonal, cells in enumerate(skewed):
        by_both, by_row, by_column = before_last[:-1], last[:-1], last[1:]
        step = np.where((by_both < by_row) & (by_both < by_column), _BOTH, np.where(by_row < by_column, _ROW, _COLUMN))
        steps[diagonal] = step
        least = np.minimum(np.minimum(by_both, by_row), by_column)
        before_last = last
        last = np.empty(rows + 1)
        last[0] = np.inf
        last[1:] = cells + least
    return _walked_back(steps, rows, columns)


_BOTH, _ROW, _COLUMN = 0, 1, 2


def _walked_back(steps: NDArray[np.int8], rows: int, columns: int) -> NDArray[np.int64]:
    first = np.zeros(rows, np.int64)
    row, column = rows - 1, columns - 1
    while row >= 0:
        first[row] = column
        step = int(steps[row + column, row])
        if row == 0 and column == 0:
            break
        if row == 0 or (step == _COLUMN and column > 0):
            column -= 1
        elif column == 0 or step == _ROW:
            row -= 1
        else:
            row, column = row - 1, column - 1
    return first
