"""Which file of a model folder holds the decoder, and what its config says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm_adapters.errors import UnsupportedModel


@dataclass(frozen=True)
class ModelFolder:
    """A genai ONNX folder or an OpenVINO IR folder."""

    decoder: Path
    """The `.onnx` or `.xml` file."""
    context_length: int | None
    """What the config says; `None` when there is none."""


def read_model_folder(folder: Path) -> ModelFolder:
    """Find the decoder: the file `genai_config.json` names, else `model.onnx`, else `openvino_model.xml`.

    Raises `UnsupportedModel` when there is no such file or a config cannot be read.
    """
    genai = _read_json(folder / "genai_config.json").get("model", {})
    config = _read_json(folder / "config.json")
    named = genai.get("decoder", {}).get("filename")
    names = [named] if named else ["model.onnx", "openvino_model.xml"]
    for name in names:
        if (folder / name).is_file():
            return ModelFolder(folder / name, _context_length(genai, config))
    raise UnsupportedModel(
        f"{folder}: there is no {' or '.join(names)}",
        hint="an ONNX folder of onnxruntime-genai or an OpenVINO IR folder is needed",
    )


def _context_length(genai: dict[str, Any], config: dict[str, Any]) -> int | None:
    found = (
        genai.get("context_length")
        or config.get("max_position_embeddings")
        or config.get("text_config", {}).get("max_position_embeddings")
    )
    return int(found) if found else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    return content
