"""A tiny random decoder with all that onnxruntime-genai wants in its folder."""

import json
from pathlib import Path
from typing import Any

from .tiny_decoder import TinyDecoder, write_decoder

TOKENS = ("<s>", "</s>", *(chr(code) for code in range(33, 127)))
"""Two special tokens, then characters."""
END = 1


def write_genai_folder(folder: Path, config: TinyDecoder, *, seed: int = 0, **changes: Any) -> Path:
    """`write_decoder`, the whole genai_config.json (`changes` replace entries of its `model`), and a tokeniser."""
    write_decoder(folder, config, seed=seed, external_data=True)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_size,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
    }
    model = {
        "type": "llama",
        "bos_token_id": 0,
        "eos_token_id": END,
        "pad_token_id": END,
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
        **changes,
    }
    search = {"max_length": config.context_length, "do_sample": False, "top_k": 50, "past_present_share_buffer": True}
    _write(folder / "genai_config.json", {"model": model, "search": search})
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": TOKENS[index], **special} for index in range(2)],
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
            "vocab": {token: index for index, token in enumerate(TOKENS)},
            "merges": [],
        },
    }
    _write(folder / "tokenizer.json", tokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
