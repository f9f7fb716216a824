"""Tiny decoders of every family: weights from a seed, written as GGUF the way llama.cpp's converter writes them.

Weights are named and laid out as transformers has them, so that the stored reference logits can be computed there
(make.py) while the tests need only numpy and gguf.
"""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 96, 64, 96, 3, 4, 2, 64
TOKENS = np.random.default_rng(7).integers(3, VOCAB, (2, 20))
"""Two prompts, int64 `[2, 20]`: longer than the sliding windows."""


@dataclass(frozen=True)
class TinyModel:
    """One model: `config` is transformers' (besides the sizes above), `keys` what GGUF has instead."""

    architecture: str
    model_class: str
    config_class: str
    config: dict[str, object] = field(default_factory=dict)
    keys: dict[str, object] = field(default_factory=dict)
    head_size: int = HIDDEN // HEADS
    tied: bool = False
    qkv_bias: bool = False
    head_norms: bool = False
    projection_norms: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    gemma_norms: bool = False
    """Norms are stored less 1."""
    fused: bool = False
    """Q, K and V are one matrix, gate and up another."""
    layers: int = LAYERS
    rope_factors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The tensors that llama.cpp's converter adds."""


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _llama3_factors(head_size: int) -> NDArray[np.float32]:
    """What convert_hf_to_gguf.py writes as rope_freqs.weight for `rope_type` llama3."""
    wavelengths = 2 * np.pi * _LLAMA3["rope_theta"] ** (np.arange(0, head_size, 2) / head_size)
    turns = _LLAMA3["original_max_position_embeddings"] / wavelengths
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / _LLAMA3["factor"] + smooth)).astype(np.float32)


def _rope(base: float) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": base}


_LONG_FACTORS, _SHORT_FACTORS = np.linspace(1, 8, 8), np.linspace(1, 2, 8)


def _longrope(original_context: int) -> dict[str, object]:
    """LongRoPE as Phi-3.5 and Phi-4-mini have it."""
    factor = CONTEXT / original_context
    magnitude = (1 + np.log(factor) / np.log(original_context)) ** 0.5 if factor > 1 else 1.0
    return {
        "config": {
            "original_max_position_embeddings": original_context,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "long_factor": _LONG_FACTORS.tolist(),
                "short_factor": _SHORT_FACTORS.tolist(),
                "original_max_position_embeddings": original_context,
            },
        },
        "keys": {
            "rope.freq_base": 1000.0,
            "rope.dimension_count": 16,
            "rope.scaling.original_context_length": original_context,
            "rope.scaling.attn_factor": float(magnitude),
            "attention.sliding_window": 0,
        },
        "rope_factors": {
            "rope_factors_long.weight": _LONG_FACTORS.astype(np.float32),
            "rope_factors_short.weight": _SHORT_FACTORS.astype(np.float32),
        },
    }


