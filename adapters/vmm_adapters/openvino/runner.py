"""`CausalLMRunner` on OpenVINO's PagedAttention: one compiled model, one infer request, KV blocks as plain tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.properties import hint as hints

from vmm_adapters.batching import pack
from vmm_adapters.decoder_folder import read_model_folder
from vmm_adapters.errors import RuntimeFailed, UnsupportedModel, runtime_errors
from vmm_adapters.heap import give_back, trim_heap
from vmm_adapters.openvino.devices import HETERO, check_device
from vmm_adapters.openvino.graph import PagedModel, read_paged_model
from vmm_adapters.openvino.kv_cache import KVCache, count_blocks, read_layout
from vmm_adapters.types import Batch, Chunk, RunnerOptions

WARM_PROMPT = 32
"""Tokens of the prompt chunk that warms the kernels for many rows."""


class OpenVINORunner:
    """Implements `vmm_adapters.base.CausalLMRunner`. Built by `load_runner`."""

    def __init__(
        self, core: Any, paged: PagedModel, options: RunnerOptions, *, context_length: int, properties: dict[str, Any]
    ) -> None:
        with runtime_errors(f"compiling for {options.device}", RuntimeError):
            homes = _homes(core, paged, options.device, properties)
            compiled = core.compile_model(paged.model, options.device, properties)
        layout = read_layout(compiled)
        self.block_size = layout.block_size
        self.context_length = context_length
        self.device = options.device
        self.vocab_size = compiled.output(0).get_partial_shape()[-1].get_length()
        self.num_blocks = count_blocks(
            layout, options.kv_cache_bytes, num_sequences=options.max_sequences, context_length=context_length
        )
        self._options = options
        self._weights = paged.weights
        with runtime_errors("allocating KV blocks", RuntimeError):
            self._cache: KVCache | None = KVCache(core, options.device, layout, self.num_blocks, homes)
            self._request: Any = compiled.create_infer_request()
            for name, tensor in self._cache.tensors.items():
                self._request.set_tensor(name, tensor)
        self.memory_bytes = self._cache.num_bytes + paged.weight_bytes

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """See `CausalLMRunner.execute`."""
        if self._request is None:
            raise RuntimeFailed("the runner is closed")
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
                self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self._request.infer()
            logits = self._request.get_output_tensor(0).data.astype(np.float32, copy=False)
        rows: NDArray[np.float32] = logits.reshape(batch.num_logits, self.vocab_size)
        return rows

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `CausalLMRunner.copy_blocks`."""
        if self._cache is None:
            raise RuntimeFailed("the runner is closed")
        with runtime_errors("copying KV blocks", RuntimeError):
            self._cache.copy(pairs)

    def warm_up(self) -> None:
        """See `CausalLMRunner.warm_up`. The first call packs the weights; their file's pages are then let go.

        Another number of tokens costs its first call some milliseconds only, whatever it is (docs/openvino-runner.md).
        """
        for count in (1, 2, 4, 8, 16):
            if count <= self._options.max_sequences:
                self.execute(Batch(tuple(Chunk([0], 0, [0]) for _ in range(count))))
        length = min(WARM_PROMPT, self._options.max_batched_tokens, self.context_length, self.block_size)
        self.execute(Batch((Chunk([0] * length, 0, [0]),)))
        if self._weights is not None:
            self._weights.release()
        give_back()

    def close(self) -> None:
        """See `CausalLMRunner.close`."""
        self._request = None
        self._cache = None
        self._weights = None
        trim_heap()


def load_runner(folder: Path, options: RunnerOptions, *, properties: Mapping[str, Any] | None = None) -> OpenVINORunner:
    """Load a genai ONNX folder or an OpenVINO IR folder. Raises `AdapterError`.

    `properties` are OpenVINO's own and win over what the runner chooses.
    """
    described = read_model_folder(folder)
    core = ov.Core()
    check_device(core, options.device)
    paged = read_paged_model(core, described.decoder, options.cache_dir)
    lengths = [length for length in (described.context_length, paged.max_positions) if length]
    if not lengths:
        raise UnsupportedModel(f"{folder}: no config names the context length")
    return OpenVINORunner(
        core, paged, options, context_length=min(lengths), properties={**_properties(options), **(properties or {})}
    )


def _homes(core: Any, paged: PagedModel, device: str, properties: Mapping[str, Any]) -> dict[str, str] | None:
    """Input → the device that computes its layer, where several share the model: its KV blocks have to lie there."""
    if not device.startswith(HETERO):
        return None
    policy = hints.model_distribution_policy()
    found = core.query_model(paged.model, device, {policy: properties[policy]})
    return {each.get_any_name(): found[each.get_node().get_friendly_name()] for each in paged.model.inputs}


def _properties(options: RunnerOptions) -> dict[str, Any]:
    """Measured in docs/openvino-runner.md. Precision stays the device's choice, and so does the KV type unasked."""
    chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.kv_cache_type is not None:
        chosen["KV_CACHE_PRECISION"] = options.kv_cache_type
    if options.device.startswith("CPU"):
        # The event loop and the sampler share the cores: a pinned thread would wait for them at every operator.
        chosen["ENABLE_CPU_PINNING"] = False
        if options.num_threads is not None:
            chosen["INFERENCE_NUM_THREADS"] = options.num_threads
    if options.device.startswith(HETERO):
        # layer by layer, as much on each device as its memory takes; else all goes to the first that can compute it
        chosen[hints.model_distribution_policy()] = {hints.ModelDistributionPolicy.PIPELINE_PARALLEL}
    return chosen
