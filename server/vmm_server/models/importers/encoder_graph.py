"""An encoder's ONNX graph: embeddings, then layers of attention and feed-forward, each followed by its norm.

`input_ids`, `attention_mask` and, where there are several types, `token_type_ids`, all int64 `[batch, sequence]`, give
`last_hidden_state` float32 `[batch, sequence, hidden]`, or `logits` `[batch, labels]` of a cross-encoder. Padding is on
the right. Architecture: BERT (arXiv:1810.04805), with the relative positions of MPNet (arXiv:2004.09297) as in T5.
"""

import math

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.encoder_config import EncoderConfig
from vmm_server.models.importers.encoder_weights import EncoderWeights
from vmm_server.models.importers.onnx_matrix import FloatMatrix, add_product
from vmm_server.models.importers.onnx_writer import ModelWriter, TensorSpec

_MAX_DISTANCE = 128
"""Of MPNet: beyond it all distances are one."""


def build_encoder(writer: ModelWriter, weights: EncoderWeights, config: EncoderConfig) -> int:
    """Add the whole graph; returns the tokens that an input may have. Raises `CorruptFile`."""
    return _Builder(writer, weights, config).build()


class _Builder:
    def __init__(self, writer: ModelWriter, weights: EncoderWeights, config: EncoderConfig) -> None:
        self._writer = writer
        self._weights = weights
        self._config = config

    def build(self) -> int:
        writer, config = self._writer, self._config
        for name in ("input_ids", "attention_mask"):
            writer.input(name, TensorProto.INT64, ["batch", "sequence"])
        max_length = self._shape("positions", None, "weight", None, config.hidden_size)[0] - config.first_position
        length = writer.node("Shape", ["input_ids"], "/embeddings/length", start=1, end=2)
        hidden = self._embeddings(length)
        mask = self._mask(length, max_length)
        for layer in range(config.num_layers):
            hidden = self._layer(hidden, mask, layer)
        if config.scores_pairs:
            self._head(hidden)
        else:
            writer.node("Identity", [hidden], "/output", ["last_hidden_state"])
            writer.output("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", config.hidden_size])
        return max_length

    def _embeddings(self, length: str) -> str:
        writer, config, width = self._writer, self._config, self._config.hidden_size
        words = self._tensor("words", None, "weight", (None, width))
        hidden = writer.node("Gather", [words, "input_ids"], "/embeddings/words")
        positions = self._tensor("positions", None, "weight", (None, width))
        start = self._ints(config.first_position)
        end = writer.node("Add", [length, start], "/embeddings/positions/end")
        rows = writer.node("Slice", [positions, start, end, self._ints(0)], "/embeddings/positions")
        hidden = writer.node("Add", [hidden, rows], "/embeddings/Add")
        if config.family not in ("distilbert", "mpnet"):
            types = self._tensor("types", None, "weight", (None, width))
            ids = writer.constant(np.array([0], np.int64))
            if self._shape("types", None, "weight", None, width)[0] > 1:
                ids = writer.input("token_type_ids", TensorProto.INT64, ["batch", "sequence"])
            rows = writer.node("Gather", [types, ids], "/embeddings/types")
            hidden = writer.node("Add", [hidden, rows], "/embeddings/types/Add")
        return self._norm(hidden, "embedding_norm", None)

    def _mask(self, length: str, max_length: int) -> str:
        """What is added to the score of each query and key: float32, broadcast to `[batch, heads, queries, keys]`."""
        writer = self._writer
        present = writer.node("Cast", ["attention_mask"], "/mask/Cast", to=TensorProto.BOOL)
        present = writer.node("Unsqueeze", [present, self._ints(1, 2)], "/mask/Unsqueeze")
        lowest = writer.constant(float(np.finfo(np.float32).min))
        mask = writer.node("Where", [present, writer.constant(0.0), lowest], "/mask")
        if self._config.family != "mpnet":
            return mask
        bias = self._tensor("distances", None, "weight", (None, self._config.num_heads))
        num_buckets = self._shape("distances", None, "weight", None, None)[0]
        buckets = writer.constant(distance_buckets(max_length, num_buckets))
        scalar = writer.node("Squeeze", [length], "/distances/length")
        zero, one = writer.constant(0), writer.constant(1)
        positions = writer.node("Range", [zero, scalar, one], "/distances/positions")
        keys = writer.node("Unsqueeze", [positions, self._ints(0)], "/distances/keys")
        queries = writer.node("Unsqueeze", [positions, self._ints(1)], "/distances/queries")
        distances = writer.node("Sub", [keys, queries], "/distances/Sub")
        index = writer.node("Add", [distances, writer.constant(max_length - 1)], "/distances/Add")
        rows = writer.node("Gather", [bias, writer.node("Gather", [buckets, index], "/buckets")], "/distances/bias")
        by_head = writer.node("Transpose", [rows], "/distances/Transpose", perm=[2, 0, 1])
        return writer.node("Add", [mask, by_head], "/mask/Add")

    def _layer(self, hidden: str, mask: str, layer: int) -> str:
        writer, config, width = self._writer, self._config, self._config.hidden_size
        base, head_size = f"/layers.{layer}", config.hidden_size // config.num_heads
        names = [self._weights.key(name, layer) for name in ("query", "key", "value")]
        biases = [self._weights.key(name, layer, "bias") for name in ("query", "key", "value")]
        for key in names:
            self._check(key, (width, width))
        for key in biases:
            self._check(key, (width,))
        weight = self._stream(f"layers.{layer}.qkv.weight", (3 * width, width), *names)
        bias = self._stream(f"layers.{layer}.qkv.bias", (3 * width,), *biases)
        matrix = FloatMatrix(weight, 3 * width, width, TensorProto.FLOAT)
        projected = writer.node("Add", [add_product(writer, f"{base}/qkv", hidden, matrix), bias], f"{base}/qkv/Add")
        shape = writer.constant(np.array([0, 0, 3, config.num_heads, head_size], np.int64))
        projected = writer.node("Reshape", [projected, shape], f"{base}/qkv/Reshape")
        projected = writer.node("Transpose", [projected], f"{base}/qkv/Transpose", perm=[2, 0, 3, 1, 4])
        query, key, value = (
            writer.node("Gather", [projected, writer.constant(index)], f"{base}/{name}", axis=0)
            for index, name in enumerate(("query", "key", "value"))
        )
        key = writer.node("Transpose", [key], f"{base}/key/Transpose", perm=[0, 1, 3, 2])
        scores = writer.node("MatMul", [query, key], f"{base}/scores")
        scores = writer.node("Mul", [scores, writer.constant(head_size**-0.5)], f"{base}/scores/Mul")
        scores = writer.node("Add", [scores, mask], f"{base}/scores/Add")
        shares = writer.node("Softmax", [scores], f"{base}/Softmax", axis=-1)
        context = writer.node("MatMul", [shares, value], f"{base}/context")
        context = writer.node("Transpose", [context], f"{base}/context/Transpose", perm=[0, 2, 1, 3])
        shape = writer.constant(np.array([0, 0, width], np.int64))
        context = writer.node("Reshape", [context, shape], f"{base}/context/Reshape")
        context = self._linear(context, "attention_output", layer)
        hidden = self._norm(writer.node("Add", [hidden, context], f"{base}/attention/Add"), "attention_norm", layer)
        inner = self._activation(self._linear(hidden, "up", layer), f"{base}/activation")
        outer = self._linear(inner, "down", layer)
        return self._norm(writer.node("Add", [hidden, outer], f"{base}/Add"), "output_norm", layer)

    def _head(self, hidden: str) -> None:
        """The classification head on the first token's state."""
        writer = self._writer
        first = writer.node("Gather", [hidden, writer.constant(0)], "/head/first", axis=1)
        pooled = self._linear(first, "pooler", None)
        pooled = writer.node("Relu" if self._config.family == "distilbert" else "Tanh", [pooled], "/head/activation")
        logits = self._linear(pooled, "classifier", None)
        writer.node("Identity", [logits], "/output", ["logits"])
        writer.output("logits", TensorProto.FLOAT, ["batch", self._weights.shape(self._weights.key("classifier"))[0]])

    def _linear(self, value: str, name: str, layer: int | None) -> str:
        rows, columns = self._shape(name, layer, "weight", None, None)
        weight = self._tensor(name, layer, "weight", (rows, columns))
        bias = self._tensor(name, layer, "bias", (rows,))
        base = f"/{self._label(name, layer)}"
        product = add_product(self._writer, base, value, FloatMatrix(weight, rows, columns, TensorProto.FLOAT))
        return self._writer.node("Add", [product, bias], f"{base}/Add")

    def _norm(self, value: str, name: str, layer: int | None) -> str:
        width = (self._config.hidden_size,)
        scale, bias = (self._tensor(name, layer, part, width) for part in ("weight", "bias"))
        return self._writer.node(
            "LayerNormalization",
            [value, scale, bias],
            f"/{self._label(name, layer)}",
            axis=-1,
            epsilon=self._config.layer_norm_eps,
        )

    def _activation(self, value: str, name: str) -> str:
        if self._config.activation == "relu":
            return self._writer.node("Relu", [value], name)
        approximate = "tanh" if self._config.activation == "gelu_tanh" else "none"
        return self._writer.node("Gelu", [value], name, approximate=approximate)

    # Weights

    def _tensor(self, name: str, layer: int | None, part: str, shape: tuple[int | None, ...]) -> str:
        """Announce a tensor of the file as an initialiser and return its name; `None` in `shape` is any size."""
        key = self._weights.key(name, layer, part)
        self._check(key, shape)
        return self._stream(f"{self._label(name, layer)}.{part}", self._weights.shape(key), key)

    def _stream(self, name: str, shape: tuple[int, ...], *keys: str) -> str:
        spec = TensorSpec(name, TensorProto.FLOAT, shape)
        self._writer.stream([spec], lambda: self._weights.pieces(*keys))
        return name

    def _shape(self, name: str, layer: int | None, part: str, *expected: int | None) -> tuple[int, ...]:
        key = self._weights.key(name, layer, part)
        self._check(key, expected)
        return self._weights.shape(key)

    def _check(self, key: str, expected: tuple[int | None, ...]) -> None:
        found = self._weights.shape(key)
        fits = len(found) == len(expected) and all(
            size >= 1 and wanted in (None, size) for size, wanted in zip(found, expected, strict=True)
        )
        if not fits:
            raise CorruptFile(f"{self._weights.path}: {key} has the shape {found}, {expected} is expected")

    @staticmethod
    def _label(name: str, layer: int | None) -> str:
        return name if layer is None else f"layers.{layer}.{name}"

    def _ints(self, *values: int) -> str:
        return self._writer.constant(np.array(values, np.int64))


def distance_buckets(max_length: int, num_buckets: int) -> NDArray[np.int64]:
    """Bucket of each distance key - query from 1 - max_length to max_length - 1: int64 `[2 * max_length - 1]`.

    Half of the buckets for keys after the query; of each half, half for single distances, the rest for distances that
    grow logarithmically (T5, arXiv:1910.10683).
    """
    distances = np.arange(1 - max_length, max_length)
    half = num_buckets // 2
    exact = half // 2
    away = np.abs(distances)
    scaled = np.log(np.maximum(away, 1) / exact) / math.log(_MAX_DISTANCE / exact) * (half - exact)
    far = np.minimum(exact + scaled.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(away < exact, away, far)
