"""config.json of a text model, as transformers writes it, in the words of GGUF.

The families are those that `gguf_config` knows, and it is `gguf_config` that reads the keys made here: a config.json is
one more way to say the same. What a missing entry means is what the family's configuration class in transformers takes
it to mean (src/transformers/models/*/configuration_*.py); entries of its version 5 and of those before are read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.gguf_config import MAX_HEAD_SIZE, MAX_LAYERS, DecoderConfig, read_config
from vmm_server.models.importers.json_files import number, positive, read_json_object
from vmm_server.models.importers.safetensors_rope import rope_keys

_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_ATTENTION = _QKV | {"attn_output"}
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_GELU = ("gelu_pytorch_tanh", "gelu_new")
_GRANITE_SCALES = (
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("attention_multiplier", "attention.scale"),
    ("logits_scaling", "logit_scale"),
)


@dataclass(frozen=True, slots=True)
class TextFamily:
    """What a `model_type` implies, and what its class takes for entries that are missing."""

    architecture: str
    """GGUF's name."""
    model_class: str
    """transformers' class: others of the family are classifiers, or draft heads, or need code of their own."""
    is_tied: bool = False
    head_size: int | None = None
    """`None`: the width divided among the heads."""
    epsilon: float = 1e-6
    rope_base: float = 10000.0
    partial_rope: bool = False
    """`partial_rotary_factor` counts."""
    window: int | None = None
    window_switch: bool = False
    """There is a window only if `use_sliding_window` says so, from layer `max_window_layers` on."""
    window_period: int | None = None
    """Every n-th layer has no window."""
    optional_groups: bool = False
    """Without `num_key_value_heads` there are as many as query heads."""
    biases: frozenset[str] = frozenset()
    """Projections with a bias, in GGUF's words, whatever the entries say."""
    activations: tuple[str, ...] = ("silu",)
    """Names of the one that is built, the usual one first."""
    scales: tuple[tuple[str, str], ...] = ()
    """Entries that are 1 where missing, and GGUF's keys."""
    query_scalar: bool = False
    """Attention is scaled by `query_pre_attn_scalar`."""
    offset_norms: bool = False
    """Norms are stored minus one."""


FAMILIES = {
    "llama": TextFamily("llama", "LlamaForCausalLM", optional_groups=True),
    "mistral": TextFamily("llama", "MistralForCausalLM", window=4096),
    "qwen2": TextFamily("qwen2", "Qwen2ForCausalLM", window=4096, window_switch=True, biases=_QKV),
    "qwen3": TextFamily("qwen3", "Qwen3ForCausalLM", head_size=128, window=4096, window_switch=True),
    "gemma3_text": TextFamily(
        "gemma3",
        "Gemma3ForCausalLM",
        is_tied=True,
        head_size=256,
        rope_base=1e6,
        window=4096,
        window_period=6,
        activations=_GELU,
        query_scalar=True,
        offset_norms=True,
    ),
    "gemma2": TextFamily(
        "gemma2",
        "Gemma2ForCausalLM",
        is_tied=True,
        head_size=256,
        window=4096,
        window_period=2,
        activations=_GELU,
        query_scalar=True,
        offset_norms=True,
    ),
    "gemma": TextFamily(
        "gemma",
        "GemmaForCausalLM",
        is_tied=True,
        head_size=256,
        activations=(*_GELU, "gelu"),  # what the first files had, and meant as the others
        offset_norms=True,
    ),
    "phi3": TextFamily("phi3", "Phi3ForCausalLM", epsilon=1e-5, partial_rope=True, optional_groups=True),
    "granite": TextFamily("granite", "GraniteForCausalLM", optional_groups=True, scales=_GRANITE_SCALES),
    "smollm3": TextFamily("smollm3", "SmolLM3ForCausalLM", is_tied=True, rope_base=2e6, window_switch=True),
    "olmo2": TextFamily("olmo2", "Olmo2ForCausalLM", epsilon=1e-5, optional_groups=True),
    "olmo3": TextFamily(
        "olmo2",
        "Olmo3ForCausalLM",
        epsilon=1e-5,
        rope_base=500000.0,
        window=4096,
        window_period=4,
        optional_groups=True,
    ),
}
"""By transformers' `model_type`."""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A checked config.json."""

    path: Path
    family: TextFamily
    metadata: Mapping[str, object]
    """GGUF's keys."""
    decoder: DecoderConfig
    vocab_size: int
    """Rows of the embedding, if config.json is right."""
    is_tied: bool
    """The embedding makes the logits too; an `lm_head.weight` is not looked at, as in transformers."""
    biases: frozenset[str]
    """Projections with a bias, in GGUF's words."""
    rope_factors: NDArray[np.float32] | None
    """What rotary frequencies are divided by: Llama 3's, or LongRoPE's for the whole context."""


