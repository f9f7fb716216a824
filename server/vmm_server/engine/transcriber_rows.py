"""What a batch of windows has in the runtime: a row each, in two sessions' arrays.

The keys and values that the decoder looks at a window's sound with are large (18 MB a window of the smallest model in
float32) and never change. A step reads all of them, so they are kept in what the runtime computes in. Rows' lie in one
array each, from the first on, without a gap: the decoder is given the part of it that is used, and nothing is copied
from step to step. A row that leaves is filled with the last one. Keys and values of tokens are small; they come out of
a step as they go into the next one, padded on the left.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.base import Session
from vmm_adapters.errors import UnsupportedModel

Floats = NDArray[np.float32]
Carried = NDArray[Any]
"""Keys and values in whatever the runtime keeps them in; zero bytes are zeros."""

_PAST = "past_"
_PRESENT = "present_"
CARRIED = ("cross_key", "cross_value", _PAST, _PRESENT)
"""Beginnings of what goes from one run into another (`SessionOptions.carried`)."""
ATTENTION = "cross_attention"
"""The decoder's output that words are timed by."""


class Rows:
    """Rows of one encoder and one decoder, laid out as docs/internals.md says. For the thread that owns them.

    A row that was encoded is last; its tokens follow with `prefill`, which can be called again to begin anew.
    """

    def __init__(self, encoder: Session, decoder: Session, max_rows: int) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._cross: dict[str, Carried] = {
            spec.name: np.empty((max_rows, *_sizes(spec.shape[1:])), spec.dtype) for spec in encoder.outputs
        }  # the system gives memory only to rows that are written
        self._past: dict[str, Carried] = {
            spec.name: np.zeros((0, _sizes(spec.shape[1:2])[0], 0, _sizes(spec.shape[3:])[0]), spec.dtype)
            for spec in decoder.inputs
            if spec.name.startswith(_PAST)
        }
        self._lengths: list[int] = []
        """Tokens that each row has keys and values of."""

    @property
    def attends(self) -> bool:
        """Whether the decoder says what it looked at."""
        return any(spec.name == ATTENTION for spec in self._decoder.outputs)

    def warm_up(self, features: Floats, prompt: Sequence[int]) -> None:
        """Compute one window's first tokens, as all others will be. Raises `AdapterError`."""
        self.encode([features])
        self.prefill(0, [prompt], [(0, len(prompt) - 1)])
        self.step([prompt[-1]])
        self.remove(0)

    def __len__(self) -> int:
        return len(self._lengths)

    def encode(self, features: Sequence[Floats]) -> None:
        """Add a row for each of some windows, `[num_mel_bins, 3000]`. Raises `AdapterError`, and then adds none."""
        found = self._encoder.run({"input_features": np.stack(features)})
        first, last = len(self), len(self) + len(features)
        for name, cross in self._cross.items():
            cross[first:last] = found[name]
        self._put(first, self._nothing(len(features)), [0] * len(features))

    def prefill(self, first: int, prompts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Floats:
        """Compute the prompts of the rows from `first` on, which forget what they had.

        Gives logits float32 `[prompts, positions, vocab]`, those of a prompt's tokens at its `positions`, of which each
        has as many. Raises `AdapterError`, and then nothing has changed.
        """
        found = self._run(first, prompts, positions)
        self._put(first, self._present(found), [len(prompt) for prompt in prompts])
        return found["logits"]

    def step(self, tokens: Sequence[int]) -> Floats:
        """Compute one more token of every row: logits `[rows, vocab]`. Raises `AdapterError`, nothing has changed."""
        lengths = np.array(self._lengths, np.int64)
        past_length = self._past_length
        columns = np.arange(past_length + 1)
        found = self._decoder.run(
            {
                "input_ids": np.array(tokens, np.int64)[:, None],
                "position_ids": lengths[:, None],
                "attention_mask": (columns >= (past_length - lengths)[:, None]).astype(np.int64),
                "logit_positions": np.zeros((len(tokens), 1), np.int64),
                **self._past,
                **self._looked_at(0, len(tokens)),
            }
        )
        self._past = self._present(found)
        self._lengths = [length + 1 for length in self._lengths]
        return found["logits"][:, 0]

    def attend(self, row: int, tokens: Sequence[int], first_logits: int) -> tuple[Floats, Floats]:
        """What a row looked at while `tokens` were written, float32 `[heads, tokens, 1500]`, and the logits behind the
        tokens from `first_logits` on, `[tokens - first_logits, vocab]`. Changes nothing; raises `AdapterError`."""
        found = self._run(row, [tokens], [range(first_logits, len(tokens))])
        return found[ATTENTION][0], found["logits"][0]

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            for cross in self._cross.values():
                cross[row] = cross[last]
            for past in self._past.values():
                past[row] = past[last]
            self._lengths[row] = self._lengths[last]
        self._lengths.pop()
        longest = max(self._lengths, default=0)
        self._past = {
            name: np.ascontiguousarray(past[:last, :, past.shape[2] - longest :]) for name, past in self._past.items()
        }

    def close(self) -> None:
        """Give the runtime's memory and the rows' back."""
        self._cross, self._past = {}, {}
        self._encoder.close()
        self._decoder.close()

    @property
    def _past_length(self) -> int:
        return int(next(iter(self._past.values())).shape[2])

    def _looked_at(self, first: int, num_rows: int) -> dict[str, Carried]:
        return {name: cross[first : first + num_rows] for name, cross in self._cross.items()}

    def _nothing(self, num_rows: int) -> dict[str, Carried]:
        """Keys and values of no tokens."""
        return {
            name: np.zeros((num_rows, past.shape[1], 0, past.shape[3]), past.dtype) for name, past in self._past.items()
        }

    def _present(self, found: Mapping[str, Carried]) -> dict[str, Carried]:
        return {name: found[name.replace(_PAST, _PRESENT, 1)] for name in self._past}

    def _put(self, first: int, past: dict[str, Carried], lengths: Sequence[int]) -> None:
        """Make the rows from `first` on, old or new, those of `past`."""
        self._lengths[first : first + len(lengths)] = lengths
        if len(lengths) == len(self):
            self._past = past
            return
        longest = max(self._lengths)
        for name, old in self._past.items():
            new = past[name]
            kept = min(longest, old.shape[2])
            both = np.zeros((len(self), old.shape[1], longest, old.shape[3]), old.dtype)
            both[: len(old), :, longest - kept :] = old[:, :, old.shape[2] - kept :]
            both[first : first + len(new), :, longest - new.shape[2] :] = new
            self._past[name] = both

    def _run(
        self, first: int, prompts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[Any]]:
        """Whole prompts of some rows, without a past."""
        longest = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros_like(ids)
        wanted = np.zeros((len(prompts), len(positions[0])), np.int64)
        for index, (prompt, asked) in enumerate(zip(prompts, positions, strict=True)):
            ids[index, longest - len(prompt) :] = prompt
            mask[index, longest - len(prompt) :] = 1
            wanted[index] = np.array(asked, np.int64) + longest - len(prompt)
        return self._decoder.run(
            {
                "input_ids": ids,
                "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
                "attention_mask": mask,
                "logit_positions": wanted,
                **self._nothing(len(prompts)),
                **self._looked_at(first, len(prompts)),
            }
        )


def row_bytes(encoder: Session, decoder: Session, max_length: int) -> int:
    """What a row takes at most. Raises `UnsupportedModel` for sessions that are no Whisper's."""
    cross = sum(prod(_sizes(spec.shape[1:])) * spec.dtype.itemsize for spec in encoder.outputs)
    pasts = [spec for spec in decoder.inputs if spec.name.startswith(_PAST)]
    if not (cross and pasts):
        raise UnsupportedModel("a Whisper's encoder gives cross_key.0, its decoder takes past_key.0")
    past = sum(prod(_sizes((spec.shape[1], spec.shape[3]))) * max_length * spec.dtype.itemsize for spec in pasts)
    return cross + 2 * past  # a step's keys and values lie beside those of the one before it


def _sizes(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    """Raises `UnsupportedModel` for sizes that the graph leaves open."""
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedModel(f"keys and values of {shape} have no fixed number of heads, frames and dimensions")
    return tuple(size for size in shape if isinstance(size, int))
