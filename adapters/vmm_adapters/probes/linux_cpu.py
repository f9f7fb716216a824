"""A Linux machine's CPU, from `/proc` and `/sys` below a root folder."""

from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path

from vmm_adapters.probes.control_groups import cpu_quota, memory_limit
from vmm_adapters.probes.files import read_text
from vmm_adapters.probing.findings import Processor

X86_FEATURES = (
    *("avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_fp16"),
)
"""Flags of `/proc/cpuinfo`, under the names that Linux gives them."""
ARM_FEATURES = {
    "asimd": "neon",
    "asimddp": "neon_dotprod",
    "asimdhp": "neon_fp16",
    "bf16": "neon_bf16",
    "i8mm": "neon_i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
"""Features of `/proc/cpuinfo` on Arm → our names (Linux, Documentation/arch/arm64/elf_hwcaps.rst)."""

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon"}
_ARM_VENDORS = {0x41: "Arm", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x51: "Qualcomm", 0x61: "Apple", 0xC0: "Ampere"}
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4F): "Neoverse V2",
    (0xC0, 0xAC3): "AmpereOne",
}
"""`CPU implementer`, `CPU part` → name (Linux, arch/arm64/include/asm/cputype.h)."""


def read_processor(root: Path, threads: frozenset[int]) -> Processor:
    """What there is below `root` (`/`), of which the process may run on the logical CPUs `threads`."""
    blocks = list(_blocks(read_text(root / "proc/cpuinfo")))
    first = blocks[0] if blocks else {}
    quota = cpu_quota(root)
    num_threads = max(1, len(threads)) if quota is None else max(1, min(len(threads), ceil(quota)))
    cores = _num_cores(root, threads)
    total, free = _memory(root)
    model, vendor = _identity(first)
    return Processor(
        model=model,
        vendor=vendor,
        features=_features(first),
        num_cores=None if cores is None else min(cores, num_threads),
        num_threads=num_threads,
        num_numa_nodes=_num_numa_nodes(root, threads),
        memory_total_bytes=total,
        memory_free_bytes=free,
    )


def parse_list(text: str) -> frozenset[int]:
    """The kernel's way of writing sets of CPUs and nodes: `0-3,8`."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """One for each logical CPU."""
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        if found := {key.strip(): value.strip() for key, _, value in pairs}:
            yield found


def _identity(block: dict[str, str]) -> tuple[str, str]:
    """Model and vendor."""
    if "CPU implementer" in block:
        maker, part = int(block["CPU implementer"], 16), int(block.get("CPU part", "0"), 16)
        vendor = _ARM_VENDORS.get(maker, "unknown")
        name = _ARM_PARTS.get((maker, part), f"CPU (implementer {maker:#x}, part {part:#x})")
        return block.get("model name", f"{vendor} {name}" if vendor != "unknown" else name), vendor
    return block.get("model name", "unknown"), _VENDORS.get(block.get("vendor_id", ""), "unknown")


def _features(block: dict[str, str]) -> tuple[str, ...]:
    flags = frozenset(block.get("flags", "").split())
    arm = frozenset(block.get("Features", "").split())
    return (
        *(name for name in X86_FEATURES if name in flags),
        *(name for flag, name in ARM_FEATURES.items() if flag in arm),
    )


def _num_cores(root: Path, threads: Iterable[int]) -> int | None:
    """Cores that at least one of the `threads` belongs to: threads of one core name the same siblings."""
    cores: set[str] = set()
    for thread in threads:
        siblings = read_text(root / f"sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list").strip()
        if not siblings:
            return None
        cores.add(siblings)
    return len(cores) or None


def _num_numa_nodes(root: Path, threads: frozenset[int]) -> int | None:
    """Nodes that at least one of the `threads` belongs to."""
    lists = (read_text(path) for path in root.glob("sys/devices/system/node/node*/cpulist"))
    return sum(1 for text in lists if parse_list(text) & threads) or None


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Total and free, in bytes."""
    lines = (line.split() for line in read_text(root / "proc/meminfo").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable", sizes.get("MemFree"))
    limit = memory_limit(root)
    if limit is None or total is None or free is None:
        return total, free
    return min(total, limit.num_bytes), min(free, limit.free_bytes)
