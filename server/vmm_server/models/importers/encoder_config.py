"""config.json of the encoder families that are known: BERT and those built like it."""

from dataclasses import dataclass
from pathlib import Path

from vmm_server.errors import UnsupportedArchitecture
from vmm_server.models.importers.json_files import positive, read_json_object

POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families whose first position is the one after that of the padding token."""
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes of one encoder."""

    family: str
    """transformers' model_type: bert, roberta, …"""
    hidden_size: int
    num_layers: int
    num_heads: int
    activation: str
    """gelu, gelu_tanh or relu."""
    layer_norm_eps: float
    first_position: int
    """Row of the position table that the first token takes."""
    scores_pairs: bool
    """A cross-encoder: the model ends in a classification head."""


def read_encoder_config(folder: Path) -> EncoderConfig:
    """Read a safetensors folder's config.json. Raises `CorruptFile`, `UnsupportedArchitecture` naming the family."""
    path = folder / "config.json"
    config = read_json_object(path)
    family = config.get("model_type")
    names = _NAMES.get(family) if isinstance(family, str) else None
    if not isinstance(family, str) or names is None:
        known = ", ".join(_NAMES)
        raise UnsupportedArchitecture(
            f"{path}: the encoder family {family!r} is not supported",
            hint=f"supported: {known}; an ONNX file of the model (onnx/model.onnx) is used whatever its family",
        )
    sizes = {key: positive(config.get(name), path, name) for key, name in names.items()}
    activation = config.get("hidden_act", config.get("activation", "gelu"))
    positions = config.get("position_embedding_type", "absolute")
    if activation not in _ACTIVATIONS or positions != "absolute":
        raise UnsupportedArchitecture(f"{path}: hidden_act {activation!r}, position_embedding_type {positions!r}")
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise UnsupportedArchitecture(f"{path}: {sizes['num_heads']} heads do not divide {sizes['hidden_size']}")
    eps = config.get("layer_norm_eps", 1e-12)
    return EncoderConfig(
        family=family,
        **sizes,
        activation=_ACTIVATIONS[activation],
        layer_norm_eps=float(eps) if isinstance(eps, int | float) else 1e-12,
        first_position=first_position(config),
        scores_pairs=is_cross_encoder(config),
    )


def first_position(config: dict[str, object]) -> int:
    """Row of the position table that the first token takes."""
    padding = config.get("pad_token_id")
    if config.get("model_type") not in POSITIONS_AFTER_PADDING:
        return 0
    return padding + 1 if isinstance(padding, int) else 2


def is_cross_encoder(config: dict[str, object]) -> bool:
    """Whether the model scores a text or a pair of texts rather than embedding it."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names)


_BERT = {"hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
_NAMES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": {"hidden_size": "dim", "num_layers": "n_layers", "num_heads": "n_heads"},
    "mpnet": _BERT,
}

FAMILIES = tuple(_NAMES)
"""Known by transformers' `model_type`."""
