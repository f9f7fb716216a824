"""Which tokens may come next, so that timestamps come in pairs around phrases and never go back.

The rules of Whisper's paper (Radford et al. 2022, 4.5) and openai-whisper's `ApplyTimestampRules`: a window begins with
a timestamp; behind the one that ends a phrase comes the one that begins the next, or the end; a phrase takes time; and
where all timestamps together are likelier than any one word, it is one of them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmm_server.audio.whisper_tokens import MAX_INITIAL_TIMESTAMP, WhisperTokens

_NEVER = -np.inf


class TimestampRules:
    """Makes the logits of tokens that may not come minus infinity."""

    def __init__(self, tokens: WhisperTokens) -> None:
        self._begin = tokens.timestamp_begin
        self._end_of_text = tokens.end_of_text
        self._suppressed = np.array(tokens.suppressed, np.int64)

    def apply(self, logits: NDArray[np.float32], sampled: Sequence[Sequence[int]]) -> None:
        """Change `logits` `[rows, vocab]` in place; `sampled` has the tokens that each row's window has so far."""
        logits[:, self._suppressed] = _NEVER
        logits[:, self._end_of_text + 1 : self._begin] = _NEVER
        for row, tokens in zip(logits, sampled, strict=True):
            self._restrict(row, tokens)
            if _log_sum_exp(row[self._begin :]) > row[: self._begin].max():
                row[: self._begin] = _NEVER

    def _restrict(self, row: NDArray[np.float32], tokens: Sequence[int]) -> None:
        begin = self._begin
        if not tokens:
            row[:begin] = _NEVER
            row[begin + MAX_INITIAL_TIMESTAMP + 1 :] = _NEVER
            return
        is_timestamp = tokens[-1] >= begin
        is_start = is_timestamp and (len(tokens) < 2 or tokens[-2] >= begin)
        if is_start:
            row[begin:] = _NEVER
            return
        if is_timestamp:
            row[: self._end_of_text] = _NEVER
        last = next(token for token in reversed(tokens) if token >= begin)
        row[begin : last if is_timestamp else last + 1] = _NEVER


def _log_sum_exp(row: NDArray[np.float32]) -> float:
    most = row.max()
    return float(most + np.log(np.exp(row - most).sum())) if most > _NEVER else _NEVER
