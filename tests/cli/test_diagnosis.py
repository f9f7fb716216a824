"""What `vmm doctor` finds, as tables: packages, devices and settings that are wrong, and the mend of each."""

from dataclasses import replace

import pytest

from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_server.cli.diagnosis import Finding, Installation, Setup, Severity, diagnose

CPU = Device("CPU", DeviceKind.CPU, "Intel", "A CPU", 16 << 30, 8 << 30, uses=(AdapterUse("openvino", "CPU"),))
MACHINE = Machine((CPU,), {"openvino": "2026.4.1"})
SETUP = Setup(models_dir="/m", home="/h", cache_dir="/h/cache", free_disk_bytes=10**12)
INSTALLED = {
    "numpy": "2.4.6",
    "openvino": "2026.4.1",
    "openvino-genai": "2026.4.1.0",
    "openvino-tokenizers": "2026.4.1.0",
    "onnxruntime": "1.31.1",
    "onnxruntime-genai": "0.18.0",
    "vmm-server": "0.1.0",
}
REQUIREMENTS = {
    "vmm-server": (
        "numpy>=2.2",
        "openvino>=2026.4",
        "onnxruntime-genai-cuda>=0.18; extra == 'cuda'",
        "uvloop; os_name == 'x'",
    ),
    "onnxruntime-genai": ("numpy>=1.21.6", "onnxruntime>=1.31.0"),
    "openvino-genai": ("openvino_tokenizers~=2026.4.1.0.dev",),
    "openvino-tokenizers": ("openvino~=2026.4.1.dev",),
}


def of_packages(**versions: str | None) -> list[Finding]:
    """With other packages; `None`: not installed. Names are written with `_`."""
    packages: dict[str, str | None] = {
        **INSTALLED,
        **{name.replace("_", "-"): version for name, version in versions.items()},
    }
    here = {name: version for name, version in packages.items() if version is not None}
    requirements = {name: texts for name, texts in REQUIREMENTS.items() if name in here}
    return diagnose(Installation(here, requirements), MACHINE, SETUP)


def test_what_fits_is_no_finding() -> None:
    assert of_packages() == []
    assert of_packages(onnxruntime=None, onnxruntime_openvino="1.31.0") == []  # as good as onnxruntime itself
    assert of_packages(onnxruntime_qnn="2.7.0") == []  # a plug-in
    assert of_packages(onnxruntime_genai=None, openvino_genai=None, openvino_tokenizers=None) == []


PACKAGES: list[tuple[dict[str, str | None], str, str]] = [
    (
        {"onnxruntime_gpu": "1.31.1"},
        "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu==1.31.1",
    ),
    (
        {"onnxruntime_openvino": "1.24.1", "onnxruntime_directml": "1.24.4"},
        "onnxruntime and onnxruntime-openvino and onnxruntime-directml are both installed",
        "pip install --no-deps onnxruntime-directml==1.24.4",
    ),
    ({"onnxruntime_qnn": "1.22.0"}, "onnxruntime and onnxruntime-qnn", "pip uninstall -y"),
    (
        {"onnxruntime_genai_cuda": "0.18.0"},
        "all hold the module onnxruntime_genai",
        "pip uninstall -y onnxruntime-genai onnxruntime-genai-cuda && pip install --no-deps onnxruntime-genai-cuda==",
    ),
    (
        {"onnxruntime": None},
        "onnxruntime-genai needs onnxruntime>=1.31.0; it is not installed",
        "pip install 'onnxruntime>=1.31.0'",
    ),
    (
        {"onnxruntime": None, "onnxruntime_openvino": "1.24.1"},
        "onnxruntime-genai needs onnxruntime>=1.31.0; here is onnxruntime-openvino 1.24.1",
        "pip install 'onnxruntime-openvino>=1.31.0'",
    ),
    (
        {"openvino_tokenizers": "2026.2.0.0"},
        "openvino 2026.4.1, openvino-tokenizers 2026.2.0.0 do not fit together",
        "pip install 'openvino==2026.4.*' 'openvino-genai==2026.4.*' 'openvino-tokenizers==2026.4.*'",
    ),
    (
        {"openvino_tokenizers": None},
        "openvino-genai needs openvino_tokenizers~=2026.4.1.0.dev; it is not",
        "pip install",
    ),
    ({"numpy": "1.26.4"}, "vmm-server needs numpy>=2.2; here is numpy 1.26.4", "pip install 'numpy>=2.2'"),
    ({"openvino": None}, "vmm-server needs openvino>=2026.4; it is not installed", "pip install 'openvino>=2026.4'"),
]


@pytest.mark.parametrize(("versions", "message", "mend"), PACKAGES)
def test_packages_that_clash_or_lack_something(versions: dict[str, str | None], message: str, mend: str) -> None:
    found = [finding for finding in of_packages(**versions) if message in finding.message]
    assert len(found) == 1
    assert found[0].severity is Severity.BROKEN
    assert mend in (found[0].mend or "")


