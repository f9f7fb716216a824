"""Weights of an encoder's model.safetensors, under one set of names for all families.

The file's header and extents are checked when it is opened; tensors are read a few rows at a time, as float32.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vmm_server.errors import CorruptFile

FILE = "model.safetensors"
_PIECE_BYTES = 8 * 1024**2
_BERT = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "attention_output": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense",
    "output_norm": "encoder.layer.{}.output.LayerNorm",
}
_MPNET = _BERT | {
    "query": "encoder.layer.{}.attention.attn.q",
    "key": "encoder.layer.{}.attention.attn.k",
    "value": "encoder.layer.{}.attention.attn.v",
    "attention_output": "encoder.layer.{}.attention.attn.o",
    "attention_norm": "encoder.layer.{}.attention.LayerNorm",
    "distances": "encoder.relative_attention_bias",
}
_DISTILBERT = _BERT | {
    "query": "transformer.layer.{}.attention.q_lin",
    "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin",
    "attention_output": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm",
    "up": "transformer.layer.{}.ffn.lin1",
    "down": "transformer.layer.{}.ffn.lin2",
    "output_norm": "transformer.layer.{}.output_layer_norm",
}
_TABLES = {"distilbert": _DISTILBERT, "mpnet": _MPNET}
_HEADS = {
    "bert": {"pooler": "bert.pooler.dense", "classifier": "classifier"},
    "distilbert": {"pooler": "pre_classifier", "classifier": "classifier"},
}
_OTHER_HEAD = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
_PREFIXES = {"xlm-roberta": "roberta", "camembert": "roberta"}


class EncoderWeights:
    """An open file. Names are `words`, `query` (of a layer), …; each has a `weight` and mostly a `bias`."""

    def __init__(self, path: Path, family: str) -> None:
        """Raises `CorruptFile`."""
        self.path = path
        try:
            opened: Any = safe_open(path, framework="numpy")
        except FileNotFoundError as error:
            raise CorruptFile(f"{path}: is missing", hint="fetch the whole folder") from error
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{path}: is damaged or cut off: {error}", hint="fetch it again") from error
        self._file = opened
        self._keys: frozenset[str] = frozenset(self._file.keys())
        prefix = f"{_PREFIXES.get(family, family)}."
        self._prefix = prefix if any(key.startswith(prefix) for key in self._keys) else ""
        self._table = _TABLES.get(family, _BERT)
        self._head = _HEADS.get(family, _OTHER_HEAD)

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def key(self, name: str, layer: int | None = None, part: str = "weight") -> str:
        """The tensor's name in the file. Raises `CorruptFile` when it is not there."""
        if name in self._head:
            key = f"{self._head[name]}.{part}"
        else:
            key = f"{self._prefix}{self._table[name].format(layer)}.{part}"
        if key not in self._keys:
            raise CorruptFile(f"{self.path}: has no tensor {key}", hint="get another copy of this model")
        return key

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the tensor `key`."""
        return tuple(self._file.get_slice(key).get_shape())

    def pieces(self, *keys: str) -> Iterator[tuple[NDArray[np.generic]]]:
        """The tensors, one after the other, as float32 in pieces of rows."""
        for key in keys:
            shape = self.shape(key)
            part = self._file.get_slice(key)
            rows = max(1, _PIECE_BYTES // (4 * int(np.prod(shape[1:], dtype=np.int64))))
            for start in range(0, shape[0], rows):
                yield (np.asarray(part[start : min(start + rows, shape[0])]).astype(np.float32),)
