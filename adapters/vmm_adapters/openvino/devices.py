"""Which of the devices OpenVINO has is meant by a name."""

from typing import Any

from vmm_adapters.errors import RuntimeFailed, runtime_errors


def check_device(core: Any, device: str) -> None:
    """Raise `RuntimeFailed` naming the devices there are when `device` is none of them."""
    with runtime_errors("listing devices", RuntimeError):
        available = core.available_devices
    family, _, index = device.partition(".")
    if not any(found == device or (found.partition(".")[0] == family and not index) for found in available):
        raise RuntimeFailed(f"OpenVINO has no device {device!r} here", hint=f"it has {', '.join(available)}")
