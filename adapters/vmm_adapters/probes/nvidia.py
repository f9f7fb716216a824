"""NVIDIA's GPUs, as `nvidia-smi` lists them: it comes with every driver, and asks NVML, as a binding would."""

import csv
import io
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from vmm_adapters.device import DeviceKind
from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import Accelerator, NvidiaDriver

_FIELDS = ("uuid", "name", "pci.bus_id", "memory.total", "memory.free", "driver_version")


def ask() -> NvidiaDriver:
    """Raises `RuntimeError` with the tool's own words: `Failed to initialize NVML: Driver/library version mismatch`."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if asked.returncode != 0:
        raise RuntimeError(" ".join(f"{asked.stdout} {asked.stderr}".split()) or f"exit code {asked.returncode}")
    return NvidiaDriver(visible(read_table(asked.stdout), os.environ.get("CUDA_VISIBLE_DEVICES")))


def read_table(text: str) -> tuple[Accelerator, ...]:
    """GPUs, from rows of `_FIELDS`, `number` their UUID; memory is in MiB, `[N/A]` where it is the machine's."""
    rows = (row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if len(row) == len(_FIELDS))
    return tuple(
        Accelerator(
            kind=DeviceKind.GPU,
            vendor="NVIDIA",
            name=name,
            number=uuid,
            address=_address(bus_id),
            memory_total_bytes=_mebibytes(total),
            memory_free_bytes=_mebibytes(free),
            driver=driver,
            shares_memory="N/A" in total,
        )
        for uuid, name, bus_id, total, free, driver in rows
    )


def visible(gpus: Sequence[Accelerator], wanted: str | None) -> tuple[Accelerator, ...]:
    """Those that CUDA shows, `number` as it counts them when it counts by PCI address (`CUDA_DEVICE_ORDER`).

    `wanted` is `CUDA_VISIBLE_DEVICES`: indices or beginnings of UUIDs; the first that is none ends the list (CUDA C++
    Programming Guide, "Environment Variables").
    """
    shown = list(gpus) if wanted is None else []
    for word in wanted.split(",") if wanted else ():
        index = word.strip()
        named = [gpu for at, gpu in enumerate(gpus) if str(at) == index or (index and gpu.number.startswith(index))]
        if len(named) != 1:
            break
        shown += named
    return tuple(replace(gpu, number=str(number)) for number, gpu in enumerate(shown))


def _address(bus_id: str) -> str:
    """`00000000:01:00.0` → `0000:01:00.0`."""
    domain, _, rest = bus_id.partition(":")
    return f"{domain[-4:]}:{rest}".lower()


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.strip().isdigit() else None


if __name__ == "__main__":
    answer(ask)
