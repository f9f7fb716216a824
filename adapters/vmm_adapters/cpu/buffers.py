"""Room for a step, allocated once; pages that no step touches take no memory."""

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.batching import IntArray
from vmm_adapters.cpu.formats import BLOCK, BLOCK_SIZE, PANEL, SPAN, TILE, TILE_COLUMNS, result_floats, work_floats
from vmm_adapters.cpu.layout import Decoder, round_up
from vmm_adapters.cpu.share import STEP, TASKS_A_THREAD
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import RunnerOptions

_INPUTS = {
    "token_ids": "input_ids",
    "positions": "position_ids",
    "past_lengths": "past_lens",
    "chunk_begins": "subsequence_begins",
    "block_tables": "block_indices",
    "table_begins": "block_indices_begins",
    "sampled": "sampled_tokens_indices",
}
"""Ours, and `batching.pack`'s."""


class StepBuffers:
    """A `STEP` record and the arrays that its addresses are of."""

    def __init__(self, decoder: Decoder, options: RunnerOptions, context_length: int, num_threads: int) -> None:
        """For the largest step of these options."""
        self.record = np.zeros(1, STEP)
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._num_bytes = 0
        self._logits_width = decoder.widths.logits
        self.logits = np.zeros((0, 0), np.float32)
        self._max_tokens = options.max_batched_tokens
        tokens = round_up(options.max_batched_tokens, PANEL)
        sequences = min(options.max_sequences, options.max_batched_tokens)
        for name in ("token_ids", "positions", "sampled"):
            self._add(name, (tokens,), np.int64)
        self._add("token_chunks", (tokens,), np.int32)
        self._add("past_lengths", (sequences,), np.int32)
        for name in ("chunk_begins", "table_begins"):
            self._add(name, (sequences + 1,), np.int32)
        self._add("block_tables", (sequences * -(-context_length // BLOCK_SIZE),), np.int32)
        self._add_rows(decoder, tokens)
        layers = decoder.layers
        heads, padded = int(layers["num_kv_heads"][0]), round_up(int(layers["head_size"][0]))
        group = int(layers["num_heads"][0]) // heads
        self._add("tiles", ((tokens * group // TILE + sequences) * heads, TILE_COLUMNS), np.int32)
        self._add("works", (num_threads, work_floats(padded)), np.float32, "work_stride")
        spans = TASKS_A_THREAD * num_threads * (context_length // SPAN + 1) if num_threads > 1 else 0
        self._add("partials", (spans, result_floats(padded)), np.float32, "partial_stride")
        self.record["max_partials"] = spans

    def _add_rows(self, decoder: Decoder, tokens: int) -> None:
        widths, matrices = decoder.widths, decoder.matrices
        columns = max(round_up(int(width)) for width in matrices["columns"])
        self._shared = self._room(decoder, tokens)
        self._num_bytes += self._shared.nbytes
        self._add("hidden", (tokens, widths.residual), np.float32, "hidden_stride")
        self._add("delta", (tokens, widths.residual), np.float32)
        self._share("projected", widths.projected, 0)
        self._share("attended", widths.attended, tokens * widths.projected)
        self._share("mlp", widths.mlp, self._shared.size - tokens * widths.mlp)
        self._add("floats", (tokens, columns if matrices["is_dense"].any() else 0), np.float32, "floats_stride")
        self._add("quantized", (tokens * columns,), np.int8)
        for name in ("scales", "sums"):
            self._add(name, (tokens * columns // BLOCK,), np.float32)

    @property
    def num_bytes(self) -> int:
        """At most: of pages that no step touches there is no memory."""
        return self._num_bytes

    def _add(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], stride: str | None = None) -> None:
        array = self._arrays[name] = np.zeros(shape, dtype)
        self._num_bytes += array.nbytes
        self.record[name] = array.ctypes.data
        if stride is not None:
            self.record[stride] = array.strides[0]

    def _room(self, decoder: Decoder, tokens: int) -> NDArray[np.float32]:
        """For what attention computes, the MLP, and the logits: each is over when the next one's phases begin.

        Products read whole blocks of 32 columns. Where one is not full, zeros lie behind the numbers, and must stay.
        """
        layers, widths = decoder.layers, decoder.widths
        attention = widths.projected + widths.attended
        is_full = (
            not (layers["num_heads"] * layers["head_size"] % BLOCK).any() and not (layers["mlp_width"] % BLOCK).any()
        )
        self._holds_logits = is_full
        return np.zeros(tokens * (max(attention, widths.mlp) if is_full else attention + widths.mlp), np.float32)

    def _share(self, name: str, columns: int, first: int) -> None:
        self.record[name] = self._shared[first:].ctypes.data
        self.record[f"{name}_stride"] = 4 * columns

    def write(self, arrays: dict[str, IntArray], num_logits: int) -> None:
        """Describe a step, as `batching.pack` gives it. Raises `RuntimeFailed` for one that there is no room for."""
        num_tokens, num_chunks = len(arrays["input_ids"]), len(arrays["past_lens"])
        if num_tokens > self._max_tokens or num_chunks > len(self._arrays["past_lengths"]):
            raise RuntimeFailed(
                f"a step of {num_tokens} tokens in {num_chunks} chunks is more than max_batched_tokens "
                f"({self._max_tokens}) or max_sequences ({len(self._arrays['past_lengths'])})"
            )
        for name, packed in _INPUTS.items():
            self._arrays[name][: len(arrays[packed])] = arrays[packed]
        lengths = np.diff(arrays["subsequence_begins"])
        self._arrays["token_chunks"][:num_tokens] = np.repeat(np.arange(num_chunks), lengths)
        rows = round_up(num_logits, PANEL)
        if rows > len(self.logits):
            size = rows * self._logits_width
            fits = self._holds_logits and size <= self._shared.size
            room = self._shared[:size] if fits else np.zeros(size, np.float32)
            self.logits = room.reshape(rows, self._logits_width)
        record = self.record
        record["num_tokens"], record["num_chunks"], record["num_logits"] = num_tokens, num_chunks, num_logits
        record["logits"], record["logits_stride"] = self.logits.ctypes.data, self.logits.strides[0]
