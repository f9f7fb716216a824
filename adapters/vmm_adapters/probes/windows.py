"""A Windows machine's processors, from its registry and its C interface."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from vmm_adapters.device import DeviceKind
from vmm_adapters.probing.findings import Accelerator, Processor

_CPU_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
_CLASSES = r"SYSTEM\CurrentControlSet\Control\Class"
_DEVICE_CLASSES = {
    "{4d36e968-e325-11ce-bfc1-08002be10318}": DeviceKind.GPU,
    "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}": DeviceKind.NPU,
}
"""Microsoft, "System-defined device setup classes": Display and ComputeAccelerator."""
_CPU_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_PCI_VENDORS = {"10DE": "NVIDIA", "8086": "Intel", "1002": "AMD", "1022": "AMD"}
_FEATURES = {
    "AVX2": "avx2",
    "AVX512F": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512VNNI": "avx512_vnni",
    "NEON": "neon",
    "ASIMDDP": "neon_dotprod",
    "SVE": "sve",
}
"""Names of NumPy → ours."""


class _MemoryStatus(ctypes.Structure):
    """`MEMORYSTATUSEX`."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        *((f"rest_{index}", ctypes.c_uint64) for index in range(5)),
    )


def processor() -> Processor:
    """The processor, as Windows knows it. `OSError` elsewhere."""
    if sys.platform != "win32":
        raise OSError("this is not Windows")
    import winreg

    features = import_module("numpy._core._multiarray_umath").__cpu_features__
    kernel = ctypes.windll.kernel32
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _CPU_KEY) as key:
        model = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        vendor = str(winreg.QueryValueEx(key, "VendorIdentifier")[0])
    memory = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel.GlobalMemoryStatusEx(ctypes.byref(memory))
    size = ctypes.c_uint32(0)
    kernel.GetLogicalProcessorInformationEx(0, None, ctypes.byref(size))
    cores = ctypes.create_string_buffer(size.value)
    kernel.GetLogicalProcessorInformationEx(0, cores, ctypes.byref(size))
    return Processor(
        model=model,
        vendor=_CPU_VENDORS.get(vendor, "Qualcomm" if "Qualcomm" in vendor else "unknown"),
        features=tuple(dict.fromkeys(ours for name, ours in _FEATURES.items() if features.get(name))),
        num_cores=count_records(cores.raw) or None,
        num_threads=os.cpu_count() or 1,
        num_numa_nodes=None,
        memory_total_bytes=memory.total_physical,
        memory_free_bytes=memory.available_physical,
    )


def count_records(buffer: bytes) -> int:
    """How many `SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX` there are, one a core: each begins with its relationship and
    its own size, 32 bits both."""
    count = offset = 0
    while offset + 8 <= len(buffer):
        size = int.from_bytes(buffer[offset + 4 : offset + 8], "little")
        if size < 8:
            break
        count, offset = count + 1, offset + size
    return count


def accelerators() -> tuple[Accelerator, ...]:
    """GPUs and NPUs that have a driver. `OSError` elsewhere."""
    return tuple(
        found
        for name, kind in _DEVICE_CLASSES.items()
        for values in _device_keys(name)
        if (found := read_device(values, kind))
    )


def read_device(values: Mapping[str, Any], kind: DeviceKind) -> Accelerator | None:
    """A device, from the values of its driver's key; `None` for what is no processor, such as a remote display."""
    vendor = re.search(r"ven_(\w{4})", str(values.get("MatchingDeviceId", "")), re.IGNORECASE)
    if vendor is None:
        return None
    maker = "Qualcomm" if vendor[1].upper() == "QCOM" else _PCI_VENDORS.get(vendor[1].upper())
    if maker is None:
        return None
    memory = values.get("HardwareInformation.qwMemorySize")
    if isinstance(memory, bytes):
        memory = int.from_bytes(memory, "little")
    return Accelerator(
        kind=kind,
        vendor=maker,
        name=str(values.get("DriverDesc", f"{maker} {kind.upper()}")),
        memory_total_bytes=memory if isinstance(memory, int) else None,
        driver=str(values["DriverVersion"]) if "DriverVersion" in values else None,
    )


def _device_keys(device_class: str) -> Iterator[dict[str, Any]]:
    if sys.platform != "win32":
        raise OSError("this is not Windows")
    import winreg

    try:
        root = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, f"{_CLASSES}\\{device_class}")
    except FileNotFoundError:
        return
    with root:
        names = [winreg.EnumKey(root, index) for index in range(winreg.QueryInfoKey(root)[0])]
        for name in filter(str.isdigit, names):
            with winreg.OpenKey(root, name) as key:
                yield {
                    field: value
                    for field, value, _ in (winreg.EnumValue(key, at) for at in range(winreg.QueryInfoKey(key)[1]))
                }
