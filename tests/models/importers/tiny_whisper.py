"""A tiny Whisper with random weights, in the files that transformers and CTranslate2 write.

Its encoder has other layers and heads than its decoder, as large-v3-turbo has; all weights are float16 numbers, so that
they are the same in every type.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
SIZES: dict[str, Any] = {
    "d_model": 16,
    "vocab_size": 1521,
    "num_mel_bins": 8,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "max_source_positions": 20,
    "max_target_positions": 32,
}
ALIGNMENT_HEADS = [[1, 2], [0, 3], [1, 0]]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
           "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
FIRST_SPECIAL = 10
CT2_PARTS = {
    "self_attn_layer_norm": "self_attention/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "encoder_attn_layer_norm": "attention/layer_norm",
    "encoder_attn.q_proj": "attention/linear_0",
    "encoder_attn.out_proj": "attention/linear_2",
    "final_layer_norm": "ffn/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}


def make_weights(seed: int = 7) -> Weights:
    """float32 by transformers' names, without `model.`."""
    random, width = np.random.default_rng(seed), SIZES["d_model"]
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (width, SIZES["num_mel_bins"], 3),
        "encoder.conv1.bias": (width,),
        "encoder.conv2.weight": (width, width, 3),
        "encoder.conv2.bias": (width,),
        "encoder.embed_positions.weight": (SIZES["max_source_positions"], width),
        "decoder.embed_positions.weight": (SIZES["max_target_positions"], width),
        "decoder.embed_tokens.weight": (SIZES["vocab_size"], width),
    }
    for side in ("encoder", "decoder"):
        norms = [f"{side}.layer_norm"]
        for index in range(SIZES[f"{side}_layers"]):
            layer, inner = f"{side}.layers.{index}", SIZES[f"{side}_ffn_dim"]
            attentions = ["self_attn", "encoder_attn"] if side == "decoder" else ["self_attn"]
            norms += [f"{layer}.final_layer_norm", *(f"{layer}.{each}_layer_norm" for each in attentions)]
            for name in (f"{layer}.{each}.{part}_proj" for each in attentions for part in ("q", "k", "v", "out")):
                shapes[f"{name}.weight"] = (width, width)
                if not name.endswith("k_proj"):
                    shapes[f"{name}.bias"] = (width,)
            shapes |= {f"{layer}.fc1.weight": (inner, width), f"{layer}.fc1.bias": (inner,)}
            shapes |= {f"{layer}.fc2.weight": (width, inner), f"{layer}.fc2.bias": (width,)}
        for name in norms:
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    weights = {name: random.normal(0, 0.4, shape) for name, shape in sorted(shapes.items())}
    return {
        name: (value + ("norm.weight" in name)).astype(np.float16).astype(np.float32) for name, value in weights.items()
    }


def make_input(seed: int = 11) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features `[2, 8, 40]` and tokens `[2, 9]`."""
    random = np.random.default_rng(seed)
    features = random.normal(0, 1, (2, SIZES["num_mel_bins"], 2 * SIZES["max_source_positions"]))
    return features.astype(np.float32), random.integers(0, SIZES["vocab_size"], (2, 9))


def write_tokenizer(folder: Path) -> None:
    vocab = {f"w{index}": index for index in range(FIRST_SPECIAL)}
    added = [
        {"id": FIRST_SPECIAL + index, "content": text, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False} for index, text in enumerate(SPECIAL)
    ]  # fmt: skip
    content = {
        "version": "1.0",
        "added_tokens": added,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def write_transformers(
    folder: Path, weights: Weights, *, dtype: str = "F16", shards: int = 1, odd: str = "", **config: object
) -> Path:
    """A folder as `save_pretrained` writes it, in `shards` files; `config` is said in config.json besides.

    Weights that are called like `odd` are float32.
    """
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    content = {"model_type": "whisper", **SIZES, "activation_function": "gelu"} | config
    (folder / "config.json").write_text(json.dumps(content))
    generation = {"alignment_heads": ALIGNMENT_HEADS, "suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}
    (folder / "generation_config.json").write_text(json.dumps(generation | {"is_multilingual": True}))
    names = sorted(weights)
    files = {f"model-{part + 1:05}-of-{shards:05}.safetensors": names[part::shards] for part in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    else:
        index = {f"model.{name}": file for file, parts in files.items() for name in parts}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for file, parts in files.items():
        _write_safetensors(folder / file, {f"model.{name}": weights[name] for name in parts}, dtype, odd)
    return folder


def _write_safetensors(path: Path, tensors: Weights, dtype: str, odd: str) -> None:
    header, data = {}, b""
    for name, value in tensors.items():
        kind = "F32" if odd and name.endswith(odd) else dtype
        raw = _stored(value, kind)
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _stored(value: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return (np.ascontiguousarray(value).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return value.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()


def write_ctranslate2(folder: Path, weights: Weights, *, quantization: str = "float16") -> Path:
    """A folder as CTranslate2's converter of transformers writes it (`ModelSpec._serialize`, version 6)."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    config = {"alignment_heads": ALIGNMENT_HEADS, "suppress_ids": [1, 2], "suppress_ids_begin": [3], "lang_ids": [999]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocabulary.json").write_text("[]")
    variables = {
        name: value for item in ct2_variables(weights).items() for name, value in _quantized(*item, quantization)
    }
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    if "decoder/embeddings/weight_scale" in variables:
        aliases["decoder/projection/weight_scale"] = "decoder/embeddings/weight_scale"
    (folder / "model.bin").write_bytes(serialize_ct2(variables, aliases))
    return folder


