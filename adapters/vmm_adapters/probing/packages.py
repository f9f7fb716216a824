"""Installed packages that matter to inference, from their metadata: nothing is imported."""

from collections.abc import Iterator
from importlib.metadata import Distribution, distributions

_FAMILIES = ("openvino", "onnxruntime", "nvidia-", "tensorrt")
_SINGLE = ("llvmlite", "numba", "numpy", "vmm-server")
NOT_PLUG_INS = ("onnxruntime", "onnxruntime_genai", "onnxruntime_extensions")
"""Modules of packages whose names begin with `onnxruntime` that plug nothing in."""


def installed_packages() -> dict[str, str]:
    """Name in small letters → version, by name. Of a package that is there twice, the one that is imported."""
    found: dict[str, str] = {}
    for name, distribution in _relevant():
        found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def plug_in_modules() -> tuple[str, ...]:
    """Modules of packages that plug a provider into ONNX Runtime: `onnxruntime_ep_webgpu`, `onnxruntime_qnn`."""
    modules = {
        module
        for name, distribution in _relevant()
        if name.startswith("onnxruntime")
        for module in _top_level(distribution)
        if module.startswith("onnxruntime") and module not in NOT_PLUG_INS
    }
    return tuple(sorted(modules))


def _relevant() -> Iterator[tuple[str, Distribution]]:
    for distribution in distributions():
        metadata = distribution.metadata
        name = str(metadata["Name"]).lower().replace("_", "-") if metadata else ""  # without: what an uninstall left
        if name in _SINGLE or name.startswith(_FAMILIES):
            yield name, distribution


def _top_level(distribution: Distribution) -> set[str]:
    return {file.parts[0] for file in distribution.files or () if len(file.parts) == 2 and file.name == "__init__.py"}
