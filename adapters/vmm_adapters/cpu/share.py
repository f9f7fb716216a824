"""What the threads of a step share: the model, the step, the buffers they work in, and where they take tasks from.

Compiled code gets records of numbers and addresses, no arrays: those would be counted whenever they are passed on.
"""

from typing import Any, NamedTuple

import numpy as np

TASKS_A_THREAD = 4
"""Few enough that taking them costs nothing, enough that threads end together."""


def _record(integers: tuple[str, ...], floats: tuple[str, ...] = ()) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in integers] + [(name, np.float32) for name in floats])


MODEL = _record(
    (
        "width",
        "final_norm",  # address
        "is_narrow",  # KV blocks are uint8
    ),
    ("epsilon", "embedding_scale", "logit_scale", "logit_softcap"),
)
"""What is the same in all layers."""

STEP = _record(
    (
        "num_tokens",
        "num_chunks",
        "num_logits",
        "num_tiles",
        "num_spans",  # the most that a tile of attention is cut into; 1 where none is
        "max_partials",
        # addresses of what is computed: int64 by token, but for chunks and tables, which are int32
        "token_ids",
        "positions",
        "sampled",
        "token_chunks",
        "past_lengths",
        "chunk_begins",
        "block_tables",
        "table_begins",
        "tiles",  # int32 [tiles, TILE_COLUMNS]
        # of float32, a row a token, and the bytes of a row
        "hidden",
        "hidden_stride",
        "delta",  # what attention or the MLP gives, where a norm comes before it is added
        "projected",
        "projected_stride",
        "attended",
        "attended_stride",
        "mlp",
        "mlp_stride",
        "floats",  # inputs of products with floats
        "floats_stride",
        "logits",
        "logits_stride",
        # inputs of products in tiles of 16 (see `panels`): int8, float32, float32
        "quantized",
        "scales",
        "sums",
        # float32, and the bytes of one
        "works",  # a thread
        "work_stride",
        "partials",  # a span that several threads compute
        "partial_stride",
    )
)
"""One step, and the buffers for it."""

COUNTER, DONE, STOP, STEP_NUMBER, NUM_THREADS, ACQUIRE, RELEASE, YIELD, LOCKS = 0, 8, 16, 24, 32, 33, 34, 35, 40
"""Places in a team's state, int64: phase and next task, tasks done, whether to end, the step, the number of threads;
addresses of the system's functions that take a lock, release one and let others run; locks."""


class Share(NamedTuple):
    """One thread's share of a step, as every phase takes it."""

    kernels: int
    """The address of the table: see `kernels`."""
    state: int
    """Of the team: see `team`."""
    first_phase: int
    """Of the step."""
    num_threads: int
    thread: int
    model: Any
    """A `MODEL`."""
    step: Any
    """A `STEP`."""
