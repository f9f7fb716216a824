"""Which adapter and device to try for a model, best first.

Without measurements the order is a prior: a small model is fastest on the CPU (no transfers, no launch cost), a large
one on a GPU. A device asked for by name is the only one tried: an answer never comes from a device the user did not
choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vmm_server.errors import ModelLoadFailed

_LARGE_MODEL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Placement:
    """An adapter on a device."""

    adapter: str
    device: str

    def __str__(self) -> str:
        return f"{self.adapter}/{self.device}"


def placements(adapter: str, size_bytes: int, devices: Sequence[str], wanted: str) -> tuple[Placement, ...]:
    """Placements in the order to try. `wanted` is `auto` or a device name; `GPU` stands for any of its numbers.

    Raises `ModelLoadFailed` when the device wanted is not there.
    """
    if wanted.lower() != "auto":
        name = wanted.upper()
        matching = [device for device in devices if device.upper() == name or device.upper().startswith(f"{name}.")]
        if not matching:
            raise ModelLoadFailed(
                f"no device {wanted!r} for {adapter}; there is {', '.join(devices) or 'none'}",
                param="device",
                hint="set device to auto, or to one of these",
            )
        return tuple(Placement(adapter, device) for device in matching)
    large = size_bytes >= _LARGE_MODEL_BYTES
    usable = [device for device in devices if device.startswith(("CPU", "GPU"))]
    usable.sort(key=lambda device: device.startswith("GPU") != large)  # stable: GPU.0 stays before GPU.1
    return tuple(Placement(adapter, device) for device in usable)
