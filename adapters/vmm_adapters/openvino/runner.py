"""`CausalLMRunner` on OpenVINO's PagedAttention: one compiled model, one infer request, KV blocks as plain tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from vmm_adapters.errors import RuntimeFailed, runtime_errors
from vmm_adapters.openvino.batching import pack
from vmm_adapters.openvino.graph import MAX_POSITIONS, read_paged_model
from vmm_adapters.openvino.kv_cache import KVCache, count_blocks, read_layout
from vmm_adapters.openvino.model_folder import read_model_folder
from vmm_adapters.types import Batch, Chunk, RunnerOptions


class OpenVINORunner:
    """Implements `vmm_adapters.base.CausalLMRunner`. Built by `load_runner`."""

    def __init__(
        self, core: Any, compiled: Any, options: RunnerOptions, *, context_length: int, weight_bytes: int
    ) -> None:
        layout = read_layout(compiled)
        self.block_size = layout.block_size
        self.context_length = context_length
        self.device = options.device
        self.vocab_size = compiled.output("logits").get_partial_shape()[-1].get_length()
        self.num_blocks = count_blocks(layout, options.kv_cache_bytes, options.max_sequences * context_length)
        self._options = options
        self._cache: KVCache | None = KVCache(core, options.device, layout, self.num_blocks)
        self.memory_bytes = self._cache.num_bytes + weight_bytes
        self._request: Any = compiled.create_infer_request()
        for name, tensor in self._cache.tensors.items():
            self._request.set_tensor(name, tensor)
        names = {port.get_any_name() for port in compiled.inputs}
        self._unused = {"position_ids"} - names

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """See `CausalLMRunner.execute`."""
        if not batch.chunks:
            return np.empty((0, self.vocab_size), np.float32)
        arrays = pack(
            batch,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        with runtime_errors("computing a batch", RuntimeError):
            for name, array in arrays.items():
                if name not in self._unused:
                    self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self._request.infer()
            logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(batch.num_logits, self.vocab_size)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `CausalLMRunner.copy_blocks`."""
        if self._cache is None:
            raise RuntimeFailed("the runner is closed")
        with runtime_errors("copying KV blocks", RuntimeError):
            self._cache.copy(pairs)

    def warm_up(self) -> None:
        """See `CausalLMRunner.warm_up`."""
        counts = [1, 2, 4, 8, 16, self._options.max_sequences]
        for count in counts:
            self.execute(Batch(tuple(Chunk([0], 0, [0]) for _ in range(count))))
        longest = min(self._options.max_batched_tokens, self.context_length, self.num_blocks * self.block_size)
        table = range(-(-longest // self.block_size))
        self.execute(Batch((Chunk([0] * longest, 0, table),)))

    def close(self) -> None:
        """See `CausalLMRunner.close`."""
        self._request = None
        self._cache = None


def load_runner(folder: Path, options: RunnerOptions) -> OpenVINORunner:
    """Load a genai ONNX folder or an OpenVINO IR folder. Raises `AdapterError`."""
    described = read_model_folder(folder)
    core = ov.Core()
    model = read_paged_model(core, described.decoder)
    with runtime_errors(f"compiling for {options.device}", RuntimeError):
        compiled = core.compile_model(model, options.device, {})
    limits = [described.context_length]
    if model.has_rt_info(MAX_POSITIONS):
        limits.append(int(model.get_rt_info(MAX_POSITIONS).value))
    return OpenVINORunner(core, compiled, options, context_length=min(x for x in limits if x), weight_bytes=0)
