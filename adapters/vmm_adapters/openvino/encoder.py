"""`Encoder` on the plain OpenVINO runtime: any encoder as transformers exports it to ONNX.

Inputs are `input_ids`, `attention_mask` and, where the graph has them, `token_type_ids` and `position_ids`. Pooling and
normalisation become part of the graph: only rows of `dim` numbers leave the runtime. Everything is computed in float32,
whatever the device would prefer, so that vectors are those of the model's authors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from vmm_adapters.encoding import INPUTS, WARM_LENGTHS, find_graph, pack_inputs, read_pad_id
from vmm_adapters.errors import RuntimeFailed, UnsupportedModel, runtime_errors
from vmm_adapters.heap import give_back, trim_heap
from vmm_adapters.openvino.devices import check_device
from vmm_adapters.types import EncoderInput, EncoderOptions, Pooling


class OpenVINOEncoder:
    """Implements `vmm_adapters.base.Encoder`. Built by `load_encoder`."""

    def __init__(self, core: Any, model: Any, options: EncoderOptions, *, pad_id: int, memory_bytes: int) -> None:
        with runtime_errors(f"compiling for {options.device}", RuntimeError):
            compiled = core.compile_model(model, options.device, _properties(options))
            self._request: Any = compiled.create_infer_request()
        self._types = {port.get_any_name(): port.get_element_type().to_dtype() for port in compiled.inputs}
        self._pad_id = pad_id
        self.dim: int = compiled.output(0).get_partial_shape()[-1].get_length()
        self.max_length = options.max_length
        self.device = options.device
        self.memory_bytes = memory_bytes

    def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        if self._request is None:
            raise RuntimeFailed("the encoder is closed")
        if not inputs:
            return np.empty((0, self.dim), np.float32)
        arrays = pack_inputs(inputs, self._types, pad_id=self._pad_id, max_length=self.max_length)
        with runtime_errors("encoding a batch", RuntimeError):
            for name, array in arrays.items():
                self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self._request.infer()
            rows: NDArray[np.float32] = np.array(self._request.get_output_tensor(0).data, np.float32)
        return rows

    def warm_up(self) -> None:
        """See `Encoder.warm_up`."""
        for count, length in enumerate(WARM_LENGTHS, 1):
            self.encode([EncoderInput([self._pad_id] * min(length, self.max_length))] * count)
        give_back()

    def close(self) -> None:
        """See `Encoder.close`."""
        self._request = None
        trim_heap()


def load_encoder(folder: Path, options: EncoderOptions) -> OpenVINOEncoder:
    """Load an encoder's ONNX folder. Raises `AdapterError`."""
    path = find_graph(folder)
    core = ov.Core()
    check_device(core, options.device)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise UnsupportedModel(f"OpenVINO cannot read {path}: {error}") from error
    weight_bytes = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    with runtime_errors("adding the pooling", RuntimeError):
        pooled = pool(model, options)
    return OpenVINOEncoder(core, pooled, options, pad_id=read_pad_id(folder), memory_bytes=weight_bytes)


def pool(model: Any, options: EncoderOptions) -> Any:
    """The model with one output `[batch, dim]`: pooled hidden states, or the row the graph computes itself.

    Raises `UnsupportedModel` for a graph that has no such output, another input, or a fixed shape.
    """
    inputs = {port.get_any_name(): port for port in model.inputs}
    if "input_ids" not in inputs or not inputs.keys() <= set(INPUTS):
        raise UnsupportedModel(f"the graph's inputs are {', '.join(sorted(inputs))}; an encoder's are expected")
    if any(not port.get_partial_shape()[axis].is_dynamic for port in inputs.values() for axis in (0, 1)):
        raise UnsupportedModel("the graph's inputs have a fixed size", hint="export it with dynamic axes")
    if options.pooling is not None and options.pooling is not Pooling.CLS and "attention_mask" not in inputs:
        raise UnsupportedModel("the graph has no input attention_mask, so padding cannot be left out of the pooling")
    rank = 2 if options.pooling is None else 3
    rows = _output(model, rank)
    if options.pooling is Pooling.MEAN:
        rows = _mean(rows, _mask(inputs))
    elif options.pooling is Pooling.CLS:
        rows = op.gather(rows, op.constant(np.int64(0)), op.constant(np.int64(1)))
    elif options.pooling is Pooling.LAST_TOKEN:
        last = op.reduce_sum(op.convert(inputs["attention_mask"], "i64"), op.constant(np.int64(1)), keep_dims=False)
        last = op.subtract(last, op.constant(np.int64(1)))
        rows = op.gather(rows, last, op.constant(np.int64(1)), batch_dims=1)
    rows = op.convert(rows, "f32")
    if options.normalize:
        rows = _normalized(rows)
    pooled = ov.Model([rows], [port.get_node() for port in model.inputs], "encoder")
    if pooled.output(0).get_partial_shape()[-1].is_dynamic:
        raise UnsupportedModel("the width of the graph's output is not fixed")
    return pooled


def _output(model: Any, rank: int) -> Any:
    """The first output of this rank: the hidden states (3), the pooled row or the logits (2).

    `pooler_output` is what BERT was pretrained with, and no vector of a text.
    """
    for port in model.outputs:
        if port.get_partial_shape().rank.get_length() == rank and "pooler_output" not in port.get_names():
            return port.get_node().input_value(0)
    shapes = ", ".join(f"{port.get_any_name()} {port.get_partial_shape()}" for port in model.outputs)
    raise UnsupportedModel(f"the graph has no output of {rank} dimensions; it has {shapes}")


def _mask(inputs: dict[str, Any]) -> Any:
    """float32 `[batch, length, 1]`: 1 for a token, 0 for padding."""
    return op.unsqueeze(op.convert(inputs["attention_mask"], "f32"), op.constant(np.int64(2)))


def _mean(hidden: Any, mask: Any) -> Any:
    axis = op.constant(np.int64(1))
    total = op.reduce_sum(op.multiply(op.convert(hidden, "f32"), mask), axis, keep_dims=False)
    return op.divide(total, op.reduce_sum(mask, axis, keep_dims=False))


def _normalized(rows: Any) -> Any:
    """Rows over their L2 norm, which counts as 1e-12 at least (torch.nn.functional.normalize)."""
    norm = op.reduce_l2(rows, op.constant(np.int64(1)), keep_dims=True)
    return op.divide(rows, op.maximum(norm, op.constant(np.float32(1e-12))))


def _properties(options: EncoderOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if options.device.startswith("CPU"):
        chosen["ENABLE_CPU_PINNING"] = False  # the event loop shares the cores
        if options.num_threads is not None:
            chosen["INFERENCE_NUM_THREADS"] = options.num_threads
    return chosen
