"""What the threads of a step share: the model, the buffers they work in, and where they take tasks from."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TASKS_A_THREAD = 4
"""Few enough that taking them costs nothing, enough that threads end together."""
NUM_TOKENS, NUM_CHUNKS, NUM_LOGITS, NUM_TILES, NUM_SPANS, LOGITS, LOGITS_STRIDE = range(7)
"""Places in `Buffers.counts`. `NUM_SPANS`: the most that a tile is cut into, 1 where none is; `LOGITS`: an address."""
NUM_COUNTS = 8


class Model(NamedTuple):
    """What is the same in all layers."""

    width: int
    epsilon: np.float32
    embedding_scale: np.float32
    logit_scale: np.float32
    logit_softcap: np.float32
    final_norm: int
    is_narrow: bool
    """KV blocks are uint8."""


class Buffers(NamedTuple):
    """What a step reads and writes; allocated once. Rows are tokens, in whole tiles of 16."""

    counts: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_chunks: NDArray[np.int32]
    past_lengths: NDArray[np.int32]
    chunk_begins: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    table_begins: NDArray[np.int32]
    sampled: NDArray[np.int64]
    tiles: NDArray[np.int32]
    """`[tiles, TILE_COLUMNS]`: of attention."""
    hidden: NDArray[np.float32]
    delta: NDArray[np.float32]
    """What attention or the MLP gives, where a norm comes before it is added."""
    projected: NDArray[np.float32]
    attended: NDArray[np.float32]
    mlp: NDArray[np.float32]
    quantized: NDArray[np.int8]
    """Inputs of products, in tiles: see `panels`."""
    scales: NDArray[np.float32]
    sums: NDArray[np.float32]
    floats: NDArray[np.float32]
    """Inputs of products with floats."""
    works: NDArray[np.float32]
    """`[threads, numbers]`: see `attention.work_floats`."""
    partials: NDArray[np.float32]
    """`[spans, numbers]`: results of spans that several threads compute."""


class Share(NamedTuple):
    """One thread's share of a step, as every phase takes it."""

    kernels: Any
    """Addresses, by place: see `kernels`."""
    state: int
    """Of the team: see `team`."""
    num_threads: int
    thread: int
    model: Model
    buffers: Buffers
