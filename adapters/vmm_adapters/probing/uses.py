"""Which adapters can use a device, and what would mend it where one cannot. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vmm_adapters.device import AdapterUse, DeviceKind
from vmm_adapters.probing.findings import (
    Accelerator,
    Finding,
    Findings,
    KernelCompiler,
    OnnxRuntime,
    OnnxRuntimeGenAI,
    OpenVINOCore,
    OpenVINOGenAI,
)


class Hardware(Protocol):
    """An accelerator, as `merging` puts it together."""

    @property
    def kind(self) -> DeviceKind: ...
    @property
    def vendor(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def nvidia(self) -> Accelerator | None: ...
    @property
    def openvino(self) -> Accelerator | None: ...


@dataclass(frozen=True, slots=True)
class Provider:
    """What one of ONNX Runtime's providers is for."""

    kinds: tuple[DeviceKind, ...]
    vendors: tuple[str, ...] = ()
    """Empty: anybody's."""
    genai: str | None = None
    """What ONNX Runtime GenAI must have been built for to use it; `""`: nothing; `None`: it does not."""

    def serves(self, kind: DeviceKind, vendor: str) -> bool:
        """Whether it could run on such a device."""
        return kind in self.kinds and (not self.vendors or vendor in self.vendors)


_GPU, _NPU, _CPU = (DeviceKind.GPU,), (DeviceKind.NPU,), (DeviceKind.CPU,)
PROVIDERS = {
    "NvTensorRTRTXExecutionProvider": Provider(_GPU, ("NVIDIA",), genai=""),
    "TensorrtExecutionProvider": Provider(_GPU, ("NVIDIA",)),
    "CUDAExecutionProvider": Provider(_GPU, ("NVIDIA",), genai="cuda"),
    "MIGraphXExecutionProvider": Provider(_GPU, ("AMD",), genai=""),
    "ROCMExecutionProvider": Provider(_GPU, ("AMD",), genai=""),
    "QNNExecutionProvider": Provider(_NPU, ("Qualcomm",), genai="qnn"),
    "VitisAIExecutionProvider": Provider(_NPU, ("AMD",)),
    "CoreMLExecutionProvider": Provider(_GPU, ("Apple",)),
    "DmlExecutionProvider": Provider(_GPU, genai="dml"),
    "WebGpuExecutionProvider": Provider(_GPU, genai="webgpu"),
    "CPUExecutionProvider": Provider(_CPU, genai=""),
}
"""Best first. OpenVINO's stands apart: it takes what OpenVINO lists (`_openvino_provider`)."""
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"

_INTEL_DRIVERS = {
    DeviceKind.GPU: "install Intel's compute runtime (intel-opencl-icd, libze-intel-gpu1), and let this user read "
    "/dev/dri/renderD* (group render)",
    DeviceKind.NPU: "install Intel's NPU driver (github.com/intel/linux-npu-driver), and let this user read /dev/accel "
    "(group render)",
}
_LEAST_DRIVER = {12: 525, 13: 580}
"""CUDA → the oldest branch of NVIDIA's driver that runs it (CUDA Toolkit release notes, table of drivers)."""
_WINDOWS_DRIVERS = "install the current driver from intel.com"


def cpu_uses(findings: Findings) -> tuple[AdapterUse, ...]:
    """Of the CPU."""
    providers = _providers(DeviceKind.CPU, None, findings)
    genai = tuple(each for each in providers if _is_in_genai(each, findings))
    listed = "CPU" if findings.openvino and findings.openvino.has_cpu else None
    return (
        _kernels(findings),
        _openvino("openvino", listed, lambda: "OpenVINO lists no CPU: reinstall openvino", findings),
        _onnxruntime("onnxruntime-genai", "CPU", genai, "", findings),
        _openvino("openvino-genai", listed, lambda: "OpenVINO lists no CPU: reinstall openvino", findings),
        _onnxruntime(
            "onnxruntime", "CPU", providers, "ONNX Runtime has no CPU provider: reinstall onnxruntime", findings
        ),
    )


def uses(name: str, hardware: Hardware, findings: Findings) -> tuple[AdapterUse, ...]:
    """Of an accelerator."""
    providers = _providers(hardware.kind, hardware, findings)
    genai = tuple(each for each in providers if _is_in_genai(each, findings))
    listed = hardware.openvino.number if hardware.openvino else None

    def unlisted() -> str:
        if hardware.vendor != "Intel":
            return f"OpenVINO lists Intel's {hardware.kind.upper()}s only"
        mend = _WINDOWS_DRIVERS if findings.platform == "win32" else _INTEL_DRIVERS[hardware.kind]
        return f"OpenVINO does not list it: {mend}"

    return (
        AdapterUse("cpu", reason="its kernels are for CPUs only"),
        _openvino("openvino", listed, unlisted, findings),
        _onnxruntime("onnxruntime-genai", name, genai, _no_provider(hardware, findings, genai=True), findings),
        _openvino("openvino-genai", listed, unlisted, findings),
        _onnxruntime("onnxruntime", name, providers, _no_provider(hardware, findings, genai=False), findings),
    )


def _kernels(findings: Findings) -> AdapterUse:
    compiler = findings.compiler
    if compiler is None:
        return AdapterUse("cpu", reason=_absent("numba", KernelCompiler, findings))
    return AdapterUse("cpu", "CPU", is_slow=not compiler.is_fast)


