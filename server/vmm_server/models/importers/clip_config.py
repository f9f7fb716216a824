"""config.json of CLIP and SigLIP, as transformers has it (CLIPConfig, SiglipConfig): what it leaves out is as there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.json_files import positive, read_json_object

Family = Literal["clip", "siglip"]
FAMILIES: tuple[Family, ...] = ("clip", "siglip")
"""transformers' model_type; a SigLIP 2 of one picture size is `siglip` too."""
_MAX_LAYERS = 256
"""Far more than any model has: a graph is built for each."""
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_SIGLIP_TOWER: dict[str, object] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_CLIP_TOWER = _SIGLIP_TOWER | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT: Mapping[Family, Mapping[str, object]] = {
    "clip": _CLIP_TOWER
    | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    "siglip": _SIGLIP_TOWER | {"vocab_size": 32000, "max_position_embeddings": 64, "pad_token_id": 1},
}
_VISION: Mapping[Family, Mapping[str, object]] = {
    "clip": _CLIP_TOWER | {"num_channels": 3, "image_size": 224, "patch_size": 32},
    "siglip": _SIGLIP_TOWER | {"num_channels": 3, "image_size": 224, "patch_size": 16},
}
_PROJECTION = 512
"""CLIP's; SigLIP's is as wide as its towers."""
_LEGACY_EOS = 2
"""What old files say; the token whose state is taken is then the one of the greatest id, as transformers has it."""


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of one of the two transformers."""

    width: int
    inner: int
    num_layers: int
    num_heads: int
    activation: str
    """quick_gelu, gelu or gelu_tanh."""
    epsilon: float


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Sizes of a model."""

    family: Family
    text: Tower
    vision: Tower
    projection: int
    """Numbers in a vector."""
    vocab_size: int
    max_length: int
    """Tokens."""
    eos_token_id: int | None
    """Of CLIP: whose state is the text's. `None`: the greatest id of the text."""
    image_size: tuple[int, int]
    """Height and width."""
    patch_size: tuple[int, int]


def is_clip_family(family: object) -> TypeGuard[Family]:
    """Whether config.json's `model_type` is one of these."""
    return family in FAMILIES


def read_clip_config(folder: Path) -> ClipConfig:
    """Read a folder's config.json. Raises `CorruptFile`, `UnsupportedArchitecture` naming the field."""
    path = folder / "config.json"
    config = read_json_object(path)
    family = config.get("model_type")
    if not is_clip_family(family):
        raise UnsupportedArchitecture(
            f"{path}: model_type {family!r} is not supported; {' and '.join(FAMILIES)} are",
            hint="an ONNX export of the model may be: text_model.onnx and vision_model.onnx",
        )
    text = _part(config, "text_config", _TEXT[family], path)
    vision = _part(config, "vision_config", _VISION[family], path)
    if vision["num_channels"] != 3 or not vision.get("vision_use_head", True):
        raise UnsupportedArchitecture(f"{path}: vision_config: 3 channels and a pooling head are supported")
    image_size, patch_size = (_pair(vision[key], path, key) for key in ("image_size", "patch_size"))
    if any(side < patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise UnsupportedArchitecture(f"{path}: pictures of {image_size} have no patch of {patch_size}")
    tower = _tower(text, path, "text_config")
    eos = text.get("eos_token_id")
    projection = config.get("projection_dim", _PROJECTION) if family == "clip" else text.get("projection_size")
    return ClipConfig(
        family=family,
        text=tower,
        vision=_tower(vision, path, "vision_config"),
        projection=tower.width if projection is None else positive(projection, path, "projection_dim"),
        vocab_size=positive(text["vocab_size"], path, "text_config.vocab_size"),
        max_length=positive(text["max_position_embeddings"], path, "text_config.max_position_embeddings"),
        eos_token_id=eos if isinstance(eos, int) and eos != _LEGACY_EOS else None,
        image_size=image_size,
        patch_size=patch_size,
    )


def text_config(config: Mapping[str, object], family: Family, path: Path) -> Mapping[str, object]:
    """What config.json says of texts, and for what it leaves out transformers' defaults. Raises `CorruptFile`."""
    return _part(config, "text_config", _TEXT[family], path)


def _part(config: Mapping[str, object], key: str, defaults: Mapping[str, object], path: Path) -> dict[str, object]:
    """A part, with what old files repeat of it under another name: transformers lets that win."""
    part: dict[str, object] = dict(defaults)
    for name in (key, f"{key}_dict"):
        found = config.get(name)
        if not isinstance(found, dict | None):
            raise CorruptFile(f"{path}: {name} is no object", hint="fetch it again")
        part |= found or {}
    return part


def _tower(part: Mapping[str, object], path: Path, where: str) -> Tower:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    width, inner, layers, heads = (positive(part[name], path, f"{where}.{name}") for name in names)
    activation, epsilon = part["hidden_act"], part["layer_norm_eps"]
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UnsupportedArchitecture(f"{path}: {where}.hidden_act {activation!r} is not supported")
    if width % heads or layers > _MAX_LAYERS:
        raise UnsupportedArchitecture(f"{path}: {where}: {layers} layers of {heads} heads and a width of {width}")
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        raise CorruptFile(f"{path}: {where}.layer_norm_eps is {epsilon!r}", hint="fetch it again")
    return Tower(width, inner, layers, heads, _ACTIVATIONS[activation], float(epsilon))


def _pair(value: object, path: Path, key: str) -> tuple[int, int]:
    height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
    return positive(height, path, f"vision_config.{key}"), positive(width, path, f"vision_config.{key}")
