"""Random decoders of some hundred kilobytes as OpenVINO IR folders, with the inputs and files of optimum-intel.

`write_text_folder` writes a model that reads, `write_seeing_folder` a LLaVA: an image is cut into patches, and each
patch is a token of the prompt.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo
from openvino_tokenizers import convert_tokenizer
from transformers import PreTrainedTokenizerFast

TOKENS = ("<s>", "</s>", "<image>", *(chr(code) for code in range(33, 127)))
"""Three special tokens, then characters."""
END = 1
PATCH = 14
NUM_PATCHES = 4
"""Of an image, whatever its size: it is scaled to two by two patches."""


@dataclass(frozen=True)
class TinyIR:
    """What to write."""

    num_layers: int = 2
    num_heads: int = 2
    head_size: int = 32
    context_length: int = 256

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_size


class _Writer:
    def __init__(self, config: TinyIR, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)

    def random(self, *shape: int, spread: float = 1.0) -> Any:
        array: NDArray[np.float32] = self.rng.normal(0, spread, shape).astype(np.float32)
        return ops.constant(array)

    def linear(self, x: Any, rows: int) -> Any:
        width = self.config.hidden_size
        return ops.matmul(x, self.random(width, rows, spread=width**-0.5), False, False)

    def embedded(self, token_ids: Any) -> Any:
        return ops.gather(self.random(len(TOKENS), self.config.hidden_size), token_ids, ops.constant(0))

    def heads(self, x: Any) -> Any:
        config = self.config
        split = ops.reshape(x, ops.constant([0, 0, config.num_heads, config.head_size]), True)
        return ops.transpose(split, ops.constant([0, 2, 1, 3]))

    def cached(self, new: Any, name: str, batch: Any, beam_idx: Any) -> tuple[Any, Any]:
        """What is in the KV cache and what comes to it, and the node that keeps both."""
        config = self.config
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, config.num_heads, -1, config.head_size])
        info.data_type, info.variable_id = ov.Type.f32, name
        variable = Variable(info)
        sizes = [ops.constant([size]) for size in (config.num_heads, 0, config.head_size)]
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, *sizes], 0))
        past = ops.gather(ops.read_value(empty, variable), beam_idx, ops.constant(0))
        whole = ops.concat([past, new], 2)
        return whole, ops.assign(whole, variable)

    def decoder(self, given: Any, embedded: Any) -> Any:
        """From an input of ids or vectors to logits; attention is causal by `position_ids`."""
        config, width = self.config, self.config.hidden_size
        mask = _input("attention_mask", [-1, -1])
        positions = _input("position_ids", [-1, -1])
        beam_idx = _input("beam_idx", [-1], ov.Type.i32)
        batch = ops.gather(ops.shape_of(given), ops.constant([0]), ops.constant(0))
        total = ops.gather(ops.shape_of(mask), ops.constant(1), ops.constant(0))
        keys = ops.range(ops.constant(np.int64(0)), total, ops.constant(np.int64(1)), "i64")
        visible = ops.less_equal(
            ops.unsqueeze(keys, ops.constant([0, 1, 2])), ops.unsqueeze(positions, ops.constant([1, 3]))
        )
        allowed = ops.select(visible, ops.constant(np.float32(0)), ops.constant(np.float32(-65504)))
        sinks = []
        placed = ops.gather(self.random(2 * config.context_length, width, spread=0.5), positions, ops.constant(0))
        x = ops.add(embedded, placed)
        for layer in range(config.num_layers):
            query, *new = (self.heads(self.linear(_norm(x), width)) for _ in range(3))
            whole = []
            for part, values in zip(("key", "value"), new, strict=True):
                name = f"past_key_values.{layer}.{part}present.{layer}.{part}"
                cached, sink = self.cached(values, name, batch, beam_idx)
                whole.append(cached)
                sinks.append(sink)
            attended = ops.transpose(
                ops.scaled_dot_product_attention(query, *whole, allowed), ops.constant([0, 2, 1, 3])
            )
            merged = ops.reshape(attended, ops.constant([0, 0, width]), True)
            x = ops.add(x, self.linear(merged, width))
            x = ops.add(x, self.linear(ops.relu(self.linear(_norm(x), width)), width))
        logits = ops.multiply(self.linear(_norm(x), len(TOKENS)), ops.constant(np.float32(2)))
        return ov.Model([ops.result(_named(logits, "logits"))], sinks, [given, mask, positions, beam_idx], "decoder")

    def patches(self, pixels: Any) -> Any:
        """`[images, 3, height, width]` to a vector for each patch."""
        width = self.config.hidden_size
        kernel = self.random(width, 3, PATCH, PATCH, spread=(3 * PATCH * PATCH) ** -0.5)
        cut = ops.convolution(pixels, kernel, [PATCH, PATCH], [0, 0], [0, 0], [1, 1])
        flat = ops.reshape(cut, ops.constant([0, width, -1]), True)
        return ops.multiply(ops.transpose(flat, ops.constant([0, 2, 1])), ops.constant(np.float32(3)))


def write_text_folder(folder: Path, config: TinyIR | None = None, *, seed: int = 0) -> Path:
    """A decoder of token ids, with its tokeniser."""
    config = config or TinyIR()
    writer = _Writer(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    token_ids = _input("input_ids", [-1, -1])
    _save(writer.decoder(token_ids, writer.embedded(token_ids)), folder / "openvino_model.xml")
    described = {"model_type": "llama", "max_position_embeddings": config.context_length, "eos_token_id": END}
    _write(folder / "config.json", described)
    _write_tokenizer(folder)
    return folder


def write_seeing_folder(folder: Path, config: TinyIR | None = None, *, seed: int = 0) -> Path:
    """A LLaVA: a decoder of vectors, those of tokens, those of images, and the tokeniser."""
    config = config or TinyIR()
    writer = _Writer(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = _input("inputs_embeds", [-1, -1, config.hidden_size], ov.Type.f32)
    _save(writer.decoder(vectors, vectors), folder / "openvino_language_model.xml")
    token_ids = _input("input", [-1, -1])
    embedded = _named(writer.embedded(token_ids), "inputs_embeds")
    _save(ov.Model([ops.result(embedded)], [token_ids], "text"), folder / "openvino_text_embeddings_model.xml")
    pixels = _input("pixel_values", [-1, 3, -1, -1], ov.Type.f32)
    seen = _named(writer.patches(pixels), "last_hidden_state")
    _save(ov.Model([ops.result(seen)], [pixels], "vision"), folder / "openvino_vision_embeddings_model.xml")
    text = {"max_position_embeddings": config.context_length, "vocab_size": len(TOKENS)}
    described = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": {"patch_size": PATCH},
        "eos_token_id": END,
    }
    _write(folder / "config.json", described)
    side = 2 * PATCH
    scaled = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    _write(folder / "preprocessor_config.json", {**scaled, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    _write_tokenizer(folder)
    return folder


def _input(name: str, shape: list[int], dtype: Any = ov.Type.i64) -> Any:
    node = ops.parameter(shape, dtype)
    node.set_friendly_name(name)
    return _named(node, name)


def _named(node: Any, name: str) -> Any:
    node.output(0).set_names({name})
    return node


def _norm(x: Any) -> Any:
    square = ops.reduce_mean(ops.multiply(x, x), ops.constant([-1]), keep_dims=True)
    return ops.divide(x, ops.sqrt(ops.add(square, ops.constant(np.float32(1e-6)))))


def _write_tokenizer(folder: Path) -> None:
    """A token a character, and `<s>` before a text unless it is told not to."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": TOKENS[index], **special} for index in range(3)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": template,
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
    _write(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    reads, writes = convert_tokenizer(fast, with_detokenizer=True)
    _save(reads, folder / "openvino_tokenizer.xml")
    _save(writes, folder / "openvino_detokenizer.xml")


def _save(model: Any, path: Path) -> None:
    ov.save_model(model, path, compress_to_fp16=False)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
