"""ONNX Runtime's exceptions, which have no common base, as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as state

from vmm_adapters.errors import DeviceLost, UnsupportedModel, runtime_errors

_CLASSES = {name: each for name, each in vars(state).items() if isinstance(each, type) and issubclass(each, Exception)}
# by name: older releases lack some of them
_LOST = tuple(each for name, each in _CLASSES.items() if name == "DeviceReset")
_UNSUPPORTED_NAMES = ("InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile")
_UNSUPPORTED = tuple(each for name, each in _CLASSES.items() if name in _UNSUPPORTED_NAMES)


@contextmanager
def ort_errors(doing: str) -> Iterator[None]:
    """Translate what ONNX Runtime raises; `doing` names the step."""
    with runtime_errors(doing, RuntimeError, ValueError, TypeError, *_CLASSES.values()):
        try:
            yield
        except _LOST as error:
            raise DeviceLost(f"{doing} failed: {error}") from error
        except _UNSUPPORTED as error:
            raise UnsupportedModel(f"{doing} failed: {error}") from error
