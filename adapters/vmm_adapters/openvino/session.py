"""`Session` on the plain OpenVINO runtime: an ONNX file or an IR, on any device it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from vmm_adapters.errors import RuntimeFailed, UnsupportedModel, runtime_errors
from vmm_adapters.feeds import check_feeds
from vmm_adapters.heap import trim_heap
from vmm_adapters.openvino.devices import check_device
from vmm_adapters.types import Precision, SessionOptions, TensorSpec

_CARRIED_IN = {"bf16": ov.Type.bf16, "f16": ov.Type.f16}
_AS_NUMPY = {ov.Type.bf16: np.dtype(np.uint16)}
"""Types that numpy lacks, by their bits."""


class OpenVINOSession:
    """Implements `vmm_adapters.base.Session`. Built by `load_session`."""

    provider = "OpenVINO"

    def __init__(self, compiled: Any, *, device: str, memory_bytes: int) -> None:
        with runtime_errors("making a request", RuntimeError):
            self._request: Any = compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._types = {_name(port): port.get_element_type() for port in compiled.inputs}
        self.device = device
        self.memory_bytes = memory_bytes

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        if self._request is None:
            raise RuntimeFailed("the session is closed")
        check_feeds(self.inputs, feeds)
        # looked at where they lie; only what could not be written to is copied, as OpenVINO has no other view of it
        arrays = {name: np.require(array, requirements=("C", "W")) for name, array in feeds.items()}
        with runtime_errors(f"running on {self.device}", RuntimeError):
            for name, array in arrays.items():
                self._request.set_tensor(name, _tensor(array, self._types[name]))
            self._request.infer()
            return {
                spec.name: np.array(self._request.get_tensor(spec.name).data).view(spec.dtype) for spec in self.outputs
            }

    def close(self) -> None:
        """See `Session.close`."""
        self._request = None
        trim_heap()


def load_session(path: Path, options: SessionOptions) -> OpenVINOSession:
    """Load an ONNX file, or the `.xml` of an IR. Raises `AdapterError`."""
    core = ov.Core()
    check_device(core, options.device)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise UnsupportedModel(f"OpenVINO cannot read {path}: {error}") from error
    weights = {*path.parent.glob(f"{path.name}*"), *path.parent.glob(f"{path.stem}.bin")}
    weight_bytes = sum(each.stat().st_size for each in weights)
    precision = _precision(core, options)
    with runtime_errors(f"compiling {path.name} for {options.device}", RuntimeError):
        model = _carrying(model, options.carried, precision)
        compiled = core.compile_model(model, options.device, _properties(options, precision))
    return OpenVINOSession(compiled, device=options.device, memory_bytes=weight_bytes)


def _carrying(model: Any, carried: tuple[str, ...], precision: Precision) -> Any:
    """The model with what is `carried` given and taken in what it is computed in: turning it into float32 and back
    again, in each run, may take longer than the run."""
    chosen = _CARRIED_IN.get(precision)
    if chosen is None or not carried:
        return model
    changed = PrePostProcessor(model)
    for ports, tensors in ((model.inputs, changed.input), (model.outputs, changed.output)):
        for port in ports:
            if _name(port).startswith(carried) and port.get_element_type() == ov.Type.f32:
                tensors(port.get_any_name()).tensor().set_element_type(chosen)
    return changed.build()


def _precision(core: Any, options: SessionOptions) -> Precision:
    """What is asked for; f32 on a processor without instructions for bf16, where it is slower."""
    if options.computed_in == "bf16" and options.device.startswith("CPU"):
        with runtime_errors("asking for the processor's abilities", RuntimeError):
            return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    return options.computed_in


def _properties(options: SessionOptions, precision: Precision) -> dict[str, Any]:
    chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if options.cache_dir is not None:
        # OpenVINO 2026.4 takes what was compiled for one precision for another, and crashes
        chosen["CACHE_DIR"] = str(options.cache_dir / precision)
    if options.device.startswith("CPU"):
        chosen["ENABLE_CPU_PINNING"] = False  # the event loop shares the cores
        if options.num_threads is not None:
            chosen["INFERENCE_NUM_THREADS"] = options.num_threads
    return chosen


def _spec(port: Any) -> TensorSpec:
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    element_type = port.get_element_type()
    dtype = _AS_NUMPY.get(element_type) or np.dtype(element_type.to_dtype())
    return TensorSpec(_name(port), dtype, sizes)


def _tensor(array: NDArray[Any], element_type: Any) -> Any:
    """The array as OpenVINO sees it, where it lies; of no elements it has no such view."""
    if element_type in _AS_NUMPY:
        return ov.Tensor(array, array.shape, element_type) if array.size else ov.Tensor(element_type, array.shape)
    return ov.Tensor(array, shared_memory=bool(array.size))


def _name(port: Any) -> str:
    """The model's own: a tensor that is an output, or an input, by way of an `Identity` has several."""
    own: str = port.get_node().get_friendly_name().split("/sink_port_")[0]
    return own if own in port.get_names() else str(port.get_any_name())
