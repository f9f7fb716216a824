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

logger = logging.getLogger(__name__)

PREFIX = "onnxruntime-ep-"
_registering = threading.Lock()
_registered: dict[tuple[str, str], str | None] = {}
"""(runtime, package) → why it could not be registered. A runtime's registry is one a process, and so is this."""


def installed_plugins() -> tuple[str, ...]:
    """Import names of the plug-in packages that are installed."""
    names = {str(each.metadata["Name"]).lower().replace("_", "-") for each in distributions()}
    return tuple(sorted(name.replace("-", "_") for name in names if name.startswith(PREFIX)))


def register_plugins(runtime: Any) -> dict[str, str | None]:
    """Register every installed plug-in with `onnxruntime` or `onnxruntime_genai`, each of which keeps its own list.

    Once a process. Gives package → what is wrong with it, `None` when all is well. Runtimes that know no plug-ins
    (ONNX Runtime before 1.22) get none. CUDA is told to count GPUs by their address, as the names of devices do, and
    not by their speed; it looks when it is first loaded.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not hasattr(runtime, "register_execution_provider_library"):
        return {}
    with _registering:
        for name in installed_plugins():
            if (runtime.__name__, name) not in _registered:
                _registered[runtime.__name__, name] = _register(runtime, name)
        return {name: error for (owner, name), error in _registered.items() if owner == runtime.__name__}


def _register(runtime: Any, name: str) -> str | None:
    try:
        package: Any = import_module(name)
        library = package.get_library_path()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"{name} has no library: {error}"
    try:
        runtime.register_execution_provider_library(name, library)
    except Exception as error:  # noqa: BLE001  (the runtime has a dozen error classes without a common base)
        logger.warning("%s: %s", name, error)
        return f"{library}: {error}"
    return None