def test_versions_that_nobody_can_read_are_left_alone() -> None:
    assert diagnose(Installation({"openvino": "custom", "a": "1"}, {"a": ("openvino>=1", "!?")}), MACHINE, None) == []


def test_a_runtime_that_breaks_and_a_driver_that_does() -> None:
    problems = ("openvino crashed (SIGSEGV)", "NVIDIA's driver failed with exit code 1: RuntimeError: mismatch", "odd")
    found = diagnose(Installation({}), replace(MACHINE, problems=problems), SETUP)
    assert [finding.message for finding in found] == list(problems)
    assert [finding.mend for finding in found] == [
        "pip install --force-reinstall --no-deps openvino",
        "restart the machine, or install NVIDIA's driver anew; nvidia-smi tells more",
        None,
    ]
    assert {finding.severity for finding in found} == {Severity.BROKEN}


def test_a_device_that_no_text_model_can_use_is_a_warning_and_such_a_cpu_is_broken() -> None:
    reasons = (
        AdapterUse("openvino", reason="OpenVINO lists Intel's GPUs only"),
        AdapterUse("onnxruntime", reason="onnxruntime-gpu is not installed: pip install 'vmm-server[cuda]'"),
    )
    gpu = Device("CUDA.0", DeviceKind.GPU, "NVIDIA", "L4", uses=reasons)
    used = replace(gpu, name="CUDA.1", uses=(reasons[0], AdapterUse("onnxruntime-genai", "CUDA.1")))
    (found,) = diagnose(Installation({}), Machine((CPU, gpu, used)), SETUP)
    assert (found.severity, found.mend) == (Severity.WARNING, "pip install 'vmm-server[cuda]'")
    assert found.message.startswith(
        "no text model can use CUDA.0 (L4). openvino: OpenVINO lists Intel's GPUs only; onnx"
    )
    encoders_alone = replace(gpu, uses=(reasons[0], AdapterUse("onnxruntime", "CUDA.0")))
    assert [each.mend for each in diagnose(Installation({}), Machine((CPU, encoders_alone)), SETUP)] == [None]
    (found,) = diagnose(Installation({}), Machine((replace(CPU, uses=reasons[:1]),)), SETUP)
    assert (found.severity, found.mend) == (Severity.BROKEN, None)


SETTINGS: list[tuple[Setup, Severity, str, str]] = [
    (replace(SETUP, home_error="Not a directory"), Severity.BROKEN, "nothing can be written to /h: Not a", "VMM_HOME"),
    (
        replace(SETUP, models_dir_error="Permission denied"),
        Severity.BROKEN,
        "in /m: Permission denied",
        "VMM_MODELS_DIR",
    ),
    (
        replace(SETUP, cache_dir_error="Permission denied"),
        Severity.WARNING,
        "nothing can be kept in /h/cache: Permission denied; kernels are compiled at every start",
        "VMM_HOME",
    ),
    (replace(SETUP, free_disk_bytes=10**9), Severity.WARNING, "the disk that holds /m has 1.0 GB left", "vmm rm MODEL"),
    (replace(SETUP, address_error="port 11434 is taken"), Severity.BROKEN, "port 11434 is taken", "VMM_PORT"),
    (replace(SETUP, device="NPU"), Severity.BROKEN, "setting device: there is no NPU here", "auto, or CPU"),
    (replace(SETUP, memory_budget_bytes=32 << 30), Severity.BROKEN, "34.4 GB is more than the machine has", "12.9GB"),
    (replace(SETUP, without_effect=("OLLAMA_X has no effect",)), Severity.WARNING, "OLLAMA_X has no effect", ""),
]


@pytest.mark.parametrize(("setup", "severity", "message", "mend"), SETTINGS)
def test_settings_that_cannot_work_here(setup: Setup, severity: Severity, message: str, mend: str) -> None:
    (found,) = diagnose(Installation({}), MACHINE, setup)
    assert (found.severity, message in found.message) == (severity, True)
    assert mend in (found.mend or "")


def test_settings_that_work_are_no_finding_and_what_is_broken_comes_first() -> None:
    gpu = replace(CPU, name="GPU.1", kind=DeviceKind.GPU)
    for device in ("auto", "cpu", "GPU", "gpu.1"):
        setup = replace(SETUP, device=device, memory_budget_bytes=16 << 30)
        assert diagnose(Installation({}), Machine((CPU, gpu)), setup) == []
    both = replace(SETUP, free_disk_bytes=0, address_error="taken")
    assert [each.severity for each in diagnose(Installation({}), MACHINE, both)] == [Severity.BROKEN, Severity.WARNING]
