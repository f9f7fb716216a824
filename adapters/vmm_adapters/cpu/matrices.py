"""The weight matrices of a decoder's graph, and the nodes that multiply by them.

    MatMul(x, W)                                    W float [columns, rows]
    MatMul(x, Transpose(W))                         W float [rows, columns]
    MatMulNBits(x, levels, scales[, zero points])   packed; `+ MatMul(ReduceSum(groups of x), Transpose(offsets))`

and a bias added to any of these. A matrix that is used twice, as a tied embedding is, is one object.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_adapters.cpu.graph_walk import ANY, FLOATS, Walk
from vmm_adapters.cpu.onnx_graph import MICROSOFT, Node, Tensor, refusal
from vmm_adapters.cpu.plan import DenseMatrix, Linear, Matrix, QuantizedMatrix

MATMUL_NBITS = MICROSOFT + "MatMulNBits"
MIN_BLOCK_SIZE = 16
NARROW = (TensorProto.INT4, TensorProto.UINT4)
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class PackedNames:
    """A quantised matrix, as a node has it: names of constants, empty where there is none, and sizes."""

    levels: str
    scales: str
    zero_points: str
    offsets: str
    rows: int
    columns: int
    bits: int
    block_size: int

    @property
    def groups(self) -> int:
        """Blocks in a row."""
        return -(-self.columns // self.block_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and their groups."""
        return self.rows, self.groups


