"""`Session` on ONNX Runtime: the first provider of the device's chain that takes the model.

ONNX Runtime by itself would pass over a provider that cannot be made and say so on standard output only; here each is
tried alone, before the CPU, and the session says which one it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vmm_adapters.errors import AdapterError, RuntimeFailed, UnsupportedModel, runtime_errors
from vmm_adapters.feeds import check_feeds
from vmm_adapters.onnxruntime.failures import ort_errors
from vmm_adapters.onnxruntime.plugins import register_plugins
from vmm_adapters.onnxruntime.providers import Provider, chain
from vmm_adapters.types import SessionOptions, TensorSpec

CPU_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class OrtSession:
    """Implements `vmm_adapters.base.Session`. Built by `load_session`."""

    def __init__(self, session: Any, *, device: str, memory_bytes: int) -> None:
        self._session: Any = session
        self.inputs = tuple(_spec(each) for each in session.get_inputs())
        self.outputs = tuple(_spec(each) for each in session.get_outputs())
        self.provider: str = session.get_providers()[0]
        self.device = device
        self.memory_bytes = memory_bytes

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        if self._session is None:
            raise RuntimeFailed("the session is closed")
        check_feeds(self.inputs, feeds)
        with ort_errors(f"running on {self.provider}"):
            found = self._session.run(None, {name: np.asarray(array, order="C") for name, array in feeds.items()})
        return {spec.name: array for spec, array in zip(self.outputs, found, strict=True)}

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


def load_session(path: Path, options: SessionOptions) -> OrtSession:
    """Load an ONNX file on the first provider of its device's chain that is here and takes it.

    Raises `UnsupportedModel` for a file that even the CPU cannot run, `RuntimeFailed` with every provider's reason when
    the device cannot and `allow_fallback` is off.
    """
    if not path.is_file():
        raise UnsupportedModel(f"{path}: there is no such file")
    register_plugins(ort)
    if options.cache_dir is not None:
        with runtime_errors("making the folder for compiled engines", OSError):
            options.cache_dir.mkdir(parents=True, exist_ok=True)
    providers = chain(options.device, options.computed_in, options.cache_dir, options.num_threads)
    is_for_cpu = options.device.upper().startswith("CPU")
    reasons: list[str] = []
    for provider in providers:
        on_cpu = is_for_cpu or provider.name == CPU_PROVIDER
        if on_cpu and not (is_for_cpu or options.allow_fallback):
            continue
        try:
            session = _open(path, provider, options)
        except UnsupportedModel as error:
            if provider.name == CPU_PROVIDER:
                raise
            reasons.append(f"{provider.name}: {error.message}")
        except AdapterError as error:
            reasons.append(f"{provider.name}: {error.message}")
        else:
            weight_bytes = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
            return OrtSession(session, device="CPU" if on_cpu else options.device, memory_bytes=weight_bytes)
    raise RuntimeFailed(f"{options.device} cannot run {path.name}: {'; '.join(reasons)}", hint="vmm doctor tells more")


def _open(path: Path, provider: Provider, options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if options.num_threads is not None:
        settings.intra_op_num_threads = options.num_threads
    with ort_errors(f"loading {path.name}"):
        if provider.name in ort.get_available_providers():
            named = [(provider.name, dict(provider.options))]
            session = ort.InferenceSession(path, settings, providers=named, enable_fallback=0)
        else:
            settings.add_provider_for_devices(_plugin_devices(provider, options), dict(provider.options))
            session = ort.InferenceSession(path, settings)
    if session.get_providers()[0] != provider.name:
        raise RuntimeFailed(f"it was passed over for {session.get_providers()[0]}")
    return session


def _plugin_devices(provider: Provider, options: SessionOptions) -> list[Any]:
    """The plug-in's device that is meant. Raises `RuntimeFailed` when there is no such provider or device here."""
    listed = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else []
    mine = [each for each in listed if each.ep_name == provider.name]
    if not mine:
        raise RuntimeFailed("not installed")
    family, _, index = options.device.upper().partition(".")
    kind = family if family in ("CPU", "NPU") else "GPU"
    fitting = [each for each in mine if each.device.type.name == kind]
    if int(index or 0) >= len(fitting):
        raise RuntimeFailed(f"it has no device {options.device}")
    return [fitting[int(index or 0)]]


def _spec(argument: Any) -> TensorSpec:
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise UnsupportedModel(f"{argument.name!r} is {argument.type}, which numpy has no array of")
    return TensorSpec(argument.name, np.dtype(dtype), tuple(argument.shape))
