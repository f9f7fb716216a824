"""Devices OpenVINO can use here."""

import openvino as ov

from vmm_adapters.errors import runtime_errors


def list_devices() -> tuple[str, ...]:
    """Names as OpenVINO spells them, CPU first: `("CPU", "GPU.0")`. Raises `RuntimeFailed`."""
    with runtime_errors("asking OpenVINO for its devices", RuntimeError):
        found = ov.Core().available_devices
    return tuple(sorted(found, key=lambda name: (name != "CPU", name)))
