"""Which execution providers run a text model on which device, best first. Plain data.

Names and options are onnxruntime-genai's (`Config.append_provider`, `set_provider_option`). Every chain ends with the
CPU, for which no provider is named; where a device is forced, it does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vmm_adapters.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider, with what is to know of it."""

    name: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`{index}` and `{device}` are filled in."""
    device_type: str | None = None
    """What `Model.device_type` says when it runs there; `None`: it does not tell."""
    continues: bool = True
    """Whether a session can have a second turn (SupportsContinuousDecoding in src/generators.cpp)."""


CPU = Provider("CPU", device_type="CPU")
_BY_INDEX = MappingProxyType({"device_id": "{index}"})
_OPENVINO = Provider("OpenVINO", MappingProxyType({"device_type": "{device}"}))

CHAINS: Mapping[str, tuple[Provider, ...]] = MappingProxyType(
    {
        "CPU": (),
        "CUDA": (
            Provider("NvTensorRtRtx", _BY_INDEX, "NvTensorRtRtx"),
            Provider("cuda", _BY_INDEX, "CUDA"),
        ),
        "ROCM": (Provider("MIGraphX", _BY_INDEX, continues=False),),
        "DML": (Provider("DML", _BY_INDEX, "DirectML", continues=False),),
        "WEBGPU": (Provider("WebGPU", device_type="WebGPU"),),
        "GPU": (_OPENVINO,),
        "NPU": (_OPENVINO,),
    }
)
"""Device family (a device's name up to its dot) → providers to try before the CPU."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider and the device that the model then runs on."""

    provider: Provider
    device: str
    options: Mapping[str, str]


def candidates(device: str, *, allow_fallback: bool) -> tuple[Candidate, ...]:
    """What to try for a device, in order. Raises `UnsupportedModel` when that is nothing."""
    family, _, index = device.upper().partition(".")
    if family != "CPU" and family in CHAINS and family != "NPU":
        device = f"{family}.{index or '0'}"
    values = {"{index}": index or "0", "{device}": device.upper()}
    chain = [
        Candidate(provider, device, {name: values.get(value, value) for name, value in provider.options.items()})
        for provider in CHAINS.get(family, ())
    ]
    if allow_fallback or family == "CPU":
        chain.append(Candidate(CPU, "CPU", {}))
    if not chain:
        raise UnsupportedModel(
            f"onnxruntime-genai has no execution provider for {device}", hint=f"it has them for {', '.join(CHAINS)}"
        )
    return tuple(chain)
