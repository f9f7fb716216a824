"""What each probe prints, as one JSON object on stdout; `children` checks it when it reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm_adapters.device import DeviceKind


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU: what of it this process may use."""

    model: str
    vendor: str
    features: tuple[str, ...]
    num_cores: int | None
    num_threads: int
    num_numa_nodes: int | None
    memory_total_bytes: int | None
    memory_free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU or NPU."""

    kind: DeviceKind
    vendor: str
    name: str
    """As its maker or driver calls it."""
    number: str = ""
    """As who speaks of it numbers it: OpenVINO's `GPU.1`, NVIDIA's `1`."""
    address: str | None = None
    """On the PCI bus, as Linux writes it: `0000:03:00.0`."""
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    driver: str | None = None
    """Its version."""
    shares_memory: bool = False
    """With the CPU."""


@dataclass(frozen=True, slots=True)
class SystemAccelerators:
    """What the operating system knows of, with or without a runtime for it."""

    accelerators: tuple[Accelerator, ...]


@dataclass(frozen=True, slots=True)
class NvidiaDriver:
    """What NVIDIA's driver knows of."""

    accelerators: tuple[Accelerator, ...]


@dataclass(frozen=True, slots=True)
class OpenVINOCore:
    """What OpenVINO lists."""

    has_cpu: bool
    accelerators: tuple[Accelerator, ...]


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """What ONNX Runtime was built with; whether it starts here is another question (`ProviderTrial`)."""

    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProviderTrial:
    """A session with one of ONNX Runtime's providers."""

    provider: str
    works: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PlugInDevice:
    """A device of a plug-in provider, and whether a session starts there."""

    provider: str
    kind: DeviceKind
    vendor: str
    address: str | None = None
    reason: str | None = None
    """Why it does not; `None`: it does."""


@dataclass(frozen=True, slots=True)
class PlugIn:
    """A package with a plug-in provider for ONNX Runtime."""

    package: str
    devices: tuple[PlugInDevice, ...]


@dataclass(frozen=True, slots=True)
class OnnxRuntimeGenAI:
    """What ONNX Runtime GenAI was built for: `cuda`, `dml`, `openvino`, `qnn`, `webgpu`."""

    built_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenVINOGenAI:
    """OpenVINO GenAI can be imported."""

    version: str


@dataclass(frozen=True, slots=True)
class KernelCompiler:
    """Numba and LLVM can be loaded."""

    version: str
    instruction_set: str
    """That our kernels would use, as `vmm_adapters.cpu.isa` names it: `AVX2`, `PORTABLE`, …"""
    is_fast: bool
    """Whether that is one that they are written for."""


Finding = (
    Processor
    | SystemAccelerators
    | NvidiaDriver
    | OpenVINOCore
    | OnnxRuntime
    | ProviderTrial
    | PlugIn
    | OnnxRuntimeGenAI
    | OpenVINOGenAI
    | KernelCompiler
)


@dataclass(frozen=True, slots=True)
class Findings:
    """All of them together; `None` for who was not asked or did not answer."""

    processor: Processor | None = None
    system: SystemAccelerators | None = None
    nvidia: NvidiaDriver | None = None
    openvino: OpenVINOCore | None = None
    openvino_genai: OpenVINOGenAI | None = None
    onnxruntime: OnnxRuntime | None = None
    genai: OnnxRuntimeGenAI | None = None
    compiler: KernelCompiler | None = None
    trials: tuple[ProviderTrial, ...] = ()
    plug_ins: tuple[PlugIn, ...] = ()
    problems: Mapping[type[Finding], str] = field(default_factory=dict)
    """Why somebody did not answer."""
    platform: str = "linux"
    """`sys.platform`."""
