"""What the ONNX graphs of Whisper and CLIP are made of: linear layers, norms, attention and feed-forward.

Standard operators of opset 17 alone, in float32. Matrices are stored as their source has them, 16-bit ones with a
`Cast` beside them; vectors always in float32. Names are transformers'.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.onnx_matrix import FloatMatrix, add_product
from vmm_server.models.importers.onnx_writer import ModelWriter, Pieces, TensorSpec
from vmm_server.models.importers.stored_weights import StoredWeights, as_float32

OPSET = 17
EPSILON = 1e-5
"""Of layer norms, as PyTorch has it."""


class GraphParts:
    """Adds to one graph. A value is known by its name; every part returns that of its result."""

    def __init__(
        self, writer: ModelWriter, weights: StoredWeights, d_model: int, num_heads: int, *, epsilon: float = EPSILON
    ) -> None:
        self.writer = writer
        self.width = d_model
        self.num_heads = num_heads
        self.head_size = d_model // num_heads
        self._weights = weights
        self._epsilon = epsilon

    def linear(self, value: str, name: str, rows: int, columns: int, *, has_bias: bool = True) -> str:
        """`value @ weight.T + bias` of the layer `name`."""
        product = add_product(self.writer, f"/{name}", value, self.matrix([f"{name}.weight"], rows, columns))
        if not has_bias:
            return product
        return self.writer.node("Add", [product, self.vector(f"{name}.bias", rows)], f"/{name}/Add")

    def norm(self, value: str, name: str) -> str:
        """The layer norm `name`."""
        scale, bias = (self.vector(f"{name}.{part}", self.width) for part in ("weight", "bias"))
        return self.writer.node("LayerNormalization", [value, scale, bias], f"/{name}", axis=-1, epsilon=self._epsilon)

    def gelu(self, value: str, base: str) -> str:
        """Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`; opset 17 has no operator for it, runtimes know the form."""
        writer = self.writer
        scaled = writer.node("Div", [value, writer.constant(float(np.sqrt(2)))], f"{base}/Div")
        erf = writer.node("Erf", [scaled], f"{base}/Erf")
        product = writer.node("Mul", [value, writer.node("Add", [erf, writer.constant(1.0)], f"{base}/Add")], f"{base}")
        return writer.node("Mul", [product, writer.constant(0.5)], f"{base}/half")

    def by_head(self, value: str, base: str, output: str | None = None) -> str:
        """`[batch, length, width]` to `[batch, heads, length, head_dim]`; the result may be called `output`."""
        shape = self.ints(0, 0, self.num_heads, self.head_size)
        split = self.writer.node("Reshape", [value, shape], f"{base}/Reshape")
        return self.writer.node(
            "Transpose", [split], f"{base}/Transpose", [output] if output else None, perm=[0, 2, 1, 3]
        )

    def attention(self, base: str, query: str, key: str, value: str, mask: str | None = None) -> tuple[str, str]:
        """(`[batch, length, width]`, the softmax `[batch, heads, length, keys]`) of queries, keys and values by head.

        `mask` is added to the scores.
        """
        writer = self.writer
        scaled = writer.node("Mul", [query, writer.constant(self.head_size**-0.5)], f"{base}/scaled")
        keys = writer.node("Transpose", [key], f"{base}/keys", perm=[0, 1, 3, 2])
        scores = writer.node("MatMul", [scaled, keys], f"{base}/scores")
        if mask is not None:
            scores = writer.node("Add", [scores, mask], f"{base}/masked")
        shares = writer.node("Softmax", [scores], f"{base}/Softmax", axis=-1)
        context = writer.node("MatMul", [shares, value], f"{base}/context")
        context = writer.node("Transpose", [context], f"{base}/context/Transpose", perm=[0, 2, 1, 3])
        return writer.node("Reshape", [context, self.ints(0, 0, self.width)], f"{base}/context/Reshape"), shares

    def feed_forward(self, hidden: str, layer: str, inner: int) -> str:
        """The second half of a layer of Whisper (arXiv:2212.04356, figure 1), added to `hidden`."""
        value = self.linear(self.norm(hidden, f"{layer}.final_layer_norm"), f"{layer}.fc1", inner, self.width)
        value = self.linear(self.gelu(value, f"/{layer}.gelu"), f"{layer}.fc2", self.width, inner)
        return self.add(hidden, value, f"/{layer}.feed_forward")

    def add(self, first: str, second: str, base: str) -> str:
        """Their sum."""
        return self.writer.node("Add", [first, second], f"{base}/Add")

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.writer.constant(np.array(values, np.int64))

    def matrix(self, names: list[str], rows: int, columns: int, label: str | None = None) -> FloatMatrix:
        """Announce `[rows, columns]`, made of the equally high weights `names` below each other."""
        label = label or names[0]
        dtypes = {self.check(name, rows // len(names), columns) for name in names}
        dtype = dtypes.pop() if len(dtypes) == 1 else TensorProto.FLOAT
        is_mixed = bool(dtypes)

        def pieces() -> Pieces:
            for name in names:
                for piece in self._weights.pieces(name):
                    yield (as_float32(piece) if is_mixed else piece,)

        self.writer.stream([TensorSpec(label, dtype, (rows, columns))], pieces)
        return FloatMatrix(label, rows, columns, dtype)

    def tensor(self, name: str, *shape: int) -> str:
        """Announce the weight `name` and return its value in float32."""
        dtype = self.check(name, *shape)
        self.writer.stream([TensorSpec(name, dtype, shape)], lambda: ((piece,) for piece in self._weights.pieces(name)))
        if dtype == TensorProto.FLOAT:
            return name
        return self.writer.node("Cast", [name], f"/{name}/Cast", to=TensorProto.FLOAT)

    def vector(self, name: str, size: int) -> str:
        """Announce the vector `name` in float32."""
        return self.vectors([name], size, name)

    def vectors(self, names: list[str | None], size: int, label: str) -> str:
        """Announce vectors of `size` each, one after the other, in float32; `None` stands for zeros."""
        for name in names:
            if name is not None:
                self.check(name, size)
        spec = TensorSpec(label, TensorProto.FLOAT, (size * len(names),))
        self.writer.stream([spec], lambda: self._vectors(names, size))
        return label

    def _vectors(self, names: list[str | None], size: int) -> Iterator[tuple[NDArray[np.generic]]]:
        for name in names:
            if name is None:
                yield (np.zeros(size, np.float32),)
                continue
            for piece in self._weights.pieces(name):
                yield (as_float32(piece),)

    def check(self, name: str, *shape: int) -> int:
        """The type of the weight `name`. Raises `CorruptFile` when it has another shape."""
        stored = self._weights.stored(name)
        if stored.shape != shape:
            raise CorruptFile(
                f"{self._weights.path}: {name} has the shape {stored.shape}, {shape} is expected",
                hint="get another copy of this model",
            )
        return stored.dtype
