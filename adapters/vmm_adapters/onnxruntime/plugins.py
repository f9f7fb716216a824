"""Execution providers that come as packages of their own (`onnxruntime-ep-…`) and are registered at run time.

Each such package offers `get_library_path()` and `get_ep_names()` (onnxruntime.ai/docs/execution-providers, plug-in
libraries).
"""

import logging
import os
import threading
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

import onnxruntime as ort

logger = logging.getLogger(__name__)

PREFIX = "onnxruntime-ep-"
_registering = threading.Lock()
_registered: dict[str, str | None] = {}
"""Package → why it could not be registered. The runtime's registry is one a process, and so is this."""


def installed_plugins() -> tuple[str, ...]:
    """Import names of the plug-in packages that are installed."""
    names = {str(each.metadata["Name"]).lower().replace("_", "-") for each in distributions()}
    return tuple(sorted(name.replace("-", "_") for name in names if name.startswith(PREFIX)))


def register_plugins() -> dict[str, str | None]:
    """Register every installed plug-in once a process; package → what is wrong with it, `None` when all is well.

    Older runtimes than 1.22 know no plug-ins; nothing is registered there. CUDA is told to count GPUs by their address,
    as the names of devices do, and not by their speed; it looks when it is first loaded.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not hasattr(ort, "register_execution_provider_library"):
        return {}
    with _registering:
        for name in installed_plugins():
            if name not in _registered:
                _registered[name] = _register(name)
        return dict(_registered)


def _register(name: str) -> str | None:
    try:
        package: Any = import_module(name)
        library = package.get_library_path()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"{name} has no library: {error}"
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:  # noqa: BLE001  (the runtime has a dozen error classes without a common base)
        logger.warning("%s: %s", name, error)
        return f"{library}: {error}"
    return None
