"""`CausalLMRunner` by kernels of our own: a decoder's whole step is one call of compiled code."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.batching import pack
from vmm_adapters.cpu.attention import BLOCK_SIZE, SPAN, TILE, block_bytes, partial_floats, tile_floats
from vmm_adapters.cpu.isa import InstructionSet, supported
from vmm_adapters.cpu.kernels import SIZES, Kernels
from vmm_adapters.cpu.layout import Decoder, round_up
from vmm_adapters.cpu.panels import BLOCK, PANEL
from vmm_adapters.cpu.plan import DecoderPlan
from vmm_adapters.cpu.step import (
    LOGITS,
    LOGITS_STRIDE,
    NUM_CHUNKS,
    NUM_LOGITS,
    NUM_TOKENS,
    TASKS_A_THREAD,
    TILE_COLUMNS,
    Buffers,
    Model,
)
from vmm_adapters.cpu.threads import Team
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch, Chunk, RunnerOptions


class CPURunner:
    """Implements `vmm_adapters.base.CausalLMRunner`. Built by `load_runner`."""

    block_size = BLOCK_SIZE
    device = "CPU"

    def __init__(self, plan: DecoderPlan, options: RunnerOptions, *, isa: InstructionSet | None = None, is_narrow: bool = False) -> None:
        self.vocab_size, self.context_length = plan.vocab_size, plan.context_length
        self._options = options
        self._decoder: Decoder | None = Decoder(plan)
        layers = self._decoder.layers
        sizes = [_layer_bytes(layer, is_narrow) for layer in layers]
        wanted = options.max_sequences * -(-plan.context_length // BLOCK_SIZE)
        self.num_blocks = max(1, min(options.kv_cache_bytes // sum(map(sum, sizes)), wanted))
        self._blocks = [[np.zeros((self.num_blocks, size), np.uint8) for size in pair] for pair in sizes]
        for layer, (keys, values) in zip(layers, self._blocks, strict=True):
            layer["keys"], layer["values"] = keys.ctypes.data, values.ctypes.data
        self.memory_bytes = self._decoder.num_bytes + sum(each.nbytes for pair in self._blocks for each in pair)
        model = Model(
            plan.width, plan.vocab_size, np.float32(plan.epsilon), np.float32(plan.embedding_scale),
            np.float32(plan.logit_scale), np.float32(plan.logit_softcap or 0), self._decoder.final_norm, is_narrow,
        )  # fmt: skip
        matrices = self._decoder.matrices
        forms = matrices["form"][matrices["is_dense"] == 0]
        kernels = Kernels(isa or supported()[0], forms, options.cache_dir)
        num_threads = options.num_threads or os.cpu_count() or 1
        self._buffers = _allocate(self._decoder, options, plan.context_length, num_threads)
        self._logits = np.zeros((0, 0), np.float32)
        self._team: Team | None = Team(
            kernels, num_threads, model, layers, self._decoder.matrices, self._buffers
        )

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """See `CausalLMRunner.execute`."""
        if self._team is None:
            raise RuntimeFailed("the runner is closed")
        if not batch.chunks:
            return np.empty((0, self.vocab_size), np.float32)
        self._write(batch)
        self._team.compute()
        return self._logits[: batch.num_logits, : self.vocab_size]

    def _write(self, batch: Batch) -> None:
        arrays = pack(
            batch,
            block_size=BLOCK_SIZE,
            num_blocks=self.num_blocks,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        buffers, num_chunks = self._buffers, len(batch.chunks)
        num_tokens, num_logits = len(arrays["input_ids"]), batch.num_logits
        for name, buffer in (
            ("input_ids", buffers.token_ids),
            ("position_ids", buffers.positions),
            ("past_lens", buffers.past_lengths),
            ("subsequence_begins", buffers.chunk_begins),
            ("block_indices", buffers.block_tables),
            ("block_indices_begins", buffers.table_begins),
            ("sampled_tokens_indices", buffers.sampled),
        ):
            array = arrays[name]
            if len(array) > len(buffer):
                raise RuntimeFailed(f"the step has {len(array)} {name}; {len(buffer)} were allocated for")
            buffer[: len(array)] = array
        buffers.token_chunks[:num_tokens] = np.repeat(np.arange(num_chunks), np.diff(arrays["subsequence_begins"]))
        rows = round_up(num_logits, SIZES[-1])
        if rows > len(self._logits):
            assert self._decoder is not None
            self._logits = np.zeros((rows, self._decoder.widths.logits), np.float32)
        counts = buffers.counts
        counts[NUM_TOKENS], counts[NUM_CHUNKS], counts[NUM_LOGITS] = num_tokens, num_chunks, num_logits
        counts[LOGITS], counts[LOGITS_STRIDE] = self._logits.ctypes.data, self._logits.strides[0]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `CausalLMRunner.copy_blocks`."""
        if self._team is None:
            raise RuntimeFailed("the runner is closed")
        for source, target in pairs:
            if not (0 <= source < self.num_blocks and 0 <= target < self.num_blocks):
                raise RuntimeFailed(f"a block id is not in 0 .. {self.num_blocks - 1}")
            for kinds in self._blocks:
                for blocks in kinds:
                    blocks[target] = blocks[source]

    def warm_up(self) -> None:
        """See `CausalLMRunner.warm_up`. Compiles what is not in the cache."""
        self.execute(Batch((Chunk([0], 0, [0]),)))

    def close(self) -> None:
        """See `CausalLMRunner.close`."""
        if self._team is not None:
            self._team.close()
        self._team = self._decoder = None
        self._blocks = []


