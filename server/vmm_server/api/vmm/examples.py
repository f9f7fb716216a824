"""What the routes answer, for the OpenAPI document and its test."""

from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_server.api.openapi import Example
from vmm_server.api.streaming import NDJSON
from vmm_server.models.machine import describe

_LISTED = "OpenVINO lists Intel's GPUs only"
_CUDA = ("CUDAExecutionProvider",)
_NO_GENAI = "onnxruntime-genai-cuda is not installed: pip install 'vmm-server[cuda]'"
MACHINE = Machine(
    devices=(
        Device(
            name="CPU",
            kind=DeviceKind.CPU,
            vendor="Intel",
            description="Intel(R) Xeon(R) 6975P-C",
            memory_total_bytes=64 << 30,
            memory_free_bytes=59 << 30,
            num_cores=16,
            num_threads=32,
            num_numa_nodes=1,
            features=("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
            uses=(
                AdapterUse("cpu", "CPU"),
                AdapterUse("openvino", "CPU"),
                AdapterUse("onnxruntime-genai", "CPU", ("CPUExecutionProvider",)),
                AdapterUse("openvino-genai", "CPU"),
                AdapterUse("onnxruntime", "CPU", ("CPUExecutionProvider",)),
            ),
        ),
        Device(
            name="CUDA.0",
            kind=DeviceKind.GPU,
            vendor="NVIDIA",
            description="NVIDIA L4",
            memory_total_bytes=23034 << 20,
            memory_free_bytes=22500 << 20,
            driver="580.95.05",
            uses=(
                AdapterUse("cpu", reason="its kernels are for CPUs only"),
                AdapterUse("openvino", reason=_LISTED),
                AdapterUse("onnxruntime-genai", reason=_NO_GENAI),
                AdapterUse("openvino-genai", reason=_LISTED),
                AdapterUse("onnxruntime", "CUDA.0", _CUDA),
            ),
        ),
    ),
    packages={
        "numba": "0.68.1",
        "numpy": "2.4.6",
        "onnxruntime-gpu": "1.31.1",
        "onnxruntime-genai": "0.18.0",
        "openvino": "2026.4.1",
    },
)
DEVICES = Example("A server with one GPU", describe(MACHINE))

_NAMES = {"placement": "openvino/CPU", "backend": "openvino", "device": "CPU", "variant": ""}
_PROFILE = {"decode_1": 69.4, "decode_8": 294.1, "prefill": 3749.2, "load_s": 1.9, "memory_bytes": 650117120}
_MODEL = {
    "model": "smollm2:135m",
    "unit": "tokens",
    "is_measured": True,
    "placements": [{**_NAMES, "profile": _PROFILE, "reason": None}],
    "choices": [{"work": "1 stream", "num_prompt_tokens": 512, "num_output_tokens": 128, "num_streams": 1, **_NAMES}],
}
PROFILES = Example("A model that was measured", {"models": [_MODEL]})
CALIBRATE = Example(
    "One placement",
    (
        {"status": "measuring openvino/CPU (1 of 1)", **_NAMES, "number": 1, "total": 1},
        {"status": "measured openvino/CPU", **_NAMES, "profile": _PROFILE, "reason": None},
        {"status": "success", **_MODEL},
    ),
    body={"model": "smollm2:135m"},
    media_type=NDJSON,
)
