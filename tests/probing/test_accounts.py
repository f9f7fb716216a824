"""What drivers, buses and registries say of GPUs and NPUs, as it was written down."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmm_adapters.device import DeviceKind
from vmm_adapters.probes import apple, linux_pci, nvidia, windows
from vmm_adapters.probes.openvino import read_core

DATA = Path(__file__).parents[1] / "data" / "probes"
PCI = "sys/bus/pci/devices"
PCI_IDS = (
    "# names\n1002  Advanced Micro Devices, Inc. [AMD/ATI]\n\t744c  Navi 31 [Radeon RX 7900 XTX]\n"
    "8086  Intel Corporation\n\t56a0  DG2 [Arc A770]\n\t\t8086 1020  Arc A770 Limited\nffff  Illegal Vendor ID\n"
)


@pytest.fixture
def pci(tmp_path: Path) -> Callable[..., Path]:
    """Writes a device's files: address, class, vendor, device, driver, and more of its folder."""

    def write(address: str, device_class: str, vendor: str, device: str, driver: str = "", **files: str) -> Path:
        folder = tmp_path / PCI / address
        folder.mkdir(parents=True)
        for name, text in {"class": device_class, "vendor": vendor, "device": device, **files}.items():
            (folder / name).write_text(f"{text}\n")
        if driver:
            target = tmp_path / "sys/bus/pci/drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(target)
        return tmp_path

    return write


def test_processors_on_the_bus_are_told_from_what_else_is_there(pci: Callable[..., Path]) -> None:
    pci("0000:00:02.0", "0x030000", "0x8086", "0x56a0", "i915")
    pci("0000:00:0b.0", "0x120000", "0x8086", "0x7d1d", "intel_vpu")
    pci("0000:00:1f.3", "0x040300", "0x8086", "0x7a50")  # sound
    pci("0000:02:00.0", "0x030000", "0x1a03", "0x2000")  # a server's own display
    vram = {"mem_info_vram_total": "1000", "mem_info_vram_used": "300"}
    pci("0000:03:00.0", "0x030000", "0x1002", "0x744c", "amdgpu", **vram)
    pci("0000:04:00.1", "0x118000", "0x1022", "0x17f0", "amdxdna")
    pci("0000:05:00.0", "0x118000", "0x1022", "0x1234")  # no NPU, as far as anybody knows
    pci("0000:c1:00.0", "0x120000", "0x1002", "0x74a1", "amdgpu")
    root = pci("0000:e1:00.0", "0x030200", "0x10de", "0x2330")
    names = root / "usr/share/misc/pci.ids"
    names.parent.mkdir(parents=True)
    names.write_text(PCI_IDS)
    version = root / "sys/module/amdgpu/version"
    version.parent.mkdir(parents=True)
    version.write_text("6.8.5\n")
    found = linux_pci.read_accelerators(root)
    assert [(each.address, each.kind, each.name, each.driver) for each in found] == [
        ("0000:00:02.0", DeviceKind.GPU, "Intel DG2 [Arc A770]", None),
        ("0000:00:0b.0", DeviceKind.NPU, "Intel NPU (8086:7d1d)", None),
        ("0000:03:00.0", DeviceKind.GPU, "AMD Navi 31 [Radeon RX 7900 XTX]", "6.8.5"),
        ("0000:04:00.1", DeviceKind.NPU, "AMD NPU (1022:17f0)", None),
        ("0000:c1:00.0", DeviceKind.GPU, "AMD GPU (1002:74a1)", "6.8.5"),
        ("0000:e1:00.0", DeviceKind.GPU, "NVIDIA GPU (10de:2330)", None),
    ]
    assert (found[2].memory_total_bytes, found[2].memory_free_bytes) == (1000, 700)


def test_a_machine_without_a_bus_has_none(tmp_path: Path) -> None:
    assert linux_pci.read_accelerators(tmp_path) == ()


