"""`Encoder` on an ONNX Runtime session: pooling and normalisation are numpy's, on what the graph gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.encoding import INPUTS, WARM_LENGTHS, find_graph, pack_inputs, read_pad_id
from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.onnxruntime.session import OrtSession, load_session
from vmm_adapters.types import EncoderInput, EncoderOptions, Pooling, SessionOptions, TensorSpec

Array = NDArray[Any]


class OrtEncoder:
    """Implements `vmm_adapters.base.Encoder`. Built by `load_encoder`."""

    def __init__(self, session: OrtSession, options: EncoderOptions, *, pad_id: int) -> None:
        self._session = session
        self._options = options
        self._pad_id = pad_id
        self._types = {spec.name: spec.dtype for spec in session.inputs}
        self._output = _choose_output(session.outputs, rank=2 if options.pooling is None else 3)
        _check_inputs(session.inputs, options)
        width = self._output.shape[-1]
        if not isinstance(width, int):
            raise UnsupportedModel("the width of the graph's output is not fixed")
        self.dim = width
        self.max_length = options.max_length
        self.device = session.device
        self.memory_bytes = session.memory_bytes

    def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        if not inputs:
            return np.empty((0, self.dim), np.float32)
        arrays = pack_inputs(inputs, self._types, pad_id=self._pad_id, max_length=self.max_length)
        found = self._session.run(arrays)[self._output.name]
        rows = found if self._options.pooling is None else pool(found, arrays, self._options.pooling)
        rows = rows.astype(np.float32, copy=False)
        return normalized(rows) if self._options.normalize else rows

    def warm_up(self) -> None:
        """See `Encoder.warm_up`."""
        for count, length in enumerate(WARM_LENGTHS, 1):
            self.encode([EncoderInput([self._pad_id] * min(length, self.max_length))] * count)

    def close(self) -> None:
        """See `Encoder.close`."""
        self._session.close()


def load_encoder(folder: Path, options: EncoderOptions) -> OrtEncoder:
    """Load an encoder's ONNX folder, computed in float32 where the device lets one choose. Raises `AdapterError`."""
    pad_id = read_pad_id(folder)
    chosen = SessionOptions(
        device=options.device,
        precision="f32",
        num_threads=options.num_threads,
        cache_dir=options.cache_dir,
        allow_fallback=False,
    )
    session = load_session(find_graph(folder), chosen)
    try:
        return OrtEncoder(session, options, pad_id=pad_id)
    except UnsupportedModel:
        session.close()
        raise


def pool(hidden: Array, arrays: Mapping[str, Array], pooling: Pooling) -> Array:
    """`[batch, dim]` of hidden states `[batch, length, dim]`; padding counts for nothing."""
    pooled: Array
    if pooling is Pooling.CLS:
        pooled = hidden[:, 0]
    elif pooling is Pooling.LAST_TOKEN:
        pooled = hidden[np.arange(len(hidden)), arrays["attention_mask"].sum(1) - 1]
    else:
        mask = arrays["attention_mask"].astype(np.float32)
        pooled = np.einsum("bld,bl->bd", hidden.astype(np.float32, copy=False), mask) / mask.sum(1, keepdims=True)
    return pooled


def normalized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows over their L2 norm, which counts as 1e-12 at least (torch.nn.functional.normalize)."""
    norms: NDArray[np.float32] = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return rows / norms


def _choose_output(outputs: Sequence[TensorSpec], rank: int) -> TensorSpec:
    """The first of this rank: hidden states (3), a row (2). BERT's `pooler_output` is no vector of a text."""
    for spec in outputs:
        if len(spec.shape) == rank and spec.name != "pooler_output":
            return spec
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    raise UnsupportedModel(f"the graph has no output of {rank} dimensions; it has {shapes}")


def _check_inputs(inputs: Sequence[TensorSpec], options: EncoderOptions) -> None:
    names = [spec.name for spec in inputs]
    if INPUTS[0] not in names or not set(names) <= set(INPUTS):
        raise UnsupportedModel(f"the graph's inputs are {', '.join(sorted(names))}; an encoder's are expected")
    if any(isinstance(size, int) for spec in inputs for size in spec.shape[:2]):
        raise UnsupportedModel("the graph's inputs have a fixed size", hint="export it with dynamic axes")
    if options.pooling not in (None, Pooling.CLS) and "attention_mask" not in names:
        raise UnsupportedModel("the graph has no input attention_mask, so padding cannot be left out of the pooling")
