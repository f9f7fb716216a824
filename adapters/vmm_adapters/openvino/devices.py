"""Devices OpenVINO can use here."""

from typing import Any

import openvino as ov

from vmm_adapters.errors import RuntimeFailed, runtime_errors


def list_devices() -> tuple[str, ...]:
    """Names as OpenVINO spells them, CPU first: `("CPU", "GPU.0")`. Raises `RuntimeFailed`."""
    with runtime_errors("asking OpenVINO for its devices", RuntimeError):
        found = ov.Core().available_devices
    return tuple(sorted(found, key=lambda name: (name != "CPU", name)))


def check_device(core: Any, device: str) -> None:
    """Raise `RuntimeFailed` naming the devices there are when `device` is none of them."""
    with runtime_errors("listing devices", RuntimeError):
        available = core.available_devices
    family, _, index = device.partition(".")
    if not any(found == device or (found.partition(".")[0] == family and not index) for found in available):
        raise RuntimeFailed(f"OpenVINO has no device {device!r} here", hint=f"it has {', '.join(available)}")
