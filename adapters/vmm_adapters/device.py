"""What a machine computes on, and which adapters can use it. Plain values: `vmm_adapters.probing` finds them out.

A device has one name whatever runtime speaks of it: `CPU`, `GPU.0` (Intel's, as OpenVINO numbers them), `NPU`,
`CUDA.0`, `ROCM.0`, `METAL.0`, `DML.0` for what only DirectML knows. A runtime's own spelling is in `AdapterUse`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class DeviceKind(StrEnum):
    """What sort of processor."""

    CPU = "cpu"
    GPU = "gpu"
    NPU = "npu"


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """Whether an adapter can use a device."""

    adapter: str
    """`cpu`, `openvino`, `onnxruntime-genai`, `openvino-genai`, `onnxruntime`."""
    spelling: str | None = None
    """The device in the words of the adapter's runtime; `None`: it cannot use it. ONNX Runtime has no words for
    devices, only providers and their options: there it is the device's `name`."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime's execution providers for it that are here, best first."""
    reason: str | None = None
    """Why it cannot, in words that say what would mend it."""
    is_slow: bool = False
    """It works, but without the instructions that make it fast: others are tried before it."""


@dataclass(frozen=True, slots=True)
class Device:
    """One processor, or all of the machine's CPUs together."""

    name: str
    kind: DeviceKind
    vendor: str
    """`Intel`, `AMD`, `NVIDIA`, `Apple`, `Arm`, …; `unknown`."""
    description: str
    """The maker's name for it."""
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    """Of its own; the machine's for a CPU and for a GPU that shares it."""
    driver: str | None = None
    """Its version; part of what a calibration holds for."""
    num_cores: int | None = None
    """Physical ones, of a CPU."""
    num_threads: int | None = None
    num_numa_nodes: int | None = None
    features: tuple[str, ...] = ()
    """Instruction sets that matter to inference: `avx2`, `avx_vnni`, `avx512_vnni`, `amx_int8`, `neon_dotprod`, …"""
    uses: tuple[AdapterUse, ...] = ()
    """One for every adapter there is, installed or not."""

    def use(self, adapter: str) -> AdapterUse | None:
        """How an adapter uses it, if it can."""
        return next((use for use in self.uses if use.adapter == adapter and use.spelling is not None), None)


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute on, and with."""

    devices: tuple[Device, ...]
    """The CPU first."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Installed packages that matter to inference → version, by their names in small letters: `onnxruntime-gpu`."""
    problems: tuple[str, ...] = ()
    """What could not be found out, and why."""
