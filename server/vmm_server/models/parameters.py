"""Parameters as a Modelfile and Ollama's `options` spell them (docs.ollama.com/modelfile), and ours. Pure."""

import re
from collections.abc import Mapping

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.catalog import BACKENDS
from vmm_server.errors import InvalidRequest

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_predict": "max_tokens",
    "stop": "stop",
}
"""Ollama's names and those of `SamplingDefaults`."""
_NAME = re.compile(r"[\w.:,+-]{1,100}", re.ASCII)
"""Of a device or a backend."""
_LARGEST = 2**64
"""Far above what any parameter can mean."""

PARAMETERS: Mapping[str, type] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "tfs_z", "mirostat_tau", "mirostat_eta"), float),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("rope_frequency_base", "rope_frequency_scale"), float),
    **dict.fromkeys(("top_k", "repeat_last_n", "seed", "num_predict", "num_ctx", "num_keep", "mirostat"), int),
    **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_gqa", "num_thread", "draft_num_predict"), int),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "vocab_only", "use_mmap", "use_mlock"), bool),
    **dict.fromkeys(("logits_all", "penalize_newline"), bool),
    **dict.fromkeys(("device", "backend"), str),
    "stop": list,
}
"""Every parameter and its type; `stop` may be one text too. `device` and `backend` are VMM's own: where it has to run.
What tunes another runtime is kept and changes nothing here."""


def check_parameters(parameters: Mapping[str, object]) -> dict[str, object]:
    """The same parameters with every value in its type, `stop` as a list; those set to null are left out.

    Raises `InvalidRequest` naming the parameter that is unknown, or what its value should be.
    """
    return {name: _checked(name, value) for name, value in parameters.items() if value is not None}


def to_sampling(parameters: Mapping[str, object]) -> dict[str, object]:
    """Fields of `SamplingDefaults` that checked parameters set; a value of `None` takes a parent's away."""
    found: dict[str, object] = {}
    for name, value in parameters.items():
        if name in _SAMPLING:
            found[_SAMPLING[name]] = _in_our_words(name, value)
    return found


def from_sampling(sampling: SamplingDefaults) -> dict[str, object]:
    """The parameters that say what these defaults say."""
    values = sampling.model_dump(mode="json", exclude_none=True)
    return {name: values[ours] for name, ours in _SAMPLING.items() if ours in values}


def _in_our_words(name: str, value: object) -> object:
    """Also what stands for a random seed and for an answer as long as the context."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, int) and name == "seed":
        return None if value == -1 else value % 2**64
    if isinstance(value, int) and name == "num_predict":
        return value if value > 0 else None
    return value


def _checked(name: str, value: object) -> object:
    param = f"parameters.{name}"
    kind = PARAMETERS.get(name)
    if kind is None:
        raise InvalidRequest(
            f"unknown parameter '{name[:100]}'", param=param, hint=f"known are {', '.join(sorted(PARAMETERS))}"
        )
    if kind is str:
        return _place(name, value)
    if kind is list:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) and text for text in texts):
            return texts
        raise InvalidRequest(f"{param}: must be a text or a list of them, none of them empty", param=param)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InvalidRequest(f"{param}: must be true or false", param=param)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > _LARGEST:
        raise InvalidRequest(f"{param}: must be a number", param=param)
    if kind is float:
        return _in_range(name, float(value))
    if value != int(value):
        raise InvalidRequest(f"{param}: must be a whole number", param=param)
    return _in_range(name, int(value))


def _place(name: str, value: object) -> str:
    """A device or a backend; `auto` leaves it open again. Which of them are here is known when the model is loaded."""
    param = f"parameters.{name}"
    text = value.strip() if isinstance(value, str) else ""
    if not _NAME.fullmatch(text):
        raise InvalidRequest(f"{param}: must be a name", param=param, hint="vmm devices tells what is here")
    if name == "backend" and (text := text.lower()) not in (*BACKENDS, "auto"):
        raise InvalidRequest(f"{param}: must be one of {', '.join(BACKENDS)} or auto", param=param)
    return text


def _in_range(name: str, value: float) -> float:
    """Ranges outside which a generation could not run; Ollama's sampler bounds the rest, and so do we."""
    least = {"num_ctx": 1, "temperature": 0, "min_p": 0, "top_p": 0, "typical_p": 0}.get(name)
    if least is not None and value < least:
        raise InvalidRequest(f"parameters.{name}: must be at least {least}", param=f"parameters.{name}")
    if name in ("top_p", "min_p", "typical_p"):
        return min(value, 1.0)
    if name == "repeat_penalty" and value <= 0:
        raise InvalidRequest(f"parameters.{name}: must be more than 0", param=f"parameters.{name}")
    return value
