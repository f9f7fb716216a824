"""Adapter name → what it offers, imported on first use, so that a machine needs only the runtimes it uses."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from vmm_adapters.base import (
    CausalLMRunner,
    Encoder,
    EncoderFactory,
    Phonemizer,
    Resampler,
    ResamplerFactory,
    RunnerFactory,
    Session,
    SessionFactory,
    TextBackend,
    TextBackendFactory,
)
from vmm_adapters.device import DeviceKind
from vmm_adapters.errors import RuntimeMissing
from vmm_adapters.types import EncoderOptions, RunnerOptions, SessionOptions

CAUSAL_LM: dict[str, str] = {
    "cpu": "vmm_adapters.cpu.runner:load_runner",
    "echo": "vmm_adapters.echo:load_runner",
    "openvino": "vmm_adapters.openvino.runner:load_runner",
}
"""Adapters that implement `CausalLMRunner`, as `module:factory`."""

TEXT_BACKENDS: dict[str, str] = {
    "echo-backend": "vmm_adapters.echo_backend:load_backend",
    "onnxruntime-genai": "vmm_adapters.onnxruntime_genai.backend:load_backend",
    "openvino-genai": "vmm_adapters.openvino_genai.backend:load_backend",
}
"""Adapters that implement `TextBackend`, as `module:factory`."""

ENCODERS: dict[str, str] = {
    "echo": "vmm_adapters.echo_encoder:load_encoder",
    "openvino": "vmm_adapters.openvino.encoder:load_encoder",
    "onnxruntime": "vmm_adapters.onnxruntime.encoder:load_encoder",
}
"""Adapters that implement `Encoder`, as `module:factory`."""

SESSIONS: dict[str, str] = {
    "openvino": "vmm_adapters.openvino.session:load_session",
    "onnxruntime": "vmm_adapters.onnxruntime.session:load_session",
}
"""Adapters that implement `Session`, as `module:factory`."""

PHONEMIZERS: dict[str, str] = {"espeak": "vmm_adapters.espeak:load_phonemizer"}
"""Adapters that implement `Phonemizer`, as `module:factory`."""

RESAMPLERS: dict[str, str] = {"cpu": "vmm_adapters.cpu.resampling:load_resampler"}
"""Adapters that implement `Resampler`, as `module:factory`."""

Form = Literal["onnx", "openvino", "echo"]
"""How a model lies on disk: an ONNX folder (onnxruntime-genai's, or an encoder's), OpenVINO IR, or the test model."""
Task = Literal["text", "vision-text", "encode", "session"]
"""What is asked of a model: text from text, text from text and images, one row of numbers, or arrays from arrays."""


@dataclass(frozen=True, slots=True)
class Runs:
    """What an adapter is for."""

    tasks: frozenset[Task]
    forms: frozenset[Form]
    kinds: frozenset[DeviceKind]


_ALL_KINDS = frozenset(DeviceKind)
_CPU = frozenset((DeviceKind.CPU,))
_CPU_AND_GPU = frozenset((DeviceKind.CPU, DeviceKind.GPU))

RUNS: dict[str, Runs] = {
    "cpu": Runs(frozenset(("text",)), frozenset(("onnx",)), _CPU),
    "openvino": Runs(frozenset(("text", "encode", "session")), frozenset(("onnx", "openvino")), _CPU_AND_GPU),
    "onnxruntime-genai": Runs(frozenset(("text",)), frozenset(("onnx",)), _ALL_KINDS),
    "onnxruntime": Runs(frozenset(("encode", "session")), frozenset(("onnx",)), _ALL_KINDS),
    "openvino-genai": Runs(frozenset(("text", "vision-text")), frozenset(("openvino",)), _ALL_KINDS),
    "echo": Runs(frozenset(("text", "encode")), frozenset(("echo",)), _ALL_KINDS),
}
"""Adapters, the one that is usually best first."""

BACKENDS = tuple(name for name, runs in RUNS.items() if "echo" not in runs.forms)
"""Those that a user can ask for."""


def _import(adapter: str, target: str) -> Any:
    module, name = target.split(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise RuntimeMissing(
            f"adapter {adapter!r} needs the package {error.name!r}", hint=f"pip install {error.name}"
        ) from error


def load_causal_lm(adapter: str, folder: Path, options: RunnerOptions) -> CausalLMRunner:
    """Load `folder` (an ONNX or OpenVINO IR model folder) with the named adapter.

    Raises `RuntimeMissing` when its package is not installed, `KeyError` for a name that is not in `CAUSAL_LM`,
    else whatever `AdapterError` the adapter raises.
    """
    load = cast(RunnerFactory, _import(adapter, CAUSAL_LM[adapter]))
    return load(folder, options)


def load_text_backend(adapter: str, folder: Path, options: RunnerOptions) -> TextBackend:
    """Load `folder` with the named adapter, which schedules by itself. Raises as `load_causal_lm` does."""
    load = cast(TextBackendFactory, _import(adapter, TEXT_BACKENDS[adapter]))
    return load(folder, options)


def load_encoder(adapter: str, folder: Path, options: EncoderOptions) -> Encoder:
    """Load `folder` (an encoder's ONNX folder) with the named adapter. Raises as `load_causal_lm` does."""
    load = cast(EncoderFactory, _import(adapter, ENCODERS[adapter]))
    return load(folder, options)


def load_session(adapter: str, path: Path, options: SessionOptions) -> Session:
    """Load a one-shot model's file with the named adapter. Raises as `load_causal_lm` does."""
    load = cast(SessionFactory, _import(adapter, SESSIONS[adapter]))
    return load(path, options)


def load_phonemizer(adapter: str) -> Phonemizer:
    """Load the named phonemizer. Raises `RuntimeMissing` when it is not installed, else other `AdapterError`s."""
    return cast(Phonemizer, _import(adapter, PHONEMIZERS[adapter])())


def load_resampler(adapter: str, cache_dir: Path | None) -> Resampler:
    """Load the named resampler; `cache_dir` serves every model. Raises `AdapterError`."""
    return cast(ResamplerFactory, _import(adapter, RESAMPLERS[adapter]))(cache_dir)