@dataclass(frozen=True, slots=True)
class _Keys:
    path: Path
    metadata: Mapping[str, object]


def read_text_config(folder: Path) -> TextConfig:
    """Read a folder's config.json.

    Raises `UnsupportedArchitecture` naming the family or variant, `ImportFailed` for quantised weights, `CorruptFile`
    naming the entry.
    """
    path = folder / "config.json"
    config = read_json_object(path)
    family = _family(config, path)
    _refuse_variants(config, family, path)
    prefix = f"{family.architecture}."
    rope, factors = rope_keys(
        config, path, _head_size(config, family, path), family.rope_base, is_partial=family.partial_rope
    )
    keys = _sizes(config, family, path) | _attention(config, family, path) | rope
    metadata = {"general.architecture": family.architecture} | {prefix + key: value for key, value in keys.items()}
    decoder = read_config(_Keys(path, metadata))
    if decoder.traits.unrotated_period is not None:
        decoder = replace(decoder, unrotated_layers=_unrotated_layers(config, path, decoder.num_layers))
    return TextConfig(
        path=path,
        family=family,
        metadata=metadata,
        # GGUF files of llama have the rows of Q and K permuted; these are as they were trained
        decoder=replace(decoder, traits=replace(decoder.traits, interleaved_rope=False)),
        vocab_size=positive(config.get("vocab_size"), path, "vocab_size"),
        is_tied=_flag(config, "tie_word_embeddings", path, default=family.is_tied),
        biases=_biases(config, family, path),
        rope_factors=factors,
    )


def _head_size(config: Mapping[str, object], family: TextFamily, path: Path) -> int:
    """Of queries, keys and values."""
    size = family.head_size if config.get("head_dim") is None else config["head_dim"]
    if size is None:
        width, heads = (positive(config.get(key), path, key) for key in ("hidden_size", "num_attention_heads"))
        size = width // heads
    return _bounded(size, path, "head_dim", MAX_HEAD_SIZE)


def _num_layers(config: Mapping[str, object], path: Path) -> int:
    return _bounded(config.get("num_hidden_layers"), path, "num_hidden_layers", MAX_LAYERS)


def _bounded(value: object, path: Path, key: str, limit: int) -> int:
    if (found := positive(value, path, key)) > limit:
        raise CorruptFile(f"{path}: {key} is {found}, at most {limit} is expected", hint="fetch it again")
    return found


def _family(config: Mapping[str, object], path: Path) -> TextFamily:
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{path}: the text model family {kind!r} is not supported in safetensors",
            hint=f"supported: {', '.join(FAMILIES)}; look for a GGUF file of the model",
        )
    family = FAMILIES[kind]
    if classes and classes != [family.model_class]:
        raise UnsupportedArchitecture(
            f"{path}: architectures {classes!r} of {kind!r} are not supported, only {family.model_class}",
            hint="look for a GGUF file of the model",
        )
    return family


def _refuse_variants(config: Mapping[str, object], family: TextFamily, path: Path) -> None:
    """Entries that change what the weights are or what the decoder computes in ways that are not built."""
    if quantized := config.get("quantization_config") or config.get("compression_config"):
        method = quantized.get("quant_method", "an unnamed method") if isinstance(quantized, dict) else quantized
        raise ImportFailed(
            f"{path}: the weights are quantised by {method}, which is not read",
            hint="take the model's unquantised safetensors (quantize: q4_K_M makes them small), or a GGUF file",
        )
    activation = config.get("hidden_activation") or config.get("hidden_act") or family.activations[0]
    if activation not in family.activations:
        raise UnsupportedArchitecture(f"{path}: hidden_act {activation!r} is not supported")
    if config.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture(f"{path}: attention that is not causal is not supported")


