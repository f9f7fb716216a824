"""A Mac's processors, from what `sysctl -a` and `system_profiler -json` print."""

import json
from typing import Any

from vmm_adapters.device import DeviceKind
from vmm_adapters.probing.findings import Accelerator, Processor

_ARM_FEATURES = {
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_DotProd": "neon_dotprod",
    "hw.optional.arm.FEAT_FP16": "neon_fp16",
    "hw.optional.arm.FEAT_BF16": "neon_bf16",
    "hw.optional.arm.FEAT_I8MM": "neon_i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
}
"""Names of `sysctl` → ours (Apple, "Determining instruction set characteristics")."""
_X86_FEATURES = {"AVX2": "avx2", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni"}
_FREE_PAGES = ("vm.page_free_count", "vm.page_purgeable_count", "vm.page_pageable_external_count")
"""Free, or given up when asked for: what programs marked so, and what files were read into."""
_VENDORS = {"sppci_vendor_Apple": "Apple", "sppci_vendor_amd": "AMD", "sppci_vendor_intel": "Intel"}


def read_sysctl(text: str) -> Processor:
    """The processor, from `name: value` lines."""
    values = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    numbers = {name: int(value) for name, value in values.items() if value.isdigit()}
    flags = values.get("machdep.cpu.leaf7_features", "").split()
    model = values.get("machdep.cpu.brand_string", "unknown")
    free = [numbers[name] for name in _FREE_PAGES if name in numbers]
    return Processor(
        model=model,
        vendor=next((vendor for vendor in ("Apple", "Intel") if vendor in model), "unknown"),
        features=(
            *(name for flag, name in _X86_FEATURES.items() if flag in flags),
            *(name for key, name in _ARM_FEATURES.items() if numbers.get(key) or (name == "neon" and "Apple" in model)),
        ),
        num_cores=numbers.get("hw.physicalcpu"),
        num_threads=numbers.get("hw.logicalcpu", 1),
        num_numa_nodes=1,
        memory_total_bytes=numbers.get("hw.memsize"),
        memory_free_bytes=sum(free) * numbers.get("hw.pagesize", 4096) if free else None,
    )


def read_displays(text: str) -> tuple[Accelerator, ...]:
    """GPUs, from `system_profiler SPDisplaysDataType -json`."""
    found: list[dict[str, Any]] = json.loads(text).get("SPDisplaysDataType", [])
    return tuple(
        Accelerator(
            kind=DeviceKind.GPU,
            vendor=(vendor := _VENDORS.get(str(each.get("spdisplays_vendor")), "unknown")),
            name=str(each.get("sppci_model") or each.get("_name") or "GPU"),
            shares_memory=vendor == "Apple",
        )
        for each in found
        if each.get("sppci_device_type", "spdisplays_gpu") == "spdisplays_gpu"
    )
