"""Sizes of a Whisper model, and its config.json as transformers has it (WhisperConfig)."""

from dataclasses import dataclass
from pathlib import Path

from vmm_server.errors import UnsupportedArchitecture
from vmm_server.models.importers.json_files import positive, read_json_object

FAMILY = "whisper"
"""transformers' model_type."""
_MAX_LAYERS = 256
"""Far more than any model has: a graph is built for each."""


@dataclass(frozen=True, slots=True)
class WhisperConfig:
    """Fields are called as in config.json."""

    d_model: int
    vocab_size: int
    num_mel_bins: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    max_source_positions: int
    """Frames that leave the encoder: half of those that go in."""
    max_target_positions: int
    """Tokens that the decoder has positions for, the prompt's included."""


def read_whisper_config(folder: Path) -> WhisperConfig:
    """Read a folder's config.json. Raises `CorruptFile`, `UnsupportedArchitecture` naming the field."""
    path = folder / "config.json"
    config = read_json_object(path)
    if config.get("model_type") != FAMILY:
        raise UnsupportedArchitecture(f"{path}: model_type is {config.get('model_type')!r}, not {FAMILY!r}")
    for key, wanted in (("activation_function", "gelu"), ("scale_embedding", False), ("tie_word_embeddings", True)):
        if config.get(key, wanted) != wanted:
            raise UnsupportedArchitecture(f"{path}: {key} is {config[key]!r}; {wanted!r} is supported")
    sizes = {key: positive(config.get(key), path, key) for key in WhisperConfig.__dataclass_fields__}
    return check_sizes(WhisperConfig(**sizes), path)


def check_sizes(config: WhisperConfig, path: Path) -> WhisperConfig:
    """The sizes, if they fit each other. Raises `UnsupportedArchitecture` naming `path`, which they come from."""
    for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
        if config.d_model % heads:
            raise UnsupportedArchitecture(f"{path}: {heads} heads do not divide a width of {config.d_model}")
    if max(config.encoder_layers, config.decoder_layers) > _MAX_LAYERS:
        raise UnsupportedArchitecture(f"{path}: has more than {_MAX_LAYERS} layers")
    return config
