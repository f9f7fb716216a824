"""An ONNX decoder as layers of matrices, by strict matching of its graph.

The walk goes from the logits back to the tokens. The residual stream is a chain of sums, attention's and the MLP's in
turn: each sum is (what was before, what is added), and what is added must be computed from what was before.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.attention_nodes import AttentionReader
from vmm_adapters.cpu.graph_walk import Walk
from vmm_adapters.cpu.lookups import EmbeddingReader
from vmm_adapters.cpu.matrices import MatrixReader
from vmm_adapters.cpu.mlp_nodes import read_mlp
from vmm_adapters.cpu.norms import NORMS, SKIP_NORM, SUM_OUTPUT, NormReader
from vmm_adapters.cpu.onnx_graph import Graph, Node, read_graph, refusal
from vmm_adapters.cpu.plan import DecoderPlan, Layer, Matrix
from vmm_adapters.errors import UnsupportedModel

LOGITS, PRESENT = "logits", "present"
Sum = tuple[str, str]
"""Of the residual stream: (what was before, what is added), or the other way round."""
Weights = NDArray[np.float32]


def read_plan(path: Path, *, context_length: int | None) -> DecoderPlan:
    """The decoder in an ONNX file; `context_length` bounds its positions, if its rotary tables do not.

    Raises `UnsupportedModel` naming the first node that is not of a known decoder, and for a file that is damaged.
    """
    return _DecoderReader(read_graph(path), context_length).read()


@dataclass(frozen=True, slots=True)
class _Added:
    """What is added to the residual stream, up to its last product."""

    value: str
    scale: float
    post_norm: Weights | None


class _DecoderReader:
    def __init__(self, graph: Graph, context_length: int | None) -> None:
        self._graph, self._walk = graph, Walk(graph)
        self._matrices, self._norms = MatrixReader(self._walk), NormReader(self._walk)
        self._attention = AttentionReader(self._walk, self._matrices, self._norms, context_length)
        self._context_length = context_length
        self._width = 0

    def read(self) -> DecoderPlan:
        graph, walk = self._graph, self._walk
        if LOGITS not in graph.outputs:
            raise UnsupportedModel(f"{graph.path}: has no output {LOGITS!r}; its outputs are {sorted(graph.outputs)}")
        value, logit_scale, softcap = self._logits(graph.outputs[LOGITS])
        lm_head, value = self._matrices.linear(value, "the product with the head")
        self._width = lm_head.matrix.columns
        norm = walk.expect(self._unpruned(value), *NORMS, SKIP_NORM, what="the last norm")
        final_norm, stream = self._norms.weight(norm, self._width), self._normed(norm)
        layers: list[Layer] = []
        while isinstance(stream, tuple):
            layer, stream = self._layer(stream)
            layers.append(layer)
        embedding, embedding_scale = EmbeddingReader(walk, self._matrices).embedding(stream)
        if embedding.columns != self._width or embedding.rows < lm_head.matrix.rows:
            raise self._misfit(embedding, lm_head.matrix.rows, self._width)
        if not layers:
            raise UnsupportedModel(f"{graph.path}: has no layer")
        walk.check_all_met(
            [value for name, value in graph.outputs.items() if name == LOGITS or name.startswith(PRESENT)]
        )
        return DecoderPlan(
            embedding=embedding,
            embedding_scale=embedding_scale,
            layers=tuple(reversed(layers)),
            final_norm=final_norm,
            lm_head=lm_head,
            logit_scale=logit_scale,
            logit_softcap=softcap,
            epsilon=self._norms.epsilon or 0.0,
            context_length=self._positions(),
            files=graph.files,
        )

    def _positions(self) -> int:
        bounds = [bound for bound in (self._context_length, self._attention.max_positions) if bound is not None]
        if not bounds:
            raise UnsupportedModel(f"{self._graph.path}: no rotary table bounds its positions; set context_length")
        return min(bounds)

    def _logits(self, value: str) -> tuple[str, float, float | None]:
        """(the head's product, what it is multiplied by, what it is softly capped at)."""
        walk, scale, cap = self._walk, 1.0, None
        node = walk.peek(value)
        if node is not None and node.operator == "Mul" and self._is_tanh(node):
            walk.meet(node)
            constant, value = walk.operand(node) or ("", "")
            cap = walk.number(constant, node, "the cap of the logits")
            tanh = walk.expect(value, "Tanh", what="capped logits")
            node = walk.expect(tanh.input(0), "Div", what="logits divided by their cap")
            if walk.number(node.input(1), node, "the cap of the logits") != cap or cap <= 0:
                raise refusal(node, f"logits are expected to be divided by the cap they are multiplied by, {cap:g}")
            value = node.input(0)
            node = walk.peek(value)
        if node is not None and node.operator in ("Div", "Mul") and (operands := walk.operand(node)):
            walk.meet(node)
            constant, value = operands
            scale = walk.number(constant, node, "the factor of the logits")
            if node.operator == "Div":
                if not scale or constant != node.input(1):
                    raise refusal(node, "logits divided by a number are expected")
                scale = 1 / scale
        return value, scale, cap

    def _unpruned(self, value: str) -> str:
        """The value before all but a text's last row are dropped: which rows get logits is the kernels' choice."""
        walk, node = self._walk, self._walk.peek(value)
        if node is None or node.operator != "Unsqueeze":
            return value
        walk.meet(node)
        gather = walk.expect(node.input(0), "Gather", what="the last row")
        walk.check_attributes(gather, {"axis": 1})
        if walk.integers(gather.input(1)) != [-1] or walk.integers(node.input(1)) != [1] or not gather.attributes:
            raise refusal(gather, "the last row of each text is expected")
        return gather.input(0)

    def _is_tanh(self, node: Node) -> bool:
        operands = self._walk.operand(node)
        before = self._walk.peek(operands[1]) if operands else None
        return before is not None and before.operator == "Tanh"

    def _stream(self, value: str) -> Sum | str:
        """The residual stream as the sum it is, or the value where it begins."""
        found = self._graph.producer(value)
        if found is None:
            return value
        node, index = found
        is_sum = node.operator == "Add" and not self._walk.operand(node) and not self._matrices.is_shifted(node)
        if not is_sum and (node.operator, index) != (SKIP_NORM, SUM_OUTPUT):
            return value
        if node.operator == SKIP_NORM and node.input(3):
            raise refusal(node, "a bias is not supported")
        self._walk.meet(node)
        return node.input(0), node.input(1)

    def _normed(self, norm: Node) -> Sum | str:
        """What a norm normalises."""
        return (norm.input(0), norm.input(1)) if norm.operator == SKIP_NORM else self._stream(norm.input(0))

    def _input_norm(self, value: str, stream: Sum | str) -> Weights | None:
        """The norm between the residual stream and what attention or the MLP takes; `None`: it takes the stream."""
        if self._stream(value) == stream:
            return None
        norm = self._walk.expect(value, *NORMS, SKIP_NORM, what="the norm of the residual stream")
        if self._normed(norm) != stream:
            raise refusal(norm, "the residual stream, as it is at this place, is expected to be normalised")
        return self._norms.weight(norm, self._width)

    def _layer(self, stream: Sum) -> tuple[Layer, Sum | str]:
        """(the last layer of the stream, the stream before it)."""
        before, added = self._taken(stream)
        down, value = self._matrices.linear(added.value, "the last product of an MLP")
        mlp, source = read_mlp(self._walk, self._matrices, value)
        middle = self._stream(before)
        mlp_norm = self._input_norm(source, middle)
        if isinstance(middle, str):
            raise self._walk.unexpected(middle, "attention, added to the residual stream before an MLP is,")
        before, attended = self._taken(middle)
        output, value = self._matrices.linear(attended.value, "the projection of what attention gives")
        attention, source = self._attention.attention(value, output)
        start = self._stream(before)
        if added.scale != attended.scale:
            raise UnsupportedModel(
                f"{self._graph.path}: what attention and MLP give is scaled by {attended.scale:g} and {added.scale:g}, "
                f"at {added.value!r}; one number is expected"
            )
        layer = Layer(
            attention=attention,
            gate_up=mlp.gate_up,
            down=down,
            activation=mlp.activation,
            input_norm=self._input_norm(source, start),
            attention_post_norm=attended.post_norm,
            mlp_norm=mlp_norm,
            mlp_post_norm=added.post_norm,
            residual_scale=added.scale,
        )
        self._check_widths(layer)
        return layer, start

    def _taken(self, stream: Sum) -> tuple[str, _Added]:
        """(the stream before a sum, what the sum adds to it)."""
        before, value = stream if self._matrices.leads_to_product(stream[1]) else stream[::-1]
        walk, scale = self._walk, 1.0
        node = walk.peek(value)
        if node is not None and node.operator == "Mul" and (operands := walk.operand(node)):
            walk.meet(node)
            scale, value = walk.number(operands[0], node, "the factor of what is added"), operands[1]
            node = walk.peek(value)
        if node is None or node.operator not in NORMS:
            return before, _Added(value, scale, None)
        walk.meet(node)
        return before, _Added(node.input(0), scale, self._norms.weight(node, self._width))

    def _check_widths(self, layer: Layer) -> None:
        attention = layer.attention
        wide = attention.num_heads * attention.head_size
        rows = {linear.matrix.rows for linear in layer.gate_up}
        inner = layer.down.matrix.columns
        for linear in (*attention.projections, *layer.gate_up):
            if linear.matrix.columns != self._width:
                raise self._misfit(linear.matrix, linear.matrix.rows, self._width)
        for linear, shape in ((attention.output, (self._width, wide)), (layer.down, (self._width, inner))):
            if (linear.matrix.rows, linear.matrix.columns) != shape:
                raise self._misfit(linear.matrix, *shape)
        if rows != {inner * 2 // len(layer.gate_up)}:
            raise self._misfit(layer.down.matrix, self._width, min(rows))

    def _misfit(self, matrix: Matrix, rows: int, columns: int) -> UnsupportedModel:
        found = f"{matrix.rows} x {matrix.columns}"
        return UnsupportedModel(f"{self._graph.path}: {matrix.name!r} is {found}; {rows} x {columns} is expected")
