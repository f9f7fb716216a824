"""A source of float weights as one of quantised ones: each piece is quantised when it is read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.gguf_reader import TensorEntry
from vmm_server.models.importers.gguf_weights import as_floats
from vmm_server.models.importers.k_quants import MAX_WEIGHT, quantize_rows
from vmm_server.models.importers.quantization_mix import target_types
from vmm_server.models.importers.weights_source import WeightsSource


class QuantizedWeights:
    """A `WeightsSource` whose matrices have the types that llama.cpp's mix `wanted` gives them."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, TensorEntry]

    def __init__(self, weights: WeightsSource, wanted: LlamaFileType) -> None:
        """`weights` are floats; they stay open for as long as this is read."""
        self._weights = weights
        self.path, self.metadata = weights.path, weights.metadata
        types = target_types({name: tensor.shape for name, tensor in weights.tensors.items()}, wanted)
        self._originals: dict[str, TensorEntry] = {}
        tensors: dict[str, TensorEntry] = {}
        for name, tensor in weights.tensors.items():
            tensors[name] = tensor
            if (kind := types[name]) is not None:
                block_size, block_bytes = GGML_QUANT_SIZES[kind]
                size_bytes = tensor.num_elements // block_size * block_bytes
                tensors[name] = replace(tensor, type=kind, size_bytes=size_bytes)
                self._originals[tensor.name] = tensor
        self.tensors = MappingProxyType(tensors)

    def file_name(self, name: str) -> str:
        """See `WeightsSource`."""
        return self._weights.file_name(name)

    def read_rows(self, tensor: TensorEntry, start: int, stop: int) -> NDArray[np.uint8]:
        """See `WeightsSource`."""
        original = self._originals.get(tensor.name)
        if original is None:
            return self._weights.read_rows(tensor, start, stop)
        floats = as_floats(self._weights.read_rows(original, start, stop), original.type)
        if not (np.abs(floats) <= MAX_WEIGHT).all():  # nor if it is no number
            raise CorruptFile(
                f"{self.path}: tensor {tensor.name!r} has weights that are no numbers, or too large to be quantised"
            )
        return quantize_rows(tensor.type, floats)
