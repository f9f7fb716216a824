"""What `genai_config.json` says of a model, as far as this adapter has to know it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm_adapters.errors import UnsupportedModel

CONFIG = "genai_config.json"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that onnxruntime-genai reads."""

    decoder: Path
    """The `.onnx` file."""
    context_length: int
    vocab_size: int
    end_token_ids: tuple[int, ...]
    """The runtime ends an answer at any of them."""
    kv_values_per_token: int
    """Numbers that a token leaves in the KV cache."""
    is_paged: bool
    """Made for the runtime's paged KV cache and continuous batching."""
    has_tokenizer: bool


def read_model_folder(folder: Path) -> ModelFolder:
    """Read the config. Raises `UnsupportedModel`, which names what is missing."""
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model, decoder = config["model"], config["model"]["decoder"]
        ends = model["eos_token_id"]
        described = ModelFolder(
            decoder=folder / decoder["filename"],
            context_length=int(model["context_length"]),
            vocab_size=int(model["vocab_size"]),
            end_token_ids=tuple(ends) if isinstance(ends, list) else (int(ends),),
            kv_values_per_token=2
            * int(decoder["num_hidden_layers"])
            * int(decoder["num_key_value_heads"])
            * int(decoder["head_size"]),
            is_paged="dynamic_batching" in config.get("engine", {}),
            has_tokenizer=(folder / "tokenizer.json").is_file(),
        )
    except KeyError as error:
        raise UnsupportedModel(f"{path}: {error} is missing") from error
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedModel(f"{path}: {error}", hint="a folder of onnxruntime-genai is needed") from error
    if not described.decoder.is_file():
        raise UnsupportedModel(f"{folder}: there is no {described.decoder.name}")
    return described
