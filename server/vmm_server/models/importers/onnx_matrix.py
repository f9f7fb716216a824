"""What an ONNX graph does with a weight matrix: multiply by it, or look rows of it up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.models.importers.onnx_writer import MICROSOFT, ModelWriter


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """An initialiser `[rows, columns]` in float32, float16 or bfloat16."""

    name: str
    rows: int
    columns: int
    dtype: int
    """`TensorProto` data type."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Initialisers of one quantised matrix of `rows` output and `columns` input features."""

    levels: str
    """uint8 `[rows, groups, group_size * bits / 8]`, the first of each byte's levels in its low bits."""
    scales: str
    """float32 `[rows, groups]`, or the type of what is multiplied by it."""
    zero_points: str | None
    """float32 `[rows, groups]`, or packed as the levels are; `None` means `2 ** (bits - 1)`."""
    offsets: str | None
    """float32 `[rows, groups]`, added to every weight of the group."""
    rows: int
    columns: int
    bits: int
    group_size: int


Matrix = FloatMatrix | PackedMatrix


def add_product(writer: ModelWriter, base: str, value: str, matrix: Matrix, output: str | None = None) -> str:
    """`value @ matrix.T`: float32 `[batch, sequence, columns]` to `[batch, sequence, rows]`.

    Nodes are named under `base`; the result is called `output`, or after the last node.
    """
    outputs = [output] if output else None
    if isinstance(matrix, FloatMatrix):
        weight = matrix.name
        if matrix.dtype != TensorProto.FLOAT:
            weight = writer.node("Cast", [weight], f"{base}/MatMul/Cast", to=TensorProto.FLOAT)
        weight = writer.node("Transpose", [weight], f"{base}/MatMul/Transpose", perm=[1, 0])
        return writer.node("MatMul", [value, weight], f"{base}/MatMul", outputs)
    product = writer.node(
        "MatMulNBits",
        [value, matrix.levels, matrix.scales, *([matrix.zero_points] if matrix.zero_points else [])],
        f"{base}/MatMulNBits",
        None if matrix.offsets else outputs,
        domain=MICROSOFT,
        K=matrix.columns,
        N=matrix.rows,
        bits=matrix.bits,
        block_size=matrix.group_size,
    )
    if not matrix.offsets:
        return product
    shape = writer.constant(np.array([0, 0, -1, matrix.group_size], np.int64))
    grouped = writer.node("Reshape", [value, shape], f"{base}/offsets/Reshape")
    last_axis = writer.constant(np.array([-1], np.int64))
    sums = writer.node("ReduceSum", [grouped, last_axis], f"{base}/offsets/ReduceSum", keepdims=0)
    offsets = writer.node("Transpose", [matrix.offsets], f"{base}/offsets/Transpose", perm=[1, 0])
    shift = writer.node("MatMul", [sums, offsets], f"{base}/offsets/MatMul")
    return writer.node("Add", [product, shift], f"{base}/offsets/Add", outputs)


def add_row_lookup(writer: ModelWriter, base: str, ids: str, matrix: Matrix, output: str | None = None) -> str:
    """Rows `ids` (int64 `[batch, sequence]`) as float32 `[batch, sequence, columns]`, exactly.

    Scales and zero points are float32 here; `output` is the result's name for a packed matrix.
    Only the rows asked for are dequantised. A byte of several levels is looked up in a table of 256 rows: the one
    form of unpacking that every runtime has.
    """
    if isinstance(matrix, FloatMatrix):
        rows = writer.node("Gather", [matrix.name, ids], f"{base}/Gather", axis=0)
        if matrix.dtype != TensorProto.FLOAT:
            rows = writer.node("Cast", [rows], f"{base}/Cast", to=TensorProto.FLOAT)
        return rows
    packed = writer.node("Gather", [matrix.levels, ids], f"{base}/Gather", axis=0)
    if matrix.bits == 8:
        levels = writer.node("Cast", [packed], f"{base}/levels/Cast", to=TensorProto.FLOAT)
    else:
        index = writer.node("Cast", [packed], f"{base}/levels/Cast", to=TensorProto.INT32)
        table = writer.constant(unpacking_table(matrix.bits))
        unpacked = writer.node("Gather", [table, index], f"{base}/levels/Gather", axis=0)
        grouped = writer.constant(np.array([0, 0, -1, matrix.group_size], np.int64))
        levels = writer.node("Reshape", [unpacked, grouped], f"{base}/levels/Reshape")

    def of_group(name: str, part: str) -> str:
        values = writer.node("Gather", [name, ids], f"{base}/{part}/Gather", axis=0)
        last_axis = writer.constant(np.array([-1], np.int64))
        return writer.node("Unsqueeze", [values, last_axis], f"{base}/{part}/Unsqueeze")

    middle = writer.constant(float(2 ** (matrix.bits - 1)))
    zero = of_group(matrix.zero_points, "qzeros") if matrix.zero_points else middle
    centred = writer.node("Sub", [levels, zero], f"{base}/Sub")
    rows = writer.node("Mul", [centred, of_group(matrix.scales, "scales")], f"{base}/scales/Mul")
    if matrix.offsets:
        rows = writer.node("Add", [rows, of_group(matrix.offsets, "offsets")], f"{base}/offsets/Add")
    shape = writer.constant(np.array([0, 0, matrix.columns], np.int64))
    return writer.node("Reshape", [rows, shape], f"{base}/Reshape", [output] if output else None)


def unpacking_table(bits: int) -> NDArray[np.float32]:
    """The levels in each byte, low bits first: float32 `[256, 8 / bits]`."""
    shifts = np.arange(0, 8, bits)
    levels = (np.arange(256)[:, None] >> shifts) & (2**bits - 1)
    return np.asarray(levels, np.float32)
