"""A package that plugs a provider into ONNX Runtime, such as onnxruntime-ep-webgpu: which devices it takes.

Such a package tells where its library is with `get_library_path()` (ONNX Runtime, "Plugin Execution Provider Library
Packaging Guidance").
"""

import sys
from importlib import import_module
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vmm_adapters.device import DeviceKind
from vmm_adapters.probes.answering import answer
from vmm_adapters.probes.onnxruntime_session import tiny_model
from vmm_adapters.probing.findings import PlugIn, PlugInDevice

_ERRORS = tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
"""What ONNX Runtime's statuses are translated to: they have no base of their own."""
_VENDORS = {0x8086: "Intel", 0x10DE: "NVIDIA", 0x1002: "AMD", 0x1022: "AMD", 0x106B: "Apple", 0x5143: "Qualcomm"}


def ask(module: str) -> PlugIn:
    """Register the library of a package and start a session on each device that is new by it."""
    before = {device.ep_name for device in onnxruntime.get_ep_devices()}
    onnxruntime.register_execution_provider_library(module, str(import_module(module).get_library_path()))
    new = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name not in before and "." not in device.ep_name  # `….AUTO` chooses among devices; it is none
    ]
    return PlugIn(module, tuple(_read(device) for device in new))


def _read(device: Any) -> PlugInDevice:
    hardware = device.device
    return PlugInDevice(
        provider=device.ep_name,
        kind=DeviceKind(str(hardware.type).rpartition(".")[2].lower()),
        vendor=_VENDORS.get(hardware.vendor_id, "unknown"),
        address=dict(hardware.metadata).get("pci_bus_id"),
        reason=_reason(device),
    )


def _reason(device: Any) -> str | None:
    options = onnxruntime.SessionOptions()
    try:
        options.add_provider_for_devices([device], {})
        onnxruntime.InferenceSession(tiny_model(), sess_options=options)
    except _ERRORS as error:
        return " ".join(str(error).split())[:300]
    return None


if __name__ == "__main__":
    answer(lambda: ask(sys.argv[1]))
