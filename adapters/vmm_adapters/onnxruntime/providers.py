"""Which execution providers run a one-shot model on which device, best first, and with which options. Plain data.

Every chain ends with the CPU, so that a model whose operators a provider lacks still runs; what it really runs on is
what the session says. Options are those of onnxruntime.ai/docs/execution-providers; what stands in braces is filled
in, and an option that then has no value is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vmm_adapters.types import Precision


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider, with its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


_CPU = Provider("CPUExecutionProvider")
_TENSORRT = Provider(
    "TensorrtExecutionProvider",
    MappingProxyType(
        {
            "device_id": "{index}",
            "trt_fp16_enable": "{f16}",
            "trt_engine_cache_enable": "{has_cache}",
            "trt_engine_cache_path": "{cache_dir}",
            "trt_timing_cache_enable": "{has_cache}",
            "trt_timing_cache_path": "{cache_dir}",
        }
    ),
)
# The build takes device_type, the plug-in is bound to a device and ignores it; both read load_config.
_OPENVINO = Provider(
    "OpenVINOExecutionProvider",
    MappingProxyType({"device_type": "{device}", "cache_dir": "{cache_dir}", "load_config": "{openvino_config}"}),
)

CHAINS: Mapping[str, tuple[Provider, ...]] = MappingProxyType(
    {
        "CPU": (_OPENVINO, _CPU),
        "GPU": (_OPENVINO, _CPU),
        "NPU": (_OPENVINO, _CPU),
        "CUDA": (_TENSORRT, Provider("CUDAExecutionProvider", MappingProxyType({"device_id": "{index}"})), _CPU),
        "ROCM": (
            Provider(
                "MIGraphXExecutionProvider",
                MappingProxyType({"device_id": "{index}", "migraphx_fp16_enable": "{f16}"}),
            ),
            Provider("ROCMExecutionProvider", MappingProxyType({"device_id": "{index}"})),
            _CPU,
        ),
        "DML": (Provider("DmlExecutionProvider", MappingProxyType({"device_id": "{index}"})), _CPU),
        "WEBGPU": (Provider("WebGpuExecutionProvider"), _CPU),
        "METAL": (Provider("CoreMLExecutionProvider", MappingProxyType({"ModelFormat": "MLProgram"})), _CPU),
    }
)
"""Device family (a device's name up to its dot) → providers to try. OpenVINO's stands for any x86 CPU."""


def chain(device: str, precision: Precision, cache_dir: Path | None, num_threads: int | None) -> tuple[Provider, ...]:
    """The providers to try for a device, their options filled in; the CPU's alone for one that is not in the table."""
    family, _, index = device.upper().partition(".")
    properties: dict[str, str] = {"INFERENCE_PRECISION_HINT": precision}
    if num_threads is not None and family == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(num_threads)
    values = {
        "{index}": index or "0",
        "{device}": device.upper(),
        "{f16}": str(int(precision == "f16")),
        "{has_cache}": str(int(cache_dir is not None)),
        "{cache_dir}": None if cache_dir is None else str(cache_dir),
        "{openvino_config}": json.dumps({family: properties}),
    }

    def filled(provider: Provider) -> Provider:
        options = {name: values.get(value, value) for name, value in provider.options.items()}
        return Provider(provider.name, {name: value for name, value in options.items() if value is not None})

    return tuple(filled(provider) for provider in CHAINS.get(family, (_CPU,)))