def _layer_bytes(layer: np.void, is_narrow: bool) -> tuple[int, int]:
    heads, head = int(layer["num_kv_heads"]), int(layer["head_size"])
    return block_bytes(heads, head, is_narrow), block_bytes(heads, round_up(head), is_narrow)


def _allocate(decoder: Decoder, options: RunnerOptions, context_length: int, num_threads: int) -> Buffers:
    tokens = round_up(options.max_batched_tokens, PANEL)
    sequences = min(options.max_sequences, options.max_batched_tokens)
    tables = sequences * -(-context_length // BLOCK_SIZE)
    widths, layers = decoder.widths, decoder.layers
    columns = max(round_up(int(width)) for width in decoder.matrices["columns"])
    has_floats = bool(decoder.matrices["is_dense"].any())
    padded = max(round_up(int(head)) for head in layers["head_size"])
    group = max(int(n) for n in layers["num_heads"] // layers["num_kv_heads"])
    heads = max(int(n) for n in layers["num_kv_heads"])
    tiles = (tokens * group // TILE + sequences) * heads
    spans = TASKS_A_THREAD * num_threads * (context_length // SPAN + 1) if num_threads > 1 else 0

    def floats(width: int) -> NDArray[np.float32]:
        return np.zeros((tokens, width), np.float32)

    return Buffers(
        counts=np.zeros(16, np.int64),
        token_ids=np.zeros(tokens, np.int64),
        positions=np.zeros(tokens, np.int64),
        token_chunks=np.zeros(tokens, np.int32),
        past_lengths=np.zeros(sequences, np.int32),
        chunk_begins=np.zeros(sequences + 1, np.int32),
        block_tables=np.zeros(tables, np.int32),
        table_begins=np.zeros(sequences + 1, np.int32),
        sampled=np.zeros(tokens, np.int64),
        tiles=np.zeros((tiles, TILE_COLUMNS), np.int32),
        hidden=floats(widths.residual),
        delta=floats(widths.residual),
        projected=floats(widths.projected),
        attended=floats(widths.attended),
        mlp=floats(widths.mlp),
        quantized=np.zeros(tokens * columns, np.int8),
        scales=np.zeros(tokens * columns // BLOCK, np.float32),
        sums=np.zeros(tokens * columns // BLOCK, np.int32),
        floats=floats(columns if has_floats else 0),
        works=np.zeros((num_threads, tile_floats(padded) + partial_floats(padded)), np.float32),
        partials=np.zeros((spans, partial_floats(padded)), np.float32),
    )
