"""What an OpenVINO IR folder says of its model, as far as this adapter has to know it."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import openvino as ov

from vmm_adapters.errors import UnsupportedModel, runtime_errors

_BLIND = "openvino_model.xml"
_SEEING = "openvino_language_model.xml"
_PARTS = ("text_config", "llm_config", "language_config")
"""Where a config keeps what it says of the decoder of a model that sees."""
_UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that openvino-genai reads."""

    sees: bool
    """Whether images can be part of its prompts."""
    context_length: int
    vocab_size: int
    kv_values_per_token: int
    """Numbers that a token leaves in the KV cache; at least 1."""
    weight_bytes: int
    """Of all its parts."""


def read_model_folder(folder: Path) -> ModelFolder:
    """Read the config and the decoder's graph. Raises `UnsupportedModel`, which names what is missing."""
    sees = (folder / _SEEING).is_file()
    decoder = folder / (_SEEING if sees else _BLIND)
    if not decoder.is_file():
        raise UnsupportedModel(
            f"{folder}: there is no {_SEEING} or {_BLIND}",
            hint="an OpenVINO IR folder is needed, as optimum-intel makes them",
        )
    if not (folder / "openvino_tokenizer.xml").is_file():
        raise UnsupportedModel(
            f"{folder}: there is no openvino_tokenizer.xml",
            hint="make one with convert_tokenizer, of the package openvino-tokenizers",
        )
    config = _read_config(folder / "config.json")
    with runtime_errors(f"reading {decoder}", RuntimeError):
        model = ov.Core().read_model(decoder)
        logits = model.outputs[0].partial_shape
        states = [variable.info.data_shape for variable in model.get_variables()]
    vocab_size = logits[-1].get_length() if logits[-1].is_static else _find(config, "vocab_size")
    if vocab_size is None:
        raise UnsupportedModel(f"{folder}: neither the graph nor config.json says how many tokens there are")
    return ModelFolder(
        sees=sees,
        context_length=_find(config, "max_position_embeddings") or _UNKNOWN_CONTEXT,
        vocab_size=vocab_size,
        kv_values_per_token=max(1, sum(_values_per_token(shape) for shape in states)),
        weight_bytes=sum(path.stat().st_size for path in folder.glob("openvino_*.bin")),
    )


def _values_per_token(shape: Any) -> int:
    """Of a state `[batch, heads, tokens, head size]`; one that does not grow with the text is not a KV cache."""
    num_dynamic = sum(dimension.is_dynamic for dimension in shape)
    return prod(dimension.get_length() for dimension in shape if dimension.is_static) if num_dynamic == 2 else 0


def _find(config: dict[str, Any], key: str) -> int | None:
    parts = [config, *(config[part] for part in _PARTS if isinstance(config.get(part), dict))]
    return next((int(part[key]) for part in parts if isinstance(part.get(key), int)), None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    return config
