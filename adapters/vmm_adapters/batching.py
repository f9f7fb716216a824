"""A `Batch` as the arrays a paged model takes. Pure numpy, no loop over tokens."""

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch

IntArray = NDArray[np.int64] | NDArray[np.int32]


def pack(
    batch: Batch, *, block_size: int, num_blocks: int, vocab_size: int, context_length: int
) -> dict[str, IntArray]:
    """Step inputs by name, for at least one chunk. Raises `RuntimeFailed` for what would read or write astray.

    `input_ids`, `position_ids [tokens]`; `past_lens [chunks]`; `subsequence_begins`, `block_indices_begins
    [chunks + 1]`; `block_indices [all tables]`; `max_context_len []`; `sampled_tokens_indices [num_logits]`.
    """
    chunks = batch.chunks
    lengths = np.array([len(chunk.token_ids) for chunk in chunks])
    starts = np.array([chunk.start for chunk in chunks])
    sampled = np.array([chunk.num_logits for chunk in chunks])
    tables = np.array([len(chunk.block_table) for chunk in chunks])
    ends = np.cumsum(lengths)
    ids = np.fromiter(chain.from_iterable(chunk.token_ids for chunk in chunks), np.int64, ends[-1])
    blocks = np.fromiter(chain.from_iterable(chunk.block_table for chunk in chunks), np.int32, tables.sum())
    reach = starts + lengths
    _require(lengths > 0, "has no tokens")
    _require((starts >= 0) & (reach <= context_length), f"leaves the {context_length} positions of the model")
    _require((sampled >= 0) & (sampled <= lengths), "asks for more logits than it has tokens")
    _require(tables * block_size >= reach, "has a block table that does not cover its positions")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise RuntimeFailed(f"a token id is not in 0 .. {vocab_size - 1}")
    if blocks.min() < 0 or blocks.max() >= num_blocks:
        raise RuntimeFailed(f"a block id is not in 0 .. {num_blocks - 1}")
    return {
        "input_ids": ids,
        "position_ids": _ranges(starts, lengths),
        "past_lens": starts.astype(np.int32),
        "subsequence_begins": _begins(lengths),
        "block_indices": blocks,
        "block_indices_begins": _begins(tables),
        "max_context_len": np.array(reach.max(), np.int32),
        "sampled_tokens_indices": _ranges(ends - sampled, sampled),
    }


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`first, first + 1, …` for each pair, one behind the other."""
    ends = np.cumsum(counts)
    ranges: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(firsts - (ends - counts), counts)
    return ranges


def _begins(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    return begins


def _require(holds: NDArray[np.bool_], otherwise: str) -> None:
    if not holds.all():
        raise RuntimeFailed(f"chunk {int(np.argmin(holds))} {otherwise}")
