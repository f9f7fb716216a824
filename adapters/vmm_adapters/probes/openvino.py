"""What OpenVINO lists: the CPU, Intel's GPUs and NPUs."""

from collections.abc import Callable
from typing import Any

import openvino as ov

from vmm_adapters.device import DeviceKind
from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import Accelerator, OpenVINOCore

_MEMORY = {DeviceKind.GPU: "GPU_DEVICE_TOTAL_MEM_SIZE", DeviceKind.NPU: "NPU_DEVICE_TOTAL_MEM_SIZE"}
_DRIVER = {DeviceKind.GPU: "GPU_DRIVER_VERSION", DeviceKind.NPU: "NPU_DRIVER_VERSION"}


def ask() -> OpenVINOCore:
    """Ask a core for its devices and what they are."""
    core = ov.Core()
    return read_core(core.available_devices, core.get_property)


def read_core(names: list[str], get_property: Callable[[str, str], Any]) -> OpenVINOCore:
    """`get_property(device, property)` raises `RuntimeError` for what a device or its driver does not tell."""

    def get(device: str, name: str) -> Any:
        try:
            return get_property(device, name)
        except (RuntimeError, TypeError):  # TypeError: a value that the binding has no type for
            return None

    return OpenVINOCore(
        "CPU" in names,
        tuple(
            _read(name, DeviceKind.GPU if name.startswith("GPU") else DeviceKind.NPU, get)
            for name in names
            if name.startswith(("GPU", "NPU"))
        ),
    )


def _read(name: str, kind: DeviceKind, get: Callable[[str, str], Any]) -> Accelerator:
    full_name, memory, driver = get(name, "FULL_DEVICE_NAME"), get(name, _MEMORY[kind]), get(name, _DRIVER[kind])
    description = str(full_name or name)
    return Accelerator(
        kind=kind,
        vendor="Intel",
        name=description,
        number=name,
        address=_address(get(name, "DEVICE_PCI_INFO")),
        memory_total_bytes=int(memory) if memory else None,
        driver=str(driver) if driver else None,
        shares_memory="(iGPU)" in description or kind is DeviceKind.NPU,
    )


def _address(place: Any) -> str | None:
    """`0000:03:00.0`, where this build of the binding has a type for the place."""
    try:
        return f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.{place.function:x}"
    except AttributeError:
        return None


if __name__ == "__main__":
    answer(ask)
