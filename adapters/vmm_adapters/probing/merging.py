"""What several witnesses say of the same hardware becomes one device. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vmm_adapters.device import Device, DeviceKind
from vmm_adapters.probing.findings import Accelerator, Findings, Processor
from vmm_adapters.probing.uses import cpu_uses, uses

Witness = Literal["system", "nvidia", "openvino"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator, and what is said of it."""

    system: Accelerator | None = None
    nvidia: Accelerator | None = None
    openvino: Accelerator | None = None

    @property
    def accounts(self) -> tuple[Accelerator, ...]:
        """The best informed first."""
        return tuple(each for each in (self.nvidia, self.openvino, self.system) if each is not None)

    @property
    def kind(self) -> DeviceKind:
        """GPU or NPU."""
        return self.accounts[0].kind

    @property
    def vendor(self) -> str:
        """Its maker."""
        return self.accounts[0].vendor

    @property
    def address(self) -> str | None:
        """On the PCI bus."""
        return next((each.address for each in self.accounts if each.address), None)


def merge(findings: Findings) -> tuple[Device, ...]:
    """The devices, the CPU first, then as the runtimes number them."""
    processor = findings.processor
    found = [Hardware(system=each) for each in (findings.system.accelerators if findings.system else ())]
    found = _joined(found, findings.nvidia.accelerators if findings.nvidia else (), "nvidia")
    found = _joined(found, findings.openvino.accelerators if findings.openvino else (), "openvino")
    named = sorted(_named(found, findings.platform), key=lambda pair: (pair[1].kind, pair[0]))
    return _cpu(findings), *(_device(name, hardware, processor, findings) for name, hardware in named)


def _joined(found: Sequence[Hardware], accounts: Iterable[Accelerator], witness: Witness) -> list[Hardware]:
    """With what a witness says: by address; where somebody gives none, the next of that maker; else it is news."""
    joined = list(found)
    for account in sorted(accounts, key=lambda each: each.address is None):
        free = [
            at
            for at, each in enumerate(joined)
            if (each.kind, each.vendor) == (account.kind, account.vendor) and getattr(each, witness) is None
        ]
        same = [at for at in free if account.address and joined[at].address == account.address]
        unsure = [at for at in free if not account.address or not joined[at].address]
        if same or unsure:
            at = (same or unsure)[0]
            joined[at] = _with(joined[at], witness, account)
        else:
            joined.append(_with(Hardware(), witness, account))
    return joined


def _with(hardware: Hardware, witness: Witness, account: Accelerator) -> Hardware:
    match witness:
        case "system":
            return replace(hardware, system=account)
        case "nvidia":
            return replace(hardware, nvidia=account)
        case "openvino":
            return replace(hardware, openvino=account)


def _named(found: Iterable[Hardware], platform: str) -> list[tuple[str, Hardware]]:
    """Names: those that a runtime's number gives; what has none gets the next that is free."""
    named: dict[str, Hardware] = {}
    for hardware in sorted(found, key=lambda each: each.nvidia is None and each.openvino is None):
        name = _numbered(hardware)
        if name is None or name in named:
            family = _family(hardware, platform)
            names = (
                family if family == "NPU" and not number else f"{family}.{number}" for number in range(len(named) + 1)
            )
            name = next(name for name in names if name not in named)
        named[name] = hardware
    return list(named.items())


def _numbered(hardware: Hardware) -> str | None:
    if hardware.nvidia is not None:
        return f"CUDA.{hardware.nvidia.number}"
    if hardware.openvino is not None:
        number = hardware.openvino.number
        return "GPU.0" if number == "GPU" else number
    return None


def _family(hardware: Hardware, platform: str) -> str:
    if hardware.kind is DeviceKind.NPU:
        return "NPU"
    if platform == "darwin":
        return "METAL"
    families = {"Intel": "GPU", "NVIDIA": "CUDA", "AMD": "ROCM" if platform == "linux" else "DML"}
    return families.get(hardware.vendor, "DML")


def _cpu(findings: Findings) -> Device:
    """There is always one, even where nobody tells what it is."""
    processor = findings.processor or Processor("unknown", "unknown", (), None, 1, None, None, None)
    return Device(
        name="CPU",
        kind=DeviceKind.CPU,
        vendor=processor.vendor,
        description=processor.model,
        memory_total_bytes=processor.memory_total_bytes,
        memory_free_bytes=processor.memory_free_bytes,
        num_cores=processor.num_cores,
        num_threads=processor.num_threads if findings.processor else None,
        num_numa_nodes=processor.num_numa_nodes,
        features=processor.features,
        uses=cpu_uses(findings),
    )


def _device(name: str, hardware: Hardware, processor: Processor | None, findings: Findings) -> Device:
    accounts = hardware.accounts
    total = next((each.memory_total_bytes for each in accounts if each.memory_total_bytes), None)
    free = next((each.memory_free_bytes for each in accounts if each.memory_free_bytes is not None), None)
    if processor is not None and any(each.shares_memory for each in accounts):
        total, free = total or processor.memory_total_bytes, processor.memory_free_bytes
    return Device(
        name=name,
        kind=hardware.kind,
        vendor=hardware.vendor,
        description=accounts[0].name,
        memory_total_bytes=total,
        memory_free_bytes=free,
        driver=next((each.driver for each in accounts if each.driver), None),
        uses=uses(name, hardware, findings),
    )