def _openvino(adapter: str, listed: str | None, unlisted: Callable[[], str], findings: Findings) -> AdapterUse:
    if findings.openvino is None:
        return AdapterUse(adapter, reason=_absent("openvino", OpenVINOCore, findings))
    if adapter == "openvino-genai" and findings.openvino_genai is None:
        return AdapterUse(adapter, reason=_absent("openvino-genai", OpenVINOGenAI, findings))
    return AdapterUse(adapter, spelling=listed) if listed else AdapterUse(adapter, reason=unlisted())


def _onnxruntime(
    adapter: str, name: str, providers: tuple[str, ...], no_provider: str, findings: Findings
) -> AdapterUse:
    if adapter == "onnxruntime-genai" and findings.genai is None:
        return AdapterUse(adapter, reason=_absent("onnxruntime-genai", OnnxRuntimeGenAI, findings))
    if findings.onnxruntime is None:
        return AdapterUse(adapter, reason=_absent("onnxruntime", OnnxRuntime, findings))
    return AdapterUse(adapter, name, providers) if providers else AdapterUse(adapter, reason=no_provider)


def _absent(package: str, finding: type[Finding], findings: Findings) -> str:
    target = "'vmm-server[onnxruntime]'" if package.startswith("onnxruntime") else package
    return findings.problems.get(finding) or f"{package} is not installed: pip install {target}"


def _providers(kind: DeviceKind, hardware: Hardware | None, findings: Findings) -> tuple[str, ...]:
    """Those that are here and start, best first. `hardware` is `None` for the CPU."""
    works = {trial.provider for trial in findings.trials if trial.works}
    built_in = set(findings.onnxruntime.providers if findings.onnxruntime else ())
    tried = {trial.provider for trial in findings.trials}
    here = {each for each in built_in if each in works or each not in tried}
    vendor = hardware.vendor if hardware else ""
    served = [each for each, provider in PROVIDERS.items() if each in here and provider.serves(kind, vendor)]
    if OPENVINO_PROVIDER in here and (hardware is None or hardware.openvino is not None):
        served.insert(0, OPENVINO_PROVIDER)
    plugged = [
        device.provider
        for plug_in in findings.plug_ins
        for device in plug_in.devices
        if device.reason is None and device.kind is kind and (hardware is None or _is_same(device, hardware))
    ]
    order = list(PROVIDERS)
    found = dict.fromkeys((*served, *plugged))
    return tuple(sorted(found, key=lambda each: order.index(each) if each in order else -1))


class _Plugged(Protocol):
    @property
    def vendor(self) -> str: ...
    @property
    def address(self) -> str | None: ...


def _is_same(device: _Plugged, hardware: Hardware) -> bool:
    if device.address and hardware.address:
        return device.address == hardware.address
    return device.vendor == hardware.vendor


def _is_in_genai(provider: str, findings: Findings) -> bool:
    needed = (
        "openvino" if provider == OPENVINO_PROVIDER else PROVIDERS[provider].genai if provider in PROVIDERS else None
    )
    return needed is not None and (not needed or (findings.genai is not None and needed in findings.genai.built_for))


def _no_provider(hardware: Hardware, findings: Findings, *, genai: bool) -> str:
    """Why ONNX Runtime cannot use it: what failed, else what is missing."""
    failed = [
        f"{trial.provider} does not start: {trial.reason or 'no reason given'}"
        for trial in findings.trials
        if not trial.works
        and (provider := PROVIDERS.get(trial.provider)) is not None
        and provider.serves(hardware.kind, hardware.vendor)
    ]
    failed += [
        f"{device.provider} does not start: {device.reason}"
        for plug_in in findings.plug_ins
        for device in plug_in.devices
        if device.reason is not None and device.kind is hardware.kind and _is_same(device, hardware)
    ]
    if failed:
        return "; ".join((*failed, *_old_driver(hardware, " ".join(failed))))
    package, extra = _mend(hardware, findings.platform, genai=genai)
    return f"{package} is not installed: pip install {extra}"


def _mend(hardware: Hardware, platform: str, *, genai: bool) -> tuple[str, str]:
    """The package that would serve it, and what to install."""
    if hardware.kind is DeviceKind.NPU:
        match hardware.vendor:
            case "Qualcomm":
                return "onnxruntime-qnn", "onnxruntime-qnn"
            case "AMD":
                return "ONNX Runtime with AMD's Vitis AI provider", "Ryzen AI Software, from ryzenai.docs.amd.com"
        return "onnxruntime-ep-openvino", "'vmm-server[openvino-ep]'"
    match hardware.vendor, platform:
        case "NVIDIA", _:
            return ("onnxruntime-genai-cuda" if genai else "onnxruntime-gpu"), "'vmm-server[cuda]'"
        case "AMD", "linux":
            return "onnxruntime-migraphx", "onnxruntime-migraphx, after pip uninstall onnxruntime"
        case "Intel", "linux" | "win32":
            return "onnxruntime-ep-openvino", "'vmm-server[openvino-ep]'"
        case _, "win32":
            return ("onnxruntime-genai-directml" if genai else "onnxruntime-directml"), "'vmm-server[directml]'"
    return "onnxruntime-ep-webgpu", "'vmm-server[webgpu]'"


def _old_driver(hardware: Hardware, words: str) -> tuple[str, ...]:
    """A word on NVIDIA's driver when it is older than the CUDA that the `words` ask for takes, 12 unless they say."""
    driver = hardware.nvidia.driver if hardware.nvidia else None
    major = driver.split(".")[0] if driver else ""
    found = re.search(r"CUDA (\d+)", words)
    cuda = int(found[1]) if found else 12
    least = _LEAST_DRIVER.get(cuda, 0)
    if major.isdigit() and int(major) < least:
        return (f"driver {driver} is too old for CUDA {cuda}: install {least} or newer",)
    return ()
