"""What a GGUF file's keys say about its decoder, checked before a tensor is read.

Key names are llama.cpp's (gguf-py/gguf/constants.py); what a missing key means is what llama.cpp takes it to mean.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.gguf_families import FAMILIES, Family, check_architecture
from vmm_server.models.importers.weights_source import KeySource

MAX_LAYERS = 1024
MAX_HEAD_SIZE = 4096
"""Both far above any model known: they bound what a hostile file can make us do."""
_NO_MODELS = {
    "adapter": "a LoRA adapter, which has to be merged into its model first",
    "mmproj": "a model's vision part alone, which is not supported",
}
"""By `general.type`."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding of some layers."""

    dimensions: int
    """Of a head, the first ones, that are rotated."""
    base: float
    scaling: Literal["none", "linear", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original_context_length: int = 0
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The decoder's sizes and constants. `family` is GGUF's architecture name."""

    family: str
    traits: Family
    num_layers: int
    context_length: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    epsilon: float
    rope: RopeConfig
    local_rope: RopeConfig | None
    """Of the layers with a window; `None`: as `rope`."""
    window: int | None
    """Positions a layer with a window sees, its own included."""
    windowed_layers: tuple[bool, ...]
    attention_scale: float
    logit_softcap: float | None
    """Logits are `cap * tanh(logits / cap)`."""
    attention_softcap: float | None = None
    """Attention scores are `cap * tanh(scores / cap)` before the softmax. OpenVINO has no such attention."""
    embedding_multiplier: float | None = None
    """Embeddings are multiplied by it, if the model names a number of its own."""
    residual_scale: float | None = None
    """What attention and MLP give is multiplied by it before it is added."""
    logit_divisor: float | None = None
    """Logits are divided by it."""
    unrotated_layers: frozenset[int] = frozenset()
    """Layers without rotary embedding."""

    @property
    def embedding_scale(self) -> float | None:
        """What embeddings are multiplied by, if anything."""
        if self.traits.scaled_embedding:
            return math.sqrt(self.hidden_size)
        return self.embedding_multiplier


class _Keys:
    """Typed look-ups under `<architecture>.`; a value of a wrong type or size is a `CorruptFile`."""

    def __init__(self, path: Path, metadata: Mapping[str, object], architecture: str) -> None:
        self._path, self._metadata, self.architecture = path, metadata, architecture

    def wrong(self, key: str, value: object, expected: str) -> CorruptFile:
        return CorruptFile(
            f"{self._path}: {self.architecture}.{key} is {value!r}, {expected} is expected",
            hint="fetch the file again, or get one made by llama.cpp's converter",
        )

    def unsupported(self, what: str) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(f"{self._path}: {self.architecture} with {what} is not supported")

    def get(self, key: str) -> object | None:
        return self._metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None, *, at_most: int = 2**31 - 1) -> int:
        """A positive integer. A list of equal ones (one a layer) counts as one."""
        value = default if (given := self.get(key)) is None else given
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise self.unsupported(f"a {key} that differs between layers")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= at_most:
            raise self.wrong(key, value, f"a whole number from 1 to {at_most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = default if (given := self.get(key)) is None else given
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A positive finite number; `None` for 0, `default` if the key is missing."""
        return default if (value := self.get(key)) is None else self.number(key) if value else None


def read_config(file: KeySource) -> DecoderConfig:
    """Read and check the decoder's keys. Raises `UnsupportedArchitecture`, or `CorruptFile` naming the key."""
    architecture = file.metadata.get("general.architecture")
    if (kind := file.metadata.get("general.type")) in _NO_MODELS:
        raise UnsupportedArchitecture(f"{file.path}: is {_NO_MODELS[str(kind)]}", hint="name a model's own GGUF file")
    if not isinstance(architecture, str):
        raise CorruptFile(f"{file.path}: has no general.architecture", hint="get a file made by llama.cpp's converter")
    check_architecture(file.path, architecture)
    keys, traits = _Keys(file.path, file.metadata, architecture), FAMILIES[architecture]
    _refuse_variants(keys, traits)
    num_layers = keys.integer("block_count", at_most=MAX_LAYERS)
    hidden_size, num_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    num_kv_heads = keys.integer("attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise keys.wrong("attention.head_count_kv", num_kv_heads, f"a divisor of {num_heads}")
    head_size = keys.integer("attention.key_length", hidden_size // num_heads, at_most=MAX_HEAD_SIZE)
    if keys.integer("attention.value_length", head_size) != head_size:
        raise keys.unsupported("value heads of another size than key heads")
    context_length = keys.integer("context_length")
    rope = _read_rope(keys, head_size, context_length)
    window = traits.window
    if (given := keys.get("attention.sliding_window")) is not None:
        window = keys.integer("attention.sliding_window") if given != 0 else None
    return DecoderConfig(
        family=architecture,
        traits=traits,
        num_layers=num_layers,
        context_length=context_length,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        rope=rope,
        local_rope=_read_local_rope(keys, traits, rope) if window else None,
        window=window,
        windowed_layers=_windowed_layers(keys, traits, num_layers) if window else (False,) * num_layers,
        attention_scale=_attention_scale(keys, architecture, num_layers, hidden_size // num_heads, head_size),
        logit_softcap=keys.optional("final_logit_softcapping", traits.logit_softcap),
        attention_softcap=keys.optional("attn_logit_softcapping", traits.attention_softcap),
        embedding_multiplier=keys.optional("embedding_scale"),
        residual_scale=keys.optional("residual_scale"),
        logit_divisor=keys.optional("logit_scale"),
        unrotated_layers=_unrotated_layers(keys, traits, num_layers),
    )


def _refuse_variants(keys: _Keys, traits: Family) -> None:
    """Keys that change what the decoder computes in ways that are not built here."""
    for key, what in (
        ("expert_count", "experts"),
        ("attention.clamp_kqv", "clamped projections"),
        ("attention.temperature_length", "attention temperature"),
        ("attention.shared_kv_layers", "layers that share keys and values"),
        ("rope.dimension_sections", "rotary sections"),
        ("nextn_predict_layers", "next-token prediction layers"),
    ):
        if keys.get(key):
            raise keys.unsupported(what)
    if keys.get("attn_logit_softcapping") and traits.attention_softcap is None:
        raise keys.unsupported("soft-capped attention")
    if keys.get("attention.causal") is False:
        raise keys.unsupported("attention that is not causal")


def _read_rope(keys: _Keys, head_size: int, context_length: int) -> RopeConfig:
    dimensions = keys.integer("rope.dimension_count", head_size, at_most=head_size)
    if dimensions % 2:
        raise keys.wrong("rope.dimension_count", dimensions, "an even number")
    base = keys.number("rope.freq_base", 10000.0)
    if base <= 1:
        raise keys.wrong("rope.freq_base", base, "a number above 1")
    original_context_length = keys.integer("rope.scaling.original_context_length", context_length)
    rope = RopeConfig(
        dimensions,
        base,
        original_context_length=original_context_length,
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0),
    )
    scaling = keys.get("rope.scaling.type") or "linear"
    if scaling == "none":
        return rope
    if scaling == "longrope":  # all of it is in tensors
        return replace(rope, scaling="longrope")
    if scaling == "linear":
        factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
        return replace(rope, scaling="linear", factor=factor) if factor != 1 else rope
    if scaling != "yarn":
        raise keys.unsupported(f"rope scaling {scaling!r}")
    if keys.get("rope.scaling.yarn_log_multiplier"):
        raise keys.unsupported("a yarn log multiplier")
    return replace(
        rope,
        scaling="yarn",
        factor=keys.number("rope.scaling.factor"),
        attention_factor=keys.number("rope.scaling.attn_factor", keys.number("rope.scaling.yarn_attn_factor", 1.0)),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _read_local_rope(keys: _Keys, traits: Family, rope: RopeConfig) -> RopeConfig | None:
    """Scaling never applies to the layers with a window (llama.cpp: `rope_freq_scale_train_swa` is 1)."""
    default = rope.base if traits.unscaled_local_rope else traits.local_rope_base
    if default is None:
        return None
    local = RopeConfig(rope.dimensions, keys.number("rope.freq_base_swa", default))
    return None if local == replace(rope, original_context_length=0) else local


def _unrotated_layers(keys: _Keys, traits: Family, num_layers: int) -> frozenset[int]:
    if traits.optional_rope and keys.get("rope.scaling.finetuned") is False:
        return frozenset(range(num_layers))
    period = traits.unrotated_period
    return frozenset(range(period - 1, num_layers, period)) if period else frozenset()


def _windowed_layers(keys: _Keys, traits: Family, num_layers: int) -> tuple[bool, ...]:
    """The pattern is a list of flags, a period, or the family's; a family without one has a window everywhere."""
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) < num_layers:
            raise keys.wrong("attention.sliding_window_pattern", pattern, f"one flag for each of {num_layers} layers")
        return tuple(bool(flag) for flag in pattern[:num_layers])
    if pattern is None and traits.window_period is None:
        return (True,) * num_layers
    period = keys.integer("attention.sliding_window_pattern", traits.window_period)
    return tuple(layer % period < period - 1 for layer in range(num_layers))


def _attention_scale(keys: _Keys, architecture: str, num_layers: int, width_per_head: int, head_size: int) -> float:
    """Softmax is of `scale * q·k`. The 27B of Gemma, known by their layers, scale by their width (llama.cpp)."""
    if keys.get("attention.scale"):
        return keys.number("attention.scale")
    is_gemma_27b = (architecture, num_layers) in (("gemma2", 46), ("gemma3", 62))
    return 1.0 / math.sqrt(width_per_head if is_gemma_27b else head_size)
