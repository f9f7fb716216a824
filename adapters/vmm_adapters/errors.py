"""What can go wrong below the engine.

AdapterError
├── RuntimeMissing     the runtime's package is not installed
├── UnsupportedModel   the runtime is there but cannot run this file
├── OutOfMemory        the device has no room for the model or its KV blocks
└── RuntimeFailed      the runtime raised while loading or computing
    └── DeviceLost     the device is gone: nothing will run on it any more

A concrete adapter wraps every call into its runtime in `runtime_errors()`, so nothing above it ever sees
an OpenVINO or ONNX Runtime exception.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class AdapterError(Exception):
    """Base of every error an adapter raises. `hint` says what the user can do, in one line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RuntimeMissing(AdapterError):
    """The package that would run this model is not installed."""


class UnsupportedModel(AdapterError):
    """The runtime cannot run this model; the message names the operator, shape or type."""


class OutOfMemory(AdapterError):
    """The device has no room for the weights or the KV blocks asked for."""


class RuntimeFailed(AdapterError):
    """The runtime raised; its own words are in the message."""


class DeviceLost(RuntimeFailed):
    """The device was removed, reset or hung; every later call would fail too."""


@contextmanager
def runtime_errors(doing: str, *foreign: type[Exception]) -> Iterator[None]:
    """Translate the exceptions a runtime raises (`foreign`) into this tree. `doing` names the step."""
    try:
        yield
    except AdapterError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"out of memory while {doing}", hint="lower memory_budget or context_length") from error
    except foreign as error:
        raise RuntimeFailed(f"{doing} failed: {error}") from error