MODELS = {
    "llama": TinyModel("llama", "LlamaForCausalLM", "LlamaConfig", keys={"rope.freq_base": 10000.0}),
    "llama3": TinyModel(
        "llama",
        "LlamaForCausalLM",
        "LlamaConfig",
        {"rope_parameters": _LLAMA3},
        {"rope.freq_base": 500.0},
        tied=True,
        rope_factors={"rope_freqs.weight": _llama3_factors(HIDDEN // HEADS)},
    ),
    "llama_linear": TinyModel(
        "llama",
        "LlamaForCausalLM",
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
        {"rope.freq_base": 100.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "mistral": TinyModel(
        "llama",
        "MistralForCausalLM",
        "MistralConfig",
        {"head_dim": 32, "sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
        {
            "rope.freq_base": 1000.0,
            "attention.sliding_window": 6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.dimension_count": 32,
        },
        head_size=32,
    ),
    "qwen2": TinyModel(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope.freq_base": 1e6},
        tied=True,
        qkv_bias=True,
    ),
    "qwen2_yarn": TinyModel(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope.freq_base": 1000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
        qkv_bias=True,
    ),
    "qwen3": TinyModel(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope.freq_base": 1e6, "attention.key_length": 32, "attention.value_length": 32},
        head_size=32,
        head_norms=True,
    ),
    "gemma3": TinyModel(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "sliding_window": 6,
            "query_pre_attn_scalar": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        {
            "rope.freq_base": 1000.0,
            "rope.freq_base_swa": 100.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": 3,
            "attention.key_length": 32,
            "attention.value_length": 32,
        },
        head_size=32,
        tied=True,
        head_norms=True,
        post_norms=True,
        gemma_norms=True,
    ),
    "gemma": TinyModel(
        "gemma",
        "GemmaForCausalLM",
        "GemmaConfig",
        {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "rope_parameters": _rope(1000.0)},
        {"rope.freq_base": 1000.0, "attention.key_length": 32, "attention.value_length": 32},
        head_size=32,
        tied=True,
        gemma_norms=True,
    ),
    "gemma2": TinyModel(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            "head_dim": 32,
            "sliding_window": 6,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 10.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": _rope(1000.0),
        },
        {
            "rope.freq_base": 1000.0,
            "attention.sliding_window": 6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 10.0,
        },
        head_size=32,
        tied=True,
        post_norms=True,
        gemma_norms=True,
    ),
    "phi3": TinyModel(
        "phi3",
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "pad_token_id": 0,
            "head_dim": 32,
            "sliding_window": 6,
            "rope_parameters": {**_rope(1000.0), "partial_rotary_factor": 0.5},
        },
        {
            "rope.freq_base": 1000.0,
            "rope.dimension_count": 16,
            "attention.sliding_window": 6,
            "attention.key_length": 32,
            "attention.value_length": 32,
        },
        head_size=32,
        fused=True,
    ),
    "phi3_long": TinyModel("phi3", "Phi3ForCausalLM", "Phi3Config", fused=True, tied=True, **_longrope(16)),
    "phi3_short": TinyModel("phi3", "Phi3ForCausalLM", "Phi3Config", fused=True, **_longrope(CONTEXT)),
    "granite": TinyModel(
        "granite",
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 3.0,
            "rope_parameters": _rope(1000.0),
        },
        {
            "rope.freq_base": 1000.0,
            "embedding_scale": 6.0,
            "residual_scale": 0.4,
            "attention.scale": 0.1,
            "logit_scale": 3.0,
        },
        tied=True,
    ),
    "smollm3": TinyModel(
        "smollm3",
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"pad_token_id": 0, "rope_parameters": _rope(1000.0)},
        {"rope.freq_base": 1000.0},
        tied=True,
        layers=5,
    ),
    "olmo2": TinyModel(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2Config",
        {"pad_token_id": 0, "rope_parameters": _rope(1000.0)},
        {"rope.freq_base": 1000.0},
        projection_norms=True,
        pre_norms=False,
        post_norms=True,
    ),
    "olmo3": TinyModel(
        "olmo2",
        "Olmo3ForCausalLM",
        "Olmo3Config",
        {
            "pad_token_id": 0,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 1000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        {
            "rope.freq_base": 1000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": [True, True, False],
        },
        projection_norms=True,
        pre_norms=False,
        post_norms=True,
    ),
}
_GGUF_NAMES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_POST_NORM_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def weights(model: TinyModel, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The state dict transformers loads, float32."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.15, mean: float = 0.0) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale + mean).astype(np.float32)

    query, kv = HEADS * model.head_size, KV_HEADS * model.head_size
    norm_mean = 0.0 if model.gemma_norms else 1.0
    state = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN, scale=0.5)}
    for layer in range(model.layers):
        base = f"model.layers.{layer}"
        shapes = {"self_attn.q_proj": (query, HIDDEN), "self_attn.k_proj": (kv, HIDDEN)}
        shapes |= {"self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, query)}
        shapes |= {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}
        if model.fused:
            shapes = {"self_attn.qkv_proj": (query + 2 * kv, HIDDEN), "self_attn.o_proj": (HIDDEN, query)}
            shapes |= {"mlp.gate_up_proj": (2 * FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}
        for name, shape in shapes.items():
            state[f"{base}.{name}.weight"] = normal(*shape)
            if model.qkv_bias and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                state[f"{base}.{name}.bias"] = normal(shape[0])
        norms = ["input_layernorm"] if model.pre_norms else []
        norms.append("post_attention_layernorm")
        if model.post_norms:
            norms += ["pre_feedforward_layernorm"] if model.pre_norms else []
            norms.append("post_feedforward_layernorm")
        for name in norms:
            state[f"{base}.{name}.weight"] = normal(HIDDEN, mean=norm_mean)
        if model.head_norms or model.projection_norms:
            sizes = (model.head_size, model.head_size) if model.head_norms else (query, kv)
            for name, size in zip(("q_norm", "k_norm"), sizes, strict=True):
                state[f"{base}.self_attn.{name}.weight"] = normal(size, mean=norm_mean)
    state["model.norm.weight"] = normal(HIDDEN, mean=norm_mean)
    if not model.tied:
        state["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return state


def gguf_tensors(model: TinyModel, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The same weights as llama.cpp's converter stores them: other names, Q and K permuted, Gemma's norms plus one."""
    tensors = {}
    for name, array in weights(model, seed).items():
        stem, _, kind = name.rpartition(".")
        if "norm" in stem and model.gemma_norms:
            array = array + 1
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            names = _GGUF_NAMES | (_POST_NORM_NAMES if model.post_norms else {})
            if model.architecture in ("llama", "granite", "smollm3") and part[-6:] in ("q_proj", "k_proj"):
                array = _permute(array, model.head_size)
            tensors[f"blk.{layer}.{names[part]}.{kind}"] = array
        else:
            outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            tensors[f"{outer[stem]}.{kind}"] = array
    return tensors | model.rope_factors


def _permute(array: NDArray[np.float32], head_size: int) -> NDArray[np.float32]:
    """Rotary pairs (i, i + half) of each head become neighbours (convert_hf_to_gguf.py, `permute`)."""
    heads = array.reshape(-1, 2, head_size // 2, *array.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(array.shape))


def write_gguf(
    path: Path,
    model: TinyModel,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, object] | None = None,
) -> None:
    """Write a whole file, matrices in `quantization`. `tensors` replaces the model's own, `keys` too (`None`: none)."""
    writer = gguf.GGUFWriter(path, model.architecture)
    sizes = {
        "block_count": model.layers,
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in (sizes | model.keys | (keys or {})).items():
        name = f"{model.architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
    _add_tokenizer(writer)
    for name, array in (gguf_tensors(model) if tensors is None else tensors).items():
        if array.ndim == 1 or quantization == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(array))
        else:
            writer.add_tensor(name, gguf.quantize(array, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary of single characters and one merge, so that the file is whole."""
    characters = [chr(code) for code in range(33, 126)]
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", *characters, "ab"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (VOCAB - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
