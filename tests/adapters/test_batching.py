"""Batches as arrays: against the same thing written with loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.batching import pack
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch, Chunk

SIZES = {"block_size": 4, "num_blocks": 50, "vocab_size": 100, "context_length": 64}


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    start = draw(st.integers(0, 40))
    length = draw(st.integers(1, 20))
    needed = -(-(start + length) // 4)
    return Chunk(
        token_ids=draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)),
        start=start,
        block_table=draw(st.lists(st.integers(0, 49), min_size=needed, max_size=needed + 2)),
        num_logits=draw(st.integers(0, length)),
    )


@given(st.lists(chunks(), min_size=1, max_size=6))
def test_arrays_are_what_a_loop_would_write(parts: list[Chunk]) -> None:
    ids, positions, blocks, sampled, begins, block_begins = [], [], [], [], [0], [0]
    for part in parts:
        length = len(part.token_ids)
        ids += part.token_ids
        positions += range(part.start, part.start + length)
        blocks += part.block_table
        begins.append(begins[-1] + length)
        block_begins.append(len(blocks))
        sampled += range(begins[-1] - part.num_logits, begins[-1])
    expected = {
        "input_ids": np.array(ids, np.int64),
        "position_ids": np.array(positions, np.int64),
        "past_lens": np.array([part.start for part in parts], np.int32),
        "subsequence_begins": np.array(begins, np.int32),
        "block_indices": np.array(blocks, np.int32),
        "block_indices_begins": np.array(block_begins, np.int32),
        "max_context_len": np.array(max(part.start + len(part.token_ids) for part in parts), np.int32),
        "sampled_tokens_indices": np.array(sampled, np.int64),
    }
    packed = pack(Batch(tuple(parts)), **SIZES)
    assert packed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(packed[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (Chunk([], 0, [0], 0), "chunk 1 has no tokens"),
        (Chunk([1], 64, range(17)), "chunk 1 leaves the 64 positions"),
        (Chunk([1], -1, [0]), "chunk 1 leaves the 64 positions"),
        (Chunk([1], 0, [0], 2), "chunk 1 asks for more logits"),
        (Chunk([1], 0, [0], -1), "chunk 1 asks for more logits"),
        (Chunk([1] * 5, 0, [0]), "chunk 1 has a block table that does not cover"),
        (Chunk([1], 0, []), "chunk 1 has a block table that does not cover"),
        (Chunk([100], 0, [0]), r"token id is not in 0 \.\. 99"),
        (Chunk([-1], 0, [0]), r"token id is not in 0 \.\. 99"),
        (Chunk([1], 0, [50]), r"block id is not in 0 \.\. 49"),
        (Chunk([1], 0, [-1]), r"block id is not in 0 \.\. 49"),
    ],
)
def test_what_would_read_or_write_astray_is_refused(chunk: Chunk, said: str) -> None:
    with pytest.raises(RuntimeFailed, match=said):
        pack(Batch((Chunk([1], 0, [0]), chunk)), **SIZES)