class MatrixReader:
    """Matches products and lookups."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._dense: dict[tuple[str, bool], DenseMatrix] = {}
        self._quantized: dict[PackedNames, QuantizedMatrix] = {}

    def leads_to_product(self, value: str) -> bool:
        """Whether a value is a product, up to what is added, multiplied or normalised with constants."""
        node = self._walk.peek(value)
        while node is not None:
            if node.operator in ("MatMul", MATMUL_NBITS):
                return True
            if node.operator in ("Add", "Mul"):
                operands = self._walk.operand(node)
                if operands is None:
                    return self.is_shifted(node)
                node = self._walk.peek(operands[1])
            elif node.operator in ("SimplifiedLayerNormalization", "RMSNormalization"):
                node = self._walk.peek(node.input(0))
            else:
                return False
        return False

    def is_shifted(self, node: Node) -> bool:
        """Whether a node adds the products of a matrix's offsets to those of its levels."""
        operators = {before.operator for value in node.inputs if (before := self._walk.peek(value))}
        return node.operator == "Add" and operators == {MATMUL_NBITS, "MatMul"}

    def linear(self, value: str, what: str) -> tuple[Linear, str]:
        """(matrix and bias, what is multiplied) of a value. Raises `UnsupportedModel`."""
        node = self._walk.peek(value)
        bias: str | None = None
        if node is not None and node.operator == "Add" and (operands := self._walk.operand(node)):
            self._walk.meet(node)
            bias, value = operands
        matrix, source, inner = self._product(value, what)
        if bias is not None and inner is not None:
            raise refusal(node or inner, "a second bias is not supported")
        reader = node if bias is not None else inner
        if reader is None:
            return Linear(matrix), source
        return Linear(matrix, self._walk.vector(bias or reader.input(5), reader, "the bias", matrix.rows)), source

    def split_linear(self, values: Sequence[str], sizes: list[int] | None, what: str) -> tuple[Linear, str]:
        """(matrix and bias, what is multiplied) of parts of one product, `sizes` wide; `None`: equal ones."""
        walk = self._walk
        nodes = [walk.expect(value, "Split", what=what, output=index) for index, value in enumerate(values)]
        node = nodes[0]
        walk.check_attributes(node, {"axis": (-1, 2), "num_outputs": len(values), "split": ANY})
        if set(nodes) != {node} or len(node.outputs) != len(values) or "axis" not in node.attributes:
            raise refusal(node, f"{what}, in {len(values)} parts of the last axis, is expected")
        linear, source = self.linear(node.input(0), what)
        equal = [linear.matrix.rows // len(values)] * len(values)
        found = node.attributes.get("split") or walk.integers(node.input(1)) or ([] if node.input(1) else equal)
        if found != (sizes or equal) or sum(sizes or equal) != linear.matrix.rows:
            raise refusal(node, f"its parts are {found} of {linear.matrix.rows}; {sizes or equal} is expected")
        return linear, source

    def _product(self, value: str, what: str) -> tuple[Matrix, str, Node | None]:
        """(the matrix, what is multiplied by it, the node if it adds a bias)."""
        node = self._walk.expect(value, "MatMul", MATMUL_NBITS, "Add", what=what)
        if node.operator == "MatMul":
            return self.dense(node.input(1), node, by_row=False), node.input(0), None
        offsets = ""
        if node.operator == "Add":
            if not self.is_shifted(node):
                raise refusal(node, f"{what} is expected here (MatMul or MatMulNBits)")
            shift, node = sorted(filter(None, map(self._walk.peek, node.inputs)), key=lambda each: each.operator)
            self._walk.meet(node)
            offsets = self._offsets(shift, node)
        known = {"K": ANY, "N": ANY, "bits": ANY, "block_size": ANY, "accuracy_level": ANY, "weight_prepacked": 0}
        self._walk.check_attributes(node, known)
        if node.input(4):
            raise refusal(node, "the input g_idx (groups in another order) is not supported")
        sizes = (
            int(node.number(name, default)) for name, default in (("N", 0), ("K", 0), ("bits", 4), ("block_size", 0))
        )
        names = PackedNames(node.input(1), node.input(2), node.input(3), offsets, *sizes)
        return self.packed(names, node), node.input(0), node if node.input(5) else None

    def _offsets(self, shift: Node, product: Node) -> str:
        """The offsets in `sum of each group of x · offsets`, which is added to the product of x."""
        walk = self._walk
        walk.meet(shift)
        sums = walk.expect(shift.input(0), "ReduceSum", what="the sum of each group")
        walk.check_attributes(sums, {"keepdims": 0, "noop_with_empty_axes": 0})
        if sums.attributes.get("keepdims", 1) or walk.integers(sums.input(1)) not in ([-1], [3]):
            raise refusal(sums, "the sum over the last axis alone is expected")
        groups = walk.expect(sums.input(0), "Reshape", what="the input in groups")
        walk.check_shape(groups, groups.input(1), [0, 0, -1, int(product.number("block_size", 0))])
        if groups.input(0) != product.input(0):
            raise refusal(groups, f"the input of {product} is expected")
        turned = walk.expect(shift.input(1), "Transpose", what="offsets by group")
        walk.check_attributes(turned, {"perm": [1, 0]})
        return turned.input(0)

    def dense(self, value: str, node: Node, *, by_row: bool) -> DenseMatrix:
        """The float constant that `node` reads: `[rows, columns]` if `by_row`; a Transpose before turns that round."""
        before = self._walk.peek(value)
        if before is not None and before.operator == "Transpose":
            self._walk.meet(before)
            self._walk.check_attributes(before, {"perm": [1, 0]})
            value, by_row = before.input(0), not by_row
        tensor = self._walk.constant(value, node, "the weight", *FLOATS, TensorProto.BFLOAT16)
        if len(tensor.shape) != 2:
            raise refusal(node, f"the weight {tensor.name!r} is {tensor.shape}; two axes are expected")
        if (tensor.name, by_row) not in self._dense:
            values = tensor.values if by_row else tensor.values.T
            rows, columns = values.shape
            matrix = DenseMatrix(tensor.name, rows, columns, values, tensor.dtype == TensorProto.BFLOAT16)
            self._dense[tensor.name, by_row] = matrix
        return self._dense[tensor.name, by_row]

    def packed(self, names: PackedNames, node: Node) -> QuantizedMatrix:
        """The quantised matrix that `node` reads."""
        if names.bits not in (4, 8):
            raise refusal(node, f"{names.bits} bits are not supported; 4 or 8 are")
        if names.block_size < MIN_BLOCK_SIZE or names.block_size & (names.block_size - 1):
            raise refusal(node, f"blocks of {names.block_size} are not supported; a power of two from 16 on is")
        if names.rows <= 0 or names.columns <= 0:
            raise refusal(node, f"a matrix of {names.rows} x {names.columns} has no weights")
        names = replace(names, levels=self._unshaped(names.levels, node))
        if names not in self._quantized:
            self._quantized[names] = self._read_packed(names, node)
        return self._quantized[names]

    def _unshaped(self, value: str, node: Node) -> str:
        """The constant behind a Reshape: the order of its numbers is the same."""
        before = self._walk.peek(value)
        if before is None or before.operator != "Reshape" or before.input(0) not in self._walk.graph.constants:
            return value
        self._walk.meet(before)
        if self._walk.integers(before.input(1)) is None:
            raise refusal(before, "its shape is expected to be constant")
        return before.input(0)

    def _read_packed(self, names: PackedNames, node: Node) -> QuantizedMatrix:
        walk = self._walk
        levels = walk.constant(names.levels, node, "the levels", TensorProto.UINT8, *NARROW)
        kinds = (levels.dtype,) if levels.dtype in NARROW else (TensorProto.UINT8, *FLOATS)
        scales = walk.constant(names.scales, node, "the scales", *FLOATS)
        zero_points = walk.constant(names.zero_points, node, "the zero points", *kinds) if names.zero_points else None
        offsets = walk.constant(names.offsets, node, "the offsets", *FLOATS) if names.offsets else None
        for tensor in (levels, scales, zero_points, offsets):
            if tensor is not None and len(tensor.shape) > 1 and tensor.shape[0] != names.rows:
                raise refusal(node, f"{tensor.name!r} is {tensor.shape}; {names.rows} rows are expected")
        packed = levels.values.view(np.uint8)
        if levels.dtype == TensorProto.INT4:  # from -8 on: counted from 0 on, and so are its zero points
            packed = packed ^ np.uint8(0x88)
        points = None if zero_points is None else self._zero_points(zero_points, names, node)
        if points is None and levels.dtype == TensorProto.UINT4:  # which has no middle of its own
            points = np.zeros(names.grid, np.uint8)
        return QuantizedMatrix(
            name=names.levels,
            rows=names.rows,
            columns=names.columns,
            bits=names.bits,
            block_size=names.block_size,
            levels=_shaped(packed, (*names.grid, names.block_size * names.bits // 8), "the levels", node),
            scales=_shaped(_floats(scales), names.grid, "the scales", node),
            zero_points=points,
            offsets=None if offsets is None else _shaped(_floats(offsets), names.grid, "the offsets", node),
        )

    def _zero_points(self, tensor: Tensor, names: PackedNames, node: Node) -> NDArray[np.uint8] | NDArray[np.floating]:
        """Zero points `[rows, groups]`; whole ones are packed as the levels are."""
        what = "the zero points"
        if tensor.dtype in FLOATS:
            return _shaped(_floats(tensor), names.grid, what, node)
        packed = tensor.values.view(np.uint8)
        if names.bits == 8:
            return _shaped(packed, names.grid, what, node)
        if tensor.dtype not in NARROW:
            rows = _unpacked(_shaped(packed, (names.rows, -(-names.groups // 2)), what, node))
            return np.ascontiguousarray(rows[:, : names.groups])
        unpacked = _unpacked(packed)[: math.prod(names.grid)]  # rows follow each other within a byte
        return _shaped(unpacked ^ np.uint8(8 if tensor.dtype == TensorProto.INT4 else 0), names.grid, what, node)


def _floats(tensor: Tensor) -> NDArray[np.floating]:
    """Numbers whose type was checked."""
    return cast("NDArray[np.floating]", tensor.values)


def _shaped(values: NDArray[T], shape: tuple[int, ...], what: str, node: Node) -> NDArray[T]:
    """A view in `shape`; refuses `node` where that is another count of numbers."""
    if values.size != math.prod(shape):
        raise refusal(node, f"{what} are {values.size} numbers; {shape} is expected")
    return values.reshape(shape)


def _unpacked(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two levels of each byte, the low one first: `[…, n]` to `[…, 2n]`."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)
