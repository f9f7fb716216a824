"""The embedding of a decoder's graph: rows of a matrix, looked up by token.

    Gather(W or Transpose(W), ids)                                      W float
    GatherBlockQuantized(levels, ids, scales[, zero points])[, Slice]   the slice cuts off what fills the last block
    Reshape((level - zero point) · scale[ + offset])                    standard operators on the gathered rows

The last form takes levels of 4 bits apart by a table with a row for each byte. Any may be multiplied by a number.
"""

import numpy as np
from onnx import TensorProto

from vmm_adapters.cpu.graph_walk import ANY, Walk
from vmm_adapters.cpu.matrices import NARROW, MatrixReader, PackedNames
from vmm_adapters.cpu.onnx_graph import MICROSOFT, Node, refusal
from vmm_adapters.cpu.plan import Matrix

GATHER_BLOCK_QUANTIZED = MICROSOFT + "GatherBlockQuantized"
INPUT_IDS = "input_ids"
_WHAT = "the embedding"


class EmbeddingReader:
    """Matches the lookup of tokens."""

    def __init__(self, walk: Walk, matrices: MatrixReader) -> None:
        self._walk = walk
        self._matrices = matrices

    def embedding(self, value: str) -> tuple[Matrix, float]:
        """(the matrix, what its rows are multiplied by) of a value. Raises `UnsupportedModel`."""
        scale, walk = 1.0, self._walk
        node = walk.peek(value)
        if node is not None and node.operator == "Mul" and (operands := walk.operand(node)):
            walk.meet(node)
            value, scale = operands[1], walk.number(operands[0], node, "the embedding's factor")
        node = walk.expect(value, "Gather", GATHER_BLOCK_QUANTIZED, "Slice", "Reshape", what=_WHAT)
        if node.operator == "Gather":
            self._check_gather(node)
            return self._matrices.dense(node.input(0), node, by_row=True), scale
        if node.operator == "Reshape":
            return self._taken_apart(node), scale
        columns: int | None = None
        if node.operator == "Slice":
            columns = self._slice(node)
            node = walk.expect(node.input(0), GATHER_BLOCK_QUANTIZED, what=_WHAT)
        return self._block_quantized(node, columns), scale

    def _check_gather(self, node: Node) -> None:
        self._walk.check_attributes(node, {"axis": 0})
        if node.input(1) != INPUT_IDS:
            raise refusal(node, f"rows are looked up by {node.input(1)!r}; {INPUT_IDS} is expected")

    def _slice(self, node: Node) -> int:
        """The columns that are left of each row."""
        start, end, axes, steps = (self._walk.integers(node.input(index)) for index in range(1, 5))
        if start != [0] or axes not in ([-1], [2]) or steps not in (None, [1]) or not end or end[0] <= 0:
            raise refusal(node, "the first columns of each row are expected")
        return end[0]

    def _block_quantized(self, node: Node, columns: int | None) -> Matrix:
        known = {"bits": ANY, "block_size": ANY, "gather_axis": 0, "quantize_axis": (1, -1)}
        self._walk.check_attributes(node, known)
        if node.input(1) != INPUT_IDS:
            raise refusal(node, f"rows are looked up by {node.input(1)!r}; {INPUT_IDS} is expected")
        shape, dtype = self._stored(node)
        if len(shape) != 2:
            raise refusal(node, f"its levels are {shape}; two axes are expected")
        bits = 4 if dtype in NARROW else int(node.number("bits", 4))
        stored = shape[1] if dtype in NARROW else shape[1] * 8 // max(bits, 1)
        block_size = int(node.number("block_size", 128))
        if columns is not None and not stored - block_size < columns <= stored:
            raise refusal(
                node, f"{columns} columns are taken of {stored}; all but what fills the last block are expected"
            )
        names = PackedNames(
            *(node.input(0), node.input(2), node.input(3), ""),
            *(shape[0], stored if columns is None else columns, bits, block_size),
        )
        return self._matrices.packed(names, node)

    def _stored(self, node: Node) -> tuple[tuple[int, ...], int]:
        """(shape, data type) of the levels, which a Reshape may have given their shape."""
        graph, value = self._walk.graph, node.input(0)
        before = self._walk.peek(value)
        shape: tuple[int, ...] | None = None
        if before is not None and before.operator == "Reshape":
            if (found := self._walk.integers(before.input(1))) is None:
                raise refusal(before, "its shape is expected to be constant")
            shape, value = tuple(found), before.input(0)
        if value not in graph.constants:
            raise refusal(node, "its levels are expected to be constant")
        return graph.constants[value].shape if shape is None else shape, graph.constants[value].dtype

    def _taken_apart(self, node: Node) -> Matrix:
        """Levels, scales and zero points of the rows, each gathered on its own."""
        walk = self._walk
        shape = walk.integers(node.input(1))
        if shape is None or len(shape) != 3 or shape[:2] != [0, 0] or shape[2] <= 0:
            raise refusal(node, f"its shape is {shape}; [0, 0, columns] is expected")
        columns = shape[2]
        last = walk.expect(node.input(0), "Mul", "Add", what="the rows' weights")
        offsets = ""
        if last.operator == "Add":
            offsets = self._of_groups(last.input(1), "the offsets")
            last = walk.expect(last.input(0), "Mul", what="the rows' levels times scales")
        scales = self._of_groups(last.input(1), "the scales")
        centred = walk.expect(last.input(0), "Sub", what="the rows' levels less their zero points")
        levels, bits, block_size = self._levels(centred.input(0))
        zero_points = ""
        if (middle := walk.scalar(centred.input(1))) is None:
            zero_points = self._of_groups(centred.input(1), "the zero points")
        elif middle != 2 ** (bits - 1):
            raise refusal(centred, f"the zero point is {middle}; {2 ** (bits - 1)} is expected")
        rows = walk.graph.constants[levels].shape[0]
        return self._matrices.packed(
            PackedNames(levels, scales, zero_points, offsets, rows, columns, bits, block_size), node
        )

    def _of_groups(self, value: str, what: str) -> str:
        """A constant with one number for each block of the rows."""
        node = self._walk.expect(value, "Unsqueeze", what=what)
        if self._walk.integers(node.input(1)) not in ([-1], [3]):
            raise refusal(node, "a new last axis is expected")
        gather = self._walk.expect(node.input(0), "Gather", what=what)
        self._check_gather(gather)
        return gather.input(0)

    def _levels(self, value: str) -> tuple[str, int, int]:
        """(name, bits, block size) of the levels that were gathered."""
        walk = self._walk
        node = walk.expect(value, "Gather", "Reshape", what="the rows' levels")
        bits = 8
        if node.operator == "Reshape":
            bits, shaped = 4, node
            lookup = walk.expect(node.input(0), "Gather", what="the levels in each byte")
            self._check_table(lookup)
            cast = walk.expect(lookup.input(1), "Cast", what="the rows' bytes")
            walk.check_attributes(cast, {"to": TensorProto.INT32})
            node = walk.expect(cast.input(0), "Gather", what="the rows' bytes")
        self._check_gather(node)
        tensor = walk.constant(node.input(0), node, "the levels", TensorProto.UINT8)
        if len(tensor.shape) != 3:
            raise refusal(node, f"the levels {tensor.name!r} are {tensor.shape}; [rows, blocks, bytes] is expected")
        block_size = tensor.shape[2] * 8 // bits
        if bits == 4:
            walk.check_shape(shaped, shaped.input(1), [0, 0, -1, block_size])
        return tensor.name, bits, block_size

    def _check_table(self, node: Node) -> None:
        table = self._walk.constant(node.input(0), node, "the table of each byte's levels", TensorProto.FLOAT)
        low_high = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1)
        self._walk.check_attributes(node, {"axis": 0})
        if not np.array_equal(table.values, low_high):
            raise refusal(node, f"the table {table.name!r} is not that of two levels in each byte, the low one first")
