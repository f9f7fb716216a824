"""Tables of cosines and sines for rotary position embedding (RoFormer, arXiv 2104.09864)."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmm_server.models.importers.gguf_config import RopeConfig

POSITIONS_PER_PIECE = 4096


def inverse_frequencies(rope: RopeConfig, factors: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Radians a position for each rotary pair, float64 `[dimensions / 2]`.

    `factors` (Llama 3's, `rope_freqs.weight`) divide them. `linear` divides all by one factor; `yarn` (arXiv
    2309.00071) only the slow ones, with a ramp between: pairs that turn more than `beta_fast` times over the
    original context are kept, those below `beta_slow` are stretched.
    """
    pairs = np.arange(rope.dimensions // 2, dtype=np.float64)
    frequencies = rope.base ** (-2.0 * pairs / rope.dimensions)
    if factors is not None:
        frequencies = frequencies / factors
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "yarn":
        low, high = (_pair_with_turns(rope, turns) for turns in (rope.beta_fast, rope.beta_slow))
        low, high = max(0.0, math.floor(low)), min(rope.dimensions - 1.0, math.ceil(high))
        ramp = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
        return frequencies * (1.0 - ramp) + frequencies / rope.factor * ramp
    return frequencies


def _pair_with_turns(rope: RopeConfig, turns: float) -> float:
    """The (fractional) pair that turns that often over the original context."""
    return (
        rope.dimensions * math.log(rope.original_context_length / (turns * 2.0 * math.pi)) / (2.0 * math.log(rope.base))
    )


def rope_magnitude(rope: RopeConfig) -> float:
    """What cosines and sines are multiplied by: yarn makes up for the entropy that stretching adds to attention."""
    stretched = 1.0 + 0.1 * math.log(rope.factor) if rope.scaling == "yarn" else 1.0
    return rope.attention_factor * stretched


def rope_tables(
    frequencies: NDArray[np.float64], magnitude: float, positions: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Cosines and sines, float32 `[up to POSITIONS_PER_PIECE, len(frequencies)]` each, for positions 0 onwards."""
    for start in range(0, positions, POSITIONS_PER_PIECE):
        angles = np.outer(np.arange(start, min(start + POSITIONS_PER_PIECE, positions)), frequencies)
        yield (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)