def _sizes(config: Mapping[str, object], family: TextFamily, path: Path) -> dict[str, object]:
    def size(key: str) -> int:
        return positive(config.get(key), path, key)

    heads = size("num_attention_heads")
    has_groups = config.get("num_key_value_heads") is not None or not family.optional_groups
    head = _head_size(config, family, path)
    return {
        "block_count": _num_layers(config, path),
        "context_length": size("max_position_embeddings"),
        "embedding_length": size("hidden_size"),
        "feed_forward_length": size("intermediate_size"),
        "vocab_size": size("vocab_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": size("num_key_value_heads") if has_groups else heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }


def _attention(config: Mapping[str, object], family: TextFamily, path: Path) -> dict[str, object]:
    keys: dict[str, object] = {
        "attention.layer_norm_rms_epsilon": number(config.get("rms_norm_eps"), path, "rms_norm_eps", family.epsilon)
    }
    keys |= {ours: number(config.get(theirs), path, theirs, 1.0) for theirs, ours in family.scales}
    if family.query_scalar:
        scalar = number(config.get("query_pre_attn_scalar"), path, "query_pre_attn_scalar", 256.0)
        keys["attention.scale"] = 1.0 / math.sqrt(scalar)
        for entry in ("final_logit_softcapping", "attn_logit_softcapping"):
            if entry in config:  # null: none, where a missing one means what GGUF takes it to mean
                keys[entry] = 0 if config[entry] is None else number(config[entry], path, entry)
    windowed = _windowed_layers(config, family, path)
    keys["attention.sliding_window"] = 0
    if any(windowed):
        keys["attention.sliding_window"] = positive(config.get("sliding_window", family.window), path, "sliding_window")
        keys["attention.sliding_window_pattern"] = windowed
    return keys


def _windowed_layers(config: Mapping[str, object], family: TextFamily, path: Path) -> list[bool]:
    """Which layers see a window only."""
    num_layers = _num_layers(config, path)
    is_on = _flag(config, "use_sliding_window", path, default=False) if family.window_switch else True
    window = config.get("sliding_window", family.window)
    context_length = positive(config.get("max_position_embeddings"), path, "max_position_embeddings")
    if not is_on or window is None or positive(window, path, "sliding_window") >= context_length:
        return [False] * num_layers
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            raise CorruptFile(f"{path}: layer_types is no list with an entry for each of {num_layers} layers")
        if unknown := [kind for kind in types if kind not in ("sliding_attention", "full_attention")]:
            raise UnsupportedArchitecture(f"{path}: layers of type {unknown[0]!r} are not supported")
        return [kind == "sliding_attention" for kind in types]
    if family.model_class == "SmolLM3ForCausalLM":
        unrotated = _unrotated_layers(config, path, num_layers)
        return [layer in unrotated for layer in range(num_layers)]
    if family.window_switch:
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise CorruptFile(f"{path}: max_window_layers is {first!r}, a number is expected", hint="fetch it again")
        return [layer >= first for layer in range(num_layers)]
    if family.window_period is None:
        return [True] * num_layers
    period = positive(config.get("sliding_window_pattern", family.window_period), path, "sliding_window_pattern")
    return [(layer + 1) % period != 0 for layer in range(num_layers)]


def _unrotated_layers(config: Mapping[str, object], path: Path, num_layers: int) -> frozenset[int]:
    """`no_rope_layers` has 1 for a layer *with* rotary embedding."""
    given = config.get("no_rope_layers")
    if given is None:
        interval = positive(config.get("no_rope_layer_interval", 4), path, "no_rope_layer_interval")
        return frozenset(range(interval - 1, num_layers, interval))
    if not isinstance(given, list) or len(given) != num_layers:
        raise CorruptFile(f"{path}: no_rope_layers is no list with an entry for each of {num_layers} layers")
    return frozenset(layer for layer, is_rotated in enumerate(given) if not is_rotated)


def _biases(config: Mapping[str, object], family: TextFamily, path: Path) -> frozenset[str]:
    attention = _ATTENTION if _flag(config, "attention_bias", path, default=False) else frozenset()
    mlp = _MLP if _flag(config, "mlp_bias", path, default=False) else frozenset()
    return family.biases or attention | mlp


def _flag(config: Mapping[str, object], key: str, path: Path, *, default: bool) -> bool:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, bool):
        raise CorruptFile(f"{path}: {key} is {value!r}, true or false is expected", hint="fetch it again")
    return value
