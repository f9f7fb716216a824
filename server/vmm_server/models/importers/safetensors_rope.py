"""Rotary position embedding as config.json tells it, in the words of GGUF.

transformers 5 writes `rope_parameters`, of one kind of layer or by kinds; before it was `rope_theta` and, of longer
contexts, `rope_scaling` (src/transformers/modeling_rope_utils.py).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.json_files import number

_MAX_FACTOR = 1e6
"""Far above any known: those of LongRoPE are below 100."""
_KINDS = ("full_attention", "sliding_attention")


def rope_keys(
    config: Mapping[str, object], path: Path, head_size: int, base: float, *, is_partial: bool = False
) -> tuple[dict[str, object], NDArray[np.float32] | None]:
    """GGUF's keys (without the architecture), and Llama 3's or LongRoPE's factors, float32 `[rotated / 2]`, if any.

    `base` stands in for a missing `rope_theta`; `is_partial`: the family may rotate a part of each head. Raises
    `CorruptFile`, `UnsupportedArchitecture`, naming the entry.
    """
    rope = _entry(config, "rope_scaling", path) or _entry(config, "rope_parameters", path)
    local: Mapping[str, object] = {}
    if any(kind in rope for kind in _KINDS):
        rope, local = (_entry(rope, kind, path) for kind in _KINDS)
    given = dict(config) | dict(rope)  # `rope_theta` and the like stand in either
    part = number(given.get("partial_rotary_factor"), path, "partial_rotary_factor", 1.0)
    if part > 1 or (part < 1 and not is_partial):
        raise UnsupportedArchitecture(f"{path}: partial_rotary_factor {part} is not supported")
    dimensions = int(head_size * part)
    if (kind := _type(local)) != "default":
        raise UnsupportedArchitecture(f"{path}: rope_type {kind!r} of layers with a window is not supported")
    theta = number(given.get("rope_theta"), path, "rope_theta", base)
    keys: dict[str, object] = {"rope.freq_base": theta, "rope.dimension_count": dimensions}
    if (local_theta := local.get("rope_theta", config.get("rope_local_base_freq"))) is not None:
        keys["rope.freq_base_swa"] = number(local_theta, path, "rope_local_base_freq")
    kind = _type(rope)
    if kind == "default":
        return keys, None
    if "long_factor" in rope and kind in ("longrope", "su", "yarn"):  # Phi-3's other names for it
        longrope, factors = _longrope(rope, given, path, dimensions)
        return keys | longrope, factors
    if kind not in ("linear", "yarn", "llama3"):
        raise UnsupportedArchitecture(
            f"{path}: rope_type {kind!r} is not supported", hint="default, linear, yarn, llama3 and longrope are"
        )
    factor = number(rope.get("factor"), path, "rope_scaling.factor")
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}, None
    given.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    length = number(given["original_max_position_embeddings"], path, "original_max_position_embeddings")
    if kind == "llama3":
        low, high = (
            number(rope.get(key), path, f"rope_scaling.{key}") for key in ("low_freq_factor", "high_freq_factor")
        )
        if low >= high:
            raise CorruptFile(f"{path}: rope_scaling.low_freq_factor is not below high_freq_factor")
        return keys, _as_tensor(_llama3_factors(theta, dimensions, factor, low, high, length), path)
    return keys | _yarn(rope, path, factor, length), None


def _longrope(
    rope: Mapping[str, object], given: Mapping[str, object], path: Path, dimensions: int
) -> tuple[dict[str, object], NDArray[np.float32]]:
    """LongRoPE (arXiv 2402.13753), with the set of factors that serves the whole context, see `gguf_graph`."""
    length = number(given.get("max_position_embeddings"), path, "max_position_embeddings")
    key = "original_max_position_embeddings"
    original = number(given.get(key), path, key)
    name = "long_factor" if length > original else "short_factor"
    listed = rope.get(name)
    if not isinstance(listed, list) or len(listed) != dimensions // 2:
        raise CorruptFile(f"{path}: rope_scaling.{name} is no list of {dimensions // 2} numbers", hint="fetch it again")
    factors = _as_tensor(np.array([number(each, path, f"rope_scaling.{name}") for each in listed]), path)
    stretched = number(rope.get("factor"), path, "rope_scaling.factor", length / original)
    magnitude = math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 and original > 1 else 1.0
    return {
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.attn_factor": number(
            rope.get("attention_factor"), path, "rope_scaling.attention_factor", magnitude
        ),
    }, factors


def _yarn(rope: Mapping[str, object], path: Path, factor: float, length: float) -> dict[str, object]:
    if rope.get("truncate") is False:
        raise UnsupportedArchitecture(f"{path}: yarn with truncate: false is not supported")
    if factor < 1:
        raise CorruptFile(f"{path}: rope_scaling.factor is {factor}, at least 1 is expected")
    usual = 1 + 0.1 * math.log(factor)  # what GGUF multiplies its factor with
    magnitude = usual
    if rope.get("attention_factor") is not None:
        magnitude = number(rope["attention_factor"], path, "rope_scaling.attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        over, under = (number(rope[key], path, f"rope_scaling.{key}") for key in ("mscale", "mscale_all_dim"))
        magnitude = (1 + 0.1 * over * math.log(factor)) / (1 + 0.1 * under * math.log(factor))
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(length),
        "rope.scaling.attn_factor": magnitude / usual,
        "rope.scaling.yarn_beta_fast": number(rope.get("beta_fast") or None, path, "rope_scaling.beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": number(rope.get("beta_slow") or None, path, "rope_scaling.beta_slow", 1.0),
    }


def _llama3_factors(
    theta: float, head_size: int, factor: float, low: float, high: float, length: float
) -> NDArray[np.float64]:
    """What each pair's frequency is divided by: nothing above `high` turns over the original context, `factor` below
    `low`, and between them a ramp of what is multiplied."""
    turns = length * theta ** (-np.arange(0, head_size, 2) / head_size) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / (kept + (1 - kept) / factor)
    return factors


def _as_tensor(factors: NDArray[np.float64], path: Path) -> NDArray[np.float32]:
    if not (factors < _MAX_FACTOR).all():
        raise CorruptFile(f"{path}: rope_scaling has factors of {_MAX_FACTOR:g} and more", hint="fetch it again")
    return factors.astype(np.float32)


def _entry(config: Mapping[str, object], key: str, path: Path) -> Mapping[str, object]:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise CorruptFile(f"{path}: {key} is {str(value)[:100]!r}, an object is expected", hint="fetch it again")
    return value or {}


def _type(rope: Mapping[str, object]) -> object:
    return rope.get("rope_type") or rope.get("type") or "default"