def test_nvidias_table_is_read() -> None:
    first, second, shared = nvidia.read_table((DATA / "nvidia_smi.csv").read_text())
    assert (first.name, first.address, first.driver) == ("NVIDIA GeForce RTX 4090", "0000:01:00.0", "550.54.14")
    assert (first.memory_total_bytes, first.memory_free_bytes) == (24564 << 20, 23010 << 20)
    assert second.address == "0000:41:00.0"
    assert (shared.address, shared.memory_total_bytes, shared.shares_memory) == ("000f:01:00.0", None, True)
    assert nvidia.read_table("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (None, ["4090", "A2000", "GB10"]),
        ("", []),
        ("1", ["A2000"]),
        ("2, 0", ["GB10", "4090"]),
        ("0,-1,1", ["4090"]),
        ("GPU-77d0", ["A2000"]),
        ("9", []),
    ],
)
def test_cuda_counts_what_it_shows(wanted: str | None, shown: list[str]) -> None:
    gpus = nvidia.visible(nvidia.read_table((DATA / "nvidia_smi.csv").read_text()), wanted)
    assert [gpu.number for gpu in gpus] == [str(number) for number in range(len(shown))]
    assert all(name in gpu.name for name, gpu in zip(shown, gpus, strict=True))


def test_a_mac_tells_its_gpus() -> None:
    (found,) = apple.read_displays((DATA / "apple_displays.json").read_text())
    assert (found.vendor, found.name, found.shares_memory) == ("Apple", "Apple M2", True)
    assert apple.read_displays("{}") == ()


def test_the_registry_of_windows_tells_gpus_and_their_memory() -> None:
    values: dict[str, Any] = {
        "DriverDesc": "AMD Radeon RX 7900 XTX",
        "DriverVersion": "32.0.12019.1028",
        "MatchingDeviceId": r"PCI\VEN_1002&DEV_744C&REV_C8",
        "HardwareInformation.qwMemorySize": 25753026560,
    }
    found = windows.read_device(values, DeviceKind.GPU)
    assert found is not None
    assert (found.vendor, found.name, found.driver) == ("AMD", "AMD Radeon RX 7900 XTX", "32.0.12019.1028")
    assert found.memory_total_bytes == 25753026560
    as_bytes = {**values, "HardwareInformation.qwMemorySize": (4 << 30).to_bytes(8, "little")}
    small = windows.read_device(as_bytes, DeviceKind.GPU)
    assert small is not None
    assert small.memory_total_bytes == 4 << 30
    qualcomm = windows.read_device({"MatchingDeviceId": r"ACPI\VEN_QCOM&DEV_0C36"}, DeviceKind.NPU)
    assert qualcomm is not None
    assert (qualcomm.vendor, qualcomm.name) == ("Qualcomm", "Qualcomm NPU")
    remote = {"MatchingDeviceId": r"ROOT\BasicDisplay", "DriverDesc": "Microsoft Basic Display Adapter"}
    assert windows.read_device(remote, DeviceKind.GPU) is None
    assert windows.read_device({}, DeviceKind.GPU) is None


def test_openvino_tells_what_it_lists_and_what_a_driver_keeps_for_itself_is_unknown() -> None:
    place = SimpleNamespace(domain=0, bus=3, device=0, function=0)
    properties: dict[tuple[str, str], Any] = {
        ("GPU.0", "FULL_DEVICE_NAME"): "Intel(R) Graphics (iGPU)",
        ("GPU.1", "FULL_DEVICE_NAME"): "Intel(R) Arc(TM) A770 Graphics (dGPU)",
        ("GPU.1", "GPU_DEVICE_TOTAL_MEM_SIZE"): 16 << 30,
        ("GPU.1", "DEVICE_PCI_INFO"): place,
        ("NPU", "FULL_DEVICE_NAME"): "Intel(R) AI Boost",
        ("NPU", "NPU_DRIVER_VERSION"): 1747000000,
    }

    def get_property(device: str, name: str) -> Any:
        try:
            return properties[device, name]
        except KeyError:
            raise (TypeError if name == "DEVICE_PCI_INFO" else RuntimeError)(name) from None

    found = read_core(["CPU", "GPU.0", "GPU.1", "NPU", "HETERO"], get_property)
    assert found.has_cpu
    igpu, dgpu, npu = found.accelerators
    assert (igpu.number, igpu.shares_memory, igpu.address, igpu.memory_total_bytes) == ("GPU.0", True, None, None)
    assert (dgpu.shares_memory, dgpu.address, dgpu.memory_total_bytes) == (False, "0000:03:00.0", 16 << 30)
    assert (npu.kind, npu.driver, npu.name) == (DeviceKind.NPU, "1747000000", "Intel(R) AI Boost")
    assert not read_core([], get_property).has_cpu
