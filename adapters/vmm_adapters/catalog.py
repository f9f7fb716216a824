"""Adapter name → factory, imported on first use, so that a machine needs only the runtimes it uses."""

from importlib import import_module
from pathlib import Path
from typing import cast

from vmm_adapters.base import CausalLMRunner, RunnerFactory
from vmm_adapters.errors import RuntimeMissing
from vmm_adapters.types import RunnerOptions

CAUSAL_LM: dict[str, str] = {
    "echo": "vmm_adapters.echo:load_runner",
    "openvino": "vmm_adapters.openvino.runner:load_runner",
}
"""Adapters that implement `CausalLMRunner`, as `module:factory`."""


def load_causal_lm(adapter: str, folder: Path, options: RunnerOptions) -> CausalLMRunner:
    """Load `folder` (an ONNX or OpenVINO IR model folder) with the named adapter.

    Raises `RuntimeMissing` when its package is not installed, `KeyError` for a name that is not in `CAUSAL_LM`,
    else whatever `AdapterError` the adapter raises.
    """
    module, factory = CAUSAL_LM[adapter].split(":")
    try:
        load = cast(RunnerFactory, getattr(import_module(module), factory))
    except ModuleNotFoundError as error:
        raise RuntimeMissing(
            f"adapter {adapter!r} needs the package {error.name!r}", hint=f"pip install {error.name}"
        ) from error
    return load(folder, options)
