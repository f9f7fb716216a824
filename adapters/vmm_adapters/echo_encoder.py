"""The test encoder: it computes nothing, and its vectors and scores can be foretold.

A text's vector has one place for each token id modulo `dim`, which counts the text's tokens: texts that share words
are close, equal texts are equal, whatever else is in the batch. A pair's score (a model with one column) is the number
of the second text's tokens that occur in the first, less 1.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.types import EncoderInput, EncoderOptions

CLS, SEP = 256, 257
"""Special tokens; ids below are bytes."""


class EchoEncoder:
    """See the module. `gate` is called with every batch before it is computed; it may block or raise."""

    def __init__(
        self,
        *,
        dim: int = 32,
        max_length: int = 64,
        normalize: bool = True,
        gate: Callable[[Sequence[EncoderInput]], None] | None = None,
    ) -> None:
        self.dim = dim
        self.max_length = max_length
        self.device = "CPU"
        self.memory_bytes = 1000
        self.is_closed = False
        self.batches: list[tuple[int, ...]] = []
        """Lengths of the inputs of each call."""
        self._normalize = normalize
        self._gate = gate

    def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        if self._gate is not None:
            self._gate(inputs)
        self.batches.append(tuple(len(each.token_ids) for each in inputs))
        rows = [self._score(each) if self.dim == 1 else self._vector(each) for each in inputs]
        return np.array(rows, np.float32).reshape(len(inputs), self.dim)

    def warm_up(self) -> None:
        """There is nothing to warm."""

    def close(self) -> None:
        """Only remembered."""
        self.is_closed = True

    def _vector(self, each: EncoderInput) -> NDArray[np.float32]:
        counts = np.bincount(np.array(each.token_ids) % self.dim, minlength=self.dim).astype(np.float32)
        return counts / np.linalg.norm(counts) if self._normalize else counts

    def _score(self, pair: EncoderInput) -> list[float]:
        texts: tuple[set[int], set[int]] = (set(), set())
        for token, kind in zip(pair.token_ids, pair.type_ids, strict=True):
            if token < CLS:
                texts[kind].add(token)
        return [len(texts[0] & texts[1]) - 1.0]


def load_encoder(folder: Path, options: EncoderOptions) -> EchoEncoder:
    """Load what `write_echo_encoder` wrote. Raises `UnsupportedModel` for any other model."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind, dim = config["model_type"], int(config["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{folder.name} is not an echo encoder: {error}") from error
    if kind != "echo":
        raise UnsupportedModel(f"the echo adapter cannot run a {kind!r} model")
    return EchoEncoder(dim=dim, max_length=options.max_length, normalize=options.normalize)


def write_echo_encoder(folder: Path, *, dim: int = 32, max_length: int = 64) -> None:
    """Write a folder that `load_encoder` and `tokenizers` read; `dim` 1 is a cross-encoder. Replaces files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "echo", "hidden_size": dim, "max_position_embeddings": max_length}
    for name, content in (("tokenizer.json", _tokenizer()), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=1), "utf-8")


def _tokenizer() -> dict[str, object]:
    """Bytes as tokens, between `[CLS]` and `[SEP]` as BERT has them, as `tokenizer.json`."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = {"[CLS]": CLS, "[SEP]": SEP}
    first = [_place("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, _place("[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **special} for name, token in names.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}, _place("[SEP]", 1)],
            "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in names.items()},
        },
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "vocab": {f"<0x{byte:02X}>": byte for byte in range(256)},
            "merges": [],
            "byte_fallback": True,
            "unk_token": None,
        },
    }


def _place(name: str, type_id: int) -> dict[str, object]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}
