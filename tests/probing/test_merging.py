"""One device of what several witnesses say, with a use or a reason for every adapter."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.catalog import RUNS
from vmm_adapters.device import AdapterUse, Device, DeviceKind
from vmm_adapters.probing.findings import (
    Accelerator,
    Finding,
    Findings,
    KernelCompiler,
    NvidiaDriver,
    OnnxRuntime,
    OnnxRuntimeGenAI,
    OpenVINOCore,
    OpenVINOGenAI,
    PlugIn,
    PlugInDevice,
    Processor,
    ProviderTrial,
    SystemAccelerators,
)
from vmm_adapters.probing.merging import merge

CPU = Processor("A CPU", "Intel", ("avx2",), 8, 16, 1, 32 << 30, 20 << 30)
ALL_INSTALLED = Findings(
    processor=CPU,
    openvino=OpenVINOCore(True, ()),
    openvino_genai=OpenVINOGenAI("2026.4"),
    onnxruntime=OnnxRuntime(("CPUExecutionProvider",)),
    genai=OnnxRuntimeGenAI(()),
    compiler=KernelCompiler("0.68.1", "AVX2", True),
)


def gpu(vendor: str, name: str = "", **fields: object) -> Accelerator:
    return replace(Accelerator(DeviceKind.GPU, vendor, name or f"{vendor} GPU"), **fields)  # type: ignore[arg-type]


def npu(vendor: str, **fields: object) -> Accelerator:
    return replace(Accelerator(DeviceKind.NPU, vendor, f"{vendor} NPU"), **fields)  # type: ignore[arg-type]


def on_bus(*found: Accelerator) -> SystemAccelerators:
    return SystemAccelerators(found)


def reason(device: Device, adapter: str) -> str:
    return next(use.reason or "" for use in device.uses if use.adapter == adapter)


def test_the_same_hardware_is_one_device_with_all_that_is_known_of_it() -> None:
    cards = (
        gpu("NVIDIA", address="0000:01:00.0"),
        gpu("Intel", address="0000:00:02.0"),
        gpu("Intel", address="0000:03:00.0", driver="1.6"),
    )
    lists = (
        gpu("Intel", "UHD (iGPU)", number="GPU.0", shares_memory=True),
        gpu("Intel", "Arc A770 (dGPU)", number="GPU.1", address="0000:03:00.0", memory_total_bytes=16 << 30),
    )
    rtx = gpu(
        "NVIDIA", "RTX", number="0", address="0000:01:00.0", driver="550", memory_total_bytes=9, memory_free_bytes=5
    )
    findings = replace(
        ALL_INSTALLED, system=on_bus(*cards), openvino=OpenVINOCore(True, lists), nvidia=NvidiaDriver((rtx,))
    )
    devices = merge(findings)
    assert [device.name for device in devices] == ["CPU", "CUDA.0", "GPU.0", "GPU.1"]
    _, cuda, shared, own = devices
    assert (cuda.description, cuda.driver, cuda.memory_total_bytes, cuda.memory_free_bytes) == ("RTX", "550", 9, 5)
    assert (shared.description, shared.memory_free_bytes) == ("UHD (iGPU)", 20 << 30)
    assert (own.driver, own.memory_total_bytes, own.memory_free_bytes) == ("1.6", 16 << 30, None)
    assert own.use("openvino").spelling == "GPU.1"  # type: ignore[union-attr]
    assert reason(cuda, "openvino") == "OpenVINO lists Intel's GPUs only"


def test_an_address_says_more_than_an_order() -> None:
    cards = (gpu("Intel", "one that nobody placed"), gpu("Intel", "the other", address="0000:03:00.0", driver="1.6"))
    listed = gpu("Intel", number="GPU", address="0000:03:00.0")
    devices = merge(replace(ALL_INSTALLED, system=on_bus(*cards), openvino=OpenVINOCore(True, (listed,))))
    assert [(device.name, device.driver) for device in devices[1:]] == [("GPU.0", "1.6"), ("GPU.1", None)]


def test_one_gpu_has_a_number_although_openvino_gives_it_none() -> None:
    findings = replace(
        ALL_INSTALLED, openvino=OpenVINOCore(True, (gpu("Intel", number="GPU"), npu("Intel", number="NPU")))
    )
    _, first, second = merge(findings)
    assert (first.name, first.use("openvino").spelling) == ("GPU.0", "GPU")  # type: ignore[union-attr]
    assert (second.name, second.use("openvino-genai").spelling) == ("NPU", "NPU")  # type: ignore[union-attr]


MENDS = [
    (gpu("NVIDIA"), "linux", "CUDA.0", "onnxruntime-genai-cuda is not installed: pip install 'vmm-server[cuda]'"),
    (gpu("AMD"), "linux", "ROCM.0", "onnxruntime-migraphx is not installed: pip install onnxruntime-migraphx"),
    (gpu("AMD"), "win32", "DML.0", "onnxruntime-genai-directml is not installed: pip install 'vmm-server[directml]'"),
    (gpu("Intel"), "linux", "GPU.0", "onnxruntime-ep-openvino is not installed: pip install 'vmm-server[openvino-ep]'"),
    (npu("Intel"), "win32", "NPU", "onnxruntime-ep-openvino is not installed: pip install 'vmm-server[openvino-ep]'"),
    (gpu("Apple"), "darwin", "METAL.0", "onnxruntime-ep-webgpu is not installed: pip install 'vmm-server[webgpu]'"),
    (npu("Qualcomm"), "win32", "NPU", "onnxruntime-qnn is not installed: pip install onnxruntime-qnn"),
    (npu("AMD"), "linux", "NPU", "ONNX Runtime with AMD's Vitis AI provider is not installed"),
]


@pytest.mark.parametrize(("account", "platform", "name", "mend"), MENDS)
def test_what_no_runtime_can_use_says_what_to_install(
    account: Accelerator, platform: str, name: str, mend: str
) -> None:
    _, device = merge(replace(ALL_INSTALLED, system=on_bus(account), platform=platform))
    assert device.name == name
    assert reason(device, "onnxruntime-genai").startswith(mend)
    assert all(use.spelling is None and use.reason for use in device.uses)


def test_an_intel_gpu_without_a_driver_says_which_one() -> None:
    _, device = merge(replace(ALL_INSTALLED, system=on_bus(gpu("Intel"))))
    assert "install Intel's compute runtime" in reason(device, "openvino")
    _, device = merge(replace(ALL_INSTALLED, system=on_bus(npu("Intel")), platform="win32"))
    assert "install the current driver" in reason(device, "openvino-genai")


def test_providers_that_are_here_are_reported_best_first() -> None:
    here = OnnxRuntime(
        ("CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider")
    )
    findings = replace(
        ALL_INSTALLED,
        onnxruntime=here,
        genai=OnnxRuntimeGenAI(("cuda", "openvino")),
        trials=(ProviderTrial("TensorrtExecutionProvider", False, "libnvinfer.so.10: no such file"),),
        nvidia=NvidiaDriver((gpu("NVIDIA", number="0"),)),
        openvino=OpenVINOCore(True, (gpu("Intel", number="GPU"),)),
    )
    cpu, cuda, intel = merge(findings)
    for adapter in ("onnxruntime", "onnxruntime-genai"):
        assert cuda.use(adapter).providers == ("CUDAExecutionProvider",)  # type: ignore[union-attr]
        assert intel.use(adapter).providers == ("OpenVINOExecutionProvider",)  # type: ignore[union-attr]
        assert cpu.use(adapter).providers == (  # type: ignore[union-attr]
            "OpenVINOExecutionProvider",
            "CPUExecutionProvider",
        )
    without = merge(replace(findings, genai=OnnxRuntimeGenAI(())))[1]
    assert without.use("onnxruntime") is not None
    assert without.use("onnxruntime-genai") is None


def test_a_plug_in_serves_the_devices_that_it_lists() -> None:
    listed = PlugIn(
        "onnxruntime_ep_nv_tensorrt_rtx",
        (
            PlugInDevice("NvTensorRTRTXExecutionProvider", DeviceKind.GPU, "NVIDIA", "0000:01:00.0"),
            PlugInDevice("NvTensorRTRTXExecutionProvider", DeviceKind.GPU, "NVIDIA", "0000:02:00.0", "too old a card"),
        ),
    )
    cards = [gpu("NVIDIA", number=str(index), address=f"0000:0{index + 1}:00.0") for index in range(2)]
    findings = replace(ALL_INSTALLED, plug_ins=(listed,), nvidia=NvidiaDriver(tuple(cards)))
    _, first, second = merge(findings)
    for adapter in ("onnxruntime", "onnxruntime-genai"):
        assert first.use(adapter).providers == ("NvTensorRTRTXExecutionProvider",)  # type: ignore[union-attr]
        assert reason(second, adapter) == "NvTensorRTRTXExecutionProvider does not start: too old a card"


def test_what_is_not_installed_or_broken_is_the_reason_for_every_device() -> None:
    cpu, device = merge(Findings(system=on_bus(gpu("Intel")), problems={OpenVINOCore: "openvino crashed (SIGSEGV)"}))
    assert (cpu.description, cpu.num_threads) == ("unknown", None)
    for each in (cpu, device):
        assert reason(each, "openvino") == "openvino crashed (SIGSEGV)"
        assert reason(each, "onnxruntime") == "onnxruntime is not installed: pip install 'vmm-server[onnxruntime]'"
        assert (
            reason(each, "onnxruntime-genai")
            == "onnxruntime-genai is not installed: pip install 'vmm-server[onnxruntime]'"
        )
    cpu, _ = merge(replace(ALL_INSTALLED, openvino_genai=None, system=on_bus(gpu("Intel"))))
    assert cpu.use("openvino") is not None
    assert reason(cpu, "openvino-genai") == "openvino-genai is not installed: pip install openvino-genai"


def test_our_own_kernels_need_their_compiler_and_are_slow_without_vectors() -> None:
    cpu, device = merge(replace(ALL_INSTALLED, system=on_bus(gpu("Intel"))))
    assert cpu.use("cpu") == AdapterUse("cpu", "CPU")
    assert reason(device, "cpu") == "its kernels are for CPUs only"
    portable = replace(ALL_INSTALLED, compiler=KernelCompiler("0.68.1", "PORTABLE", False))
    assert merge(portable)[0].use("cpu") == AdapterUse("cpu", "CPU", is_slow=True)
    (cpu,) = merge(replace(ALL_INSTALLED, compiler=None))
    assert reason(cpu, "cpu") == "numba is not installed: pip install numba"
    problems: dict[type[Finding], str] = {
        KernelCompiler: "numba failed with exit code 1: Numba needs NumPy 2.4 or less"
    }
    (cpu,) = merge(replace(ALL_INSTALLED, compiler=None, problems=problems))
    assert reason(cpu, "cpu") == problems[KernelCompiler]


ADDRESSES = st.sampled_from([None, "0000:00:02.0", "0000:01:00.0", "0000:02:00.0"])
CARDS = st.builds(
    Accelerator,
    kind=st.sampled_from([DeviceKind.GPU, DeviceKind.NPU]),
    vendor=st.sampled_from(["Intel", "AMD", "NVIDIA", "Apple", "unknown"]),
    name=st.just("card"),
    address=ADDRESSES,
)


@given(
    system=st.lists(CARDS, max_size=4),
    num_nvidia=st.integers(0, 3),
    num_intel=st.integers(0, 3),
    addresses=st.lists(ADDRESSES, min_size=6, max_size=6),
    platform=st.sampled_from(["linux", "win32", "darwin"]),
)
def test_whatever_is_said_every_device_has_a_name_of_its_own_and_a_word_on_every_adapter(
    system: list[Accelerator], num_nvidia: int, num_intel: int, addresses: list[str | None], platform: str
) -> None:
    nvidia = tuple(gpu("NVIDIA", number=str(index), address=addresses[index]) for index in range(num_nvidia))
    intel = tuple(gpu("Intel", number=f"GPU.{index}", address=addresses[3 + index]) for index in range(num_intel))
    devices = merge(
        replace(
            ALL_INSTALLED,
            system=SystemAccelerators(tuple(system)),
            nvidia=NvidiaDriver(nvidia),
            openvino=OpenVINOCore(True, intel),
            platform=platform,
        )
    )
    names = [device.name for device in devices]
    assert names[0] == "CPU"
    assert len(names) == len(set(names))
    assert {f"CUDA.{index}" for index in range(num_nvidia)} <= set(names)
    assert {f"GPU.{index}" for index in range(num_intel)} <= set(names)
    assert 1 + max(len(system), num_nvidia + num_intel) <= len(names) <= 1 + len(system) + num_nvidia + num_intel
    for device in devices:
        assert {use.adapter for use in device.uses} == RUNS.keys() - {"echo"}
        assert all((use.spelling is None) == (use.reason is not None) for use in device.uses)


@pytest.mark.parametrize(
    ("driver", "reason_of_the_runtime", "words"),
    [
        (
            "550.54.14",
            "Require cuDNN 9.* and CUDA 13.*",
            "driver 550.54.14 is too old for CUDA 13: install 580 or newer",
        ),
        ("550.54.14", "Require cuDNN 9.* and CUDA 12.*", "Require cuDNN 9.* and CUDA 12.*"),
        ("580.95.05", "Require cuDNN 9.* and CUDA 13.*", "Require cuDNN 9.* and CUDA 13.*"),
        ("470.82", "libcudart.so: no such file", "driver 470.82 is too old for CUDA 12: install 525 or newer"),
    ],
)
def test_a_driver_that_is_too_old_is_said(driver: str, reason_of_the_runtime: str, words: str) -> None:
    findings = replace(
        ALL_INSTALLED,
        onnxruntime=OnnxRuntime(("CUDAExecutionProvider",)),
        nvidia=NvidiaDriver((gpu("NVIDIA", number="0", driver=driver),)),
        trials=(ProviderTrial("CUDAExecutionProvider", False, reason_of_the_runtime),),
    )
    assert reason(merge(findings)[1], "onnxruntime").endswith(words)
