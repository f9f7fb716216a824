"""GPUs and NPUs on a Linux machine's PCI bus, from `/sys` below a root folder, with or without a driver."""

from pathlib import Path

from vmm_adapters.device import DeviceKind
from vmm_adapters.probes.files import read_text
from vmm_adapters.probing.findings import Accelerator

_DISPLAY, _COPROCESSOR = 0x03, 0x12
"""Base classes (PCI Code and ID Assignment Specification)."""
_VENDORS = {0x8086: "Intel", 0x10DE: "NVIDIA", 0x1002: "AMD", 0x1022: "AMD"}
_NAME_LISTS = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")
_NPU_DRIVERS = {"intel_vpu", "amdxdna"}
"""AMD's NPUs call themselves signal processors, as much else does: their driver tells them."""


def read_accelerators(root: Path) -> tuple[Accelerator, ...]:
    """In the order of their addresses. Cards of other makers, such as a server's own display, are left out."""
    found = (_read(root, folder) for folder in sorted((root / "sys/bus/pci/devices").glob("*")))
    return tuple(each for each in found if each is not None)


def _read(root: Path, folder: Path) -> Accelerator | None:
    device_class, vendor_id = _hex(folder / "class") >> 16, _hex(folder / "vendor")
    vendor = _VENDORS.get(vendor_id)
    driver = (folder / "driver").resolve().name if (folder / "driver").exists() else ""
    kind = _kind(device_class, vendor, driver)
    if vendor is None or kind is None:
        return None
    total, used = _number(folder / "mem_info_vram_total"), _number(folder / "mem_info_vram_used")
    version = read_text(root / f"sys/module/{driver}/version").strip() if driver else ""
    return Accelerator(
        kind=kind,
        vendor=vendor,
        name=_name(root, vendor, vendor_id, _hex(folder / "device"), kind),
        address=folder.name,
        memory_total_bytes=total,
        memory_free_bytes=None if total is None or used is None else total - used,
        driver=version or None,
    )


def _kind(device_class: int, vendor: str | None, driver: str) -> DeviceKind | None:
    if device_class == _DISPLAY:
        return DeviceKind.GPU
    if driver in _NPU_DRIVERS or (device_class == _COPROCESSOR and vendor == "Intel"):
        return DeviceKind.NPU
    return DeviceKind.GPU if device_class == _COPROCESSOR and vendor == "AMD" else None  # Instinct


def _name(root: Path, vendor: str, vendor_id: int, device_id: int, kind: DeviceKind) -> str:
    """From the system's list of PCI names, if it has one: vendors at the margin, their devices indented by a tab."""
    for path in _NAME_LISTS:
        _, _, below = read_text(root / path).partition(f"\n{vendor_id:04x}  ")
        for line in below.splitlines()[1:]:
            if line and not line.startswith(("\t", "#")):
                break
            if line.startswith(f"\t{device_id:04x}  "):
                return f"{vendor} {line[7:]}"
    return f"{vendor} {kind.upper()} ({vendor_id:04x}:{device_id:04x})"


def _hex(path: Path) -> int:
    text = read_text(path).strip()
    return int(text, 16) if text else 0


def _number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None