def ct2_variables(weights: Weights) -> dict[str, NDArray[Any]]:
    """By CTranslate2's names."""
    found: dict[str, NDArray[Any]] = {
        "encoder/num_heads": np.int16(SIZES["encoder_attention_heads"]),
        "decoder/num_heads": np.int16(SIZES["decoder_attention_heads"]),
        "decoder/activation": np.int8(3),
        "decoder/pre_norm": np.int8(1),
        "decoder/scale_embeddings": np.int8(0),
        "encoder/position_encodings/encodings": weights["encoder.embed_positions.weight"],
        "decoder/position_encodings/encodings": weights["decoder.embed_positions.weight"],
        "decoder/embeddings/weight": weights["decoder.embed_tokens.weight"],
    }
    zeros = np.zeros(SIZES["d_model"], np.float32)
    for name, value in weights.items():
        parts = name.split(".")
        stem, kind = ".".join(parts[3:-1]), parts[-1]
        base = f"{parts[0]}/layer_{parts[2]}" if parts[1] == "layers" else ""
        if base and stem in CT2_PARTS:
            found[f"{base}/{CT2_PARTS[stem]}/{_ct2_kind(stem, kind)}"] = value
        elif base and stem == "self_attn.q_proj":
            rows = [weights.get(name.replace("q_proj", f"{part}_proj"), zeros) for part in "qkv"]
            found[f"{base}/self_attention/linear_0/{kind}"] = np.concatenate(rows)
        elif base and stem == "encoder_attn.v_proj":
            rows = [weights.get(name.replace("v_proj", f"{part}_proj"), zeros) for part in "kv"]
            found[f"{base}/attention/linear_1/{kind}"] = np.concatenate(rows)
        elif parts[1] in ("conv1", "conv2", "layer_norm"):
            found[f"{parts[0]}/{parts[1]}/{_ct2_kind(parts[1], kind)}"] = value
    return found


def _ct2_kind(stem: str, kind: str) -> str:
    return {"weight": "gamma", "bias": "beta"}[kind] if stem.endswith("layer_norm") else kind


def _quantized(name: str, value: NDArray[Any], quantization: str) -> list[tuple[str, NDArray[Any]]]:
    """The variable, and its scale: `LayerSpec._quantize`."""
    if value.ndim == 0:
        return [(name, value)]
    is_matrix = name.endswith("/weight")
    if is_matrix and quantization == "int8":
        flat = value.reshape(len(value), -1)
        scale = (127.0 / np.abs(flat).max(axis=1)).astype(np.float32)
        return [(name, np.rint(flat * scale[:, None]).astype(np.int8).reshape(value.shape)), (f"{name}_scale", scale)]
    if is_matrix and quantization == "int16":
        factor = np.float32(2**10 / np.abs(value).max())
        return [(name, np.rint(value * factor).astype(np.int16)), (f"{name}_scale", np.asarray(factor))]
    if quantization == "bfloat16":
        return [(name, np.frombuffer(_stored(value, "BF16"), np.uint16).reshape(value.shape))]
    return [(name, value.astype(np.float16 if quantization == "float16" else np.float32))]


def serialize_ct2(
    variables: Mapping[str, NDArray[Any]], aliases: Mapping[str, str], *, spec: str = "WhisperSpec", version: int = 6
) -> bytes:
    """model.bin; arrays of uint16 are bfloat16."""
    types = ["float32", "int8", "int16", "int32", "float16", "uint16"]
    out = struct.pack("<I", version) + _text(spec) + struct.pack("<II", 3, len(variables))
    for name, value in sorted(variables.items()):
        out += _text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", types.index(value.dtype.name), value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(_text(alias) + _text(name) for alias, name in sorted(aliases.items()))


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"
