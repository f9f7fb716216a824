"""The families of decoders that are built, by GGUF's architecture names, and why some are not.

What a name implies are facts of llama.cpp (src/models/*.cpp, and `llama_model_rope_type` for the rotary pairs).
"""

from dataclasses import dataclass
from typing import Literal

from vmm_server.errors import UnsupportedArchitecture

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name alone implies."""

    interleaved_rope: bool = False
    """Rotary pairs are neighbours (2i, 2i+1), as llama.cpp permutes the rows of llama's Q and K to have them."""
    activation: Activation = "silu"
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their length."""
    attention_softcap: float | None = None
    """Attention scores are `cap * tanh(scores / cap)` before the softmax: the cap where the file does not say."""
    logit_softcap: float | None = None
    """The same of logits."""
    window: int | None = None
    """Positions that layers with a window see, where the file does not say."""
    window_period: int | None = None
    """Every n-th layer attends to everything, the others to a window, where the file does not say."""
    local_rope_base: float | None = None
    """Rotary base of the layers with a window, where it is another and the file does not say."""
    unscaled_local_rope: bool = False
    """Layers with a window rotate by the same base, without the file's scaling."""
    head_norms: bool = False
    """Every head of Q and K is normalised before it is rotated."""
    projection_norms: bool = False
    """All of Q and all of K is normalised before it is rotated."""
    pre_norms: bool = True
    """What attention and MLP take is normalised."""
    post_norms: bool = False
    """What attention and MLP give is normalised before it is added."""
    fused_projections: bool = False
    """Q, K and V are one matrix, if the file has no three, and so are the MLP's gate and up, in this order."""
    unrotated_period: int | None = None
    """Every n-th layer has no rotary embedding (NoPE)."""
    optional_rope: bool = False
    """`rope.scaling.finetuned` tells whether there is any rotary embedding."""


FAMILIES = {
    "llama": Family(interleaved_rope=True),  # Mistral models, too, are called llama in GGUF
    "qwen2": Family(),
    "qwen3": Family(head_norms=True),
    "phi3": Family(fused_projections=True),
    "granite": Family(interleaved_rope=True, optional_rope=True),
    "smollm3": Family(interleaved_rope=True, unrotated_period=4),
    "olmo2": Family(  # and OLMo 3, which has windows
        window_period=4, unscaled_local_rope=True, projection_norms=True, pre_norms=False, post_norms=True
    ),
    "gemma": Family(activation="gelu_tanh", scaled_embedding=True),
    "gemma2": Family(
        activation="gelu_tanh",
        scaled_embedding=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
        window=4096,
        window_period=2,
        post_norms=True,
    ),
    "gemma3": Family(
        activation="gelu_tanh",
        scaled_embedding=True,
        window_period=6,
        local_rope_base=10000.0,
        head_norms=True,
        post_norms=True,
    ),
}


_REFUSED = {
    "qwen2moe": "mixtures of experts are not supported",
    "qwen3moe": "mixtures of experts are not supported",
    "granitemoe": "mixtures of experts are not supported",
    "granitehybrid": "state-space layers are not supported; granite4's dense models are `granite`",
}
"""Families that people ask for, with what stands in the way."""


def check_architecture(subject: object, architecture: str) -> None:
    """Raise `UnsupportedArchitecture` for one that is not built; `subject` (a file, a source) is named in it."""
    if architecture in FAMILIES:
        return
    reason = f": {_REFUSED[architecture]}" if architecture in _REFUSED else ""
    raise UnsupportedArchitecture(
        f"{subject}: architecture {architecture!r} is not supported{reason}",
        hint=f"supported architectures: {', '.join(FAMILIES)} (mistral models are llama in GGUF)",
    )
