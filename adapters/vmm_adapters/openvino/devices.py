"""Which of the devices OpenVINO has is meant by a name."""

from typing import Any

from vmm_adapters.errors import RuntimeFailed, runtime_errors

HETERO = "HETERO:"
"""Before the names of devices among which a model is shared out: `HETERO:GPU.0,GPU.1`."""


def check_device(core: Any, device: str) -> None:
    """Raise `RuntimeFailed` naming the devices there are when `device`, or a part of it, is none of them."""
    with runtime_errors("listing devices", RuntimeError):
        available = core.available_devices
    for part in device.removeprefix(HETERO).split(","):
        family, _, index = part.partition(".")
        # the first of a family is called `GPU` where it is the only one, and answers to `GPU.0` all the same
        names = {part, family} if index == "0" else {part}
        if not any(found in names or (found.partition(".")[0] == part) for found in available):
            raise RuntimeFailed(f"OpenVINO has no device {part!r} here", hint=f"it has {', '.join(available)}")
