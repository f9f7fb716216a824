"""The tiny decoders as transformers saves them: config.json, safetensors in one file or several, a tokeniser."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB, HIDDEN, FFN, HEADS, KV_HEADS, CONTEXT = 96, 64, 96, 4, 2, 64
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_folder(
    folder: Path,
    model: Any,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    dtype: str = "F32",
    shards: int = 1,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a whole folder of a `TinyModel` and return it; `config` replaces entries, `None` leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config_of(model, config or {}))
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1]})
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
    else:
        names, weight_map = list(tensors), {}
        for index in range(shards):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            part = names[index::shards]
            write_safetensors(folder / file, {name: tensors[name] for name in part}, dtype)
            weight_map |= dict.fromkeys(part, file)
        index_file = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index_file)
    _write_tokenizer(folder)
    return folder


def config_of(model: Any, changes: Mapping[str, object]) -> dict[str, object]:
    """config.json's content."""
    kind = model.model_class.removesuffix("ForCausalLM").lower()
    whole = {
        "architectures": [model.model_class],
        "model_type": {"gemma3": "gemma3_text"}.get(kind, kind),
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": model.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": model.tied,
        **model.config,
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> None:
    """The format has no need of a library: a length, JSON, bytes. bfloat16 is cut, not rounded."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, content = 0, []
    for name, array in tensors.items():
        raw = _raw(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        content.append(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(content))


def _raw(array: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return np.ascontiguousarray(array, {"F32": np.float32, "F16": np.float16, "I64": np.int64}[dtype]).tobytes()


def write_json(path: Path, value: object) -> None:
    """As transformers writes it."""
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8", newline="\n")


def _write_tokenizer(folder: Path) -> None:
    """A byte-level vocabulary of single characters and one merge."""
    tokens = ["<s>", "</s>", *(chr(code) for code in range(33, 126)), "ab"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": tokens[index], **added} for index in range(2)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(tokens)},
            "merges": [["a", "b"]],
        },
    }
    write_json(folder / "tokenizer.json", tokenizer)
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config | {"chat_template": TEMPLATE})
