"""Room for a step."""

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.attention import SPAN, TILE_COLUMNS, result_floats, work_floats
from vmm_adapters.cpu.layout import Decoder, round_up
from vmm_adapters.cpu.panels import BLOCK, PANEL
from vmm_adapters.cpu.share import NUM_COUNTS, TASKS_A_THREAD, Buffers
from vmm_adapters.cpu.spans import BLOCK_SIZE, TILE
from vmm_adapters.types import RunnerOptions


def allocate(decoder: Decoder, options: RunnerOptions, context_length: int, num_threads: int) -> Buffers:
    """Room for the largest step of these options. Pages that no step touches take no memory."""
    tokens = round_up(options.max_batched_tokens, PANEL)
    sequences = min(options.max_sequences, options.max_batched_tokens)
    widths, layers = decoder.widths, decoder.layers
    columns = max(round_up(int(width)) for width in decoder.matrices["columns"])
    has_floats = bool(decoder.matrices["is_dense"].any())
    padded = max(round_up(int(head)) for head in layers["head_size"])
    heads = int(layers["num_kv_heads"][0])
    group = int(layers["num_heads"][0]) // heads
    spans = TASKS_A_THREAD * num_threads * (context_length // SPAN + 1) if num_threads > 1 else 0

    def floats(width: int) -> NDArray[np.float32]:
        return np.zeros((tokens, width), np.float32)

    return Buffers(
        counts=np.zeros(NUM_COUNTS, np.int64),
        token_ids=np.zeros(tokens, np.int64),
        positions=np.zeros(tokens, np.int64),
        token_chunks=np.zeros(tokens, np.int32),
        past_lengths=np.zeros(sequences, np.int32),
        chunk_begins=np.zeros(sequences + 1, np.int32),
        block_tables=np.zeros(sequences * -(-context_length // BLOCK_SIZE), np.int32),
        table_begins=np.zeros(sequences + 1, np.int32),
        sampled=np.zeros(tokens, np.int64),
        tiles=np.zeros(((tokens * group // TILE + sequences) * heads, TILE_COLUMNS), np.int32),
        hidden=floats(widths.residual),
        delta=floats(widths.residual),
        projected=floats(widths.projected),
        attended=floats(widths.attended),
        mlp=floats(widths.mlp),
        quantized=np.zeros(tokens * columns, np.int8),
        scales=np.zeros(tokens * columns // BLOCK, np.float32),
        sums=np.zeros(tokens * columns // BLOCK, np.float32),
        floats=floats(columns if has_floats else 0),
        works=np.zeros((num_threads, work_floats(padded)), np.float32),
        partials=np.zeros((spans, result_floats(padded)), np.float32),
    )
