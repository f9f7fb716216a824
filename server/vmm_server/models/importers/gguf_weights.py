"""GGUF tensors as ONNX initialisers that say exactly the same weights.

Quantised groups become what `com.microsoft.MatMulNBits` reads: levels packed to 2, 4 or 8 bits (5 and 6 bits go up
to 8, 3 to 4, never down), float32 scales and, for `scale * level + offset` formats, what carries the offset:

* 2 and 4 bits: a float zero point, `-offset / scale`, so that `scale * (level - zero)` is the weight.
* 8 bits: the offset itself, one float32 a group, multiplied with the group's sum of inputs beside the main product
  (`x·(scale·level + offset) = x·(scale·level) + sum(x)·offset`). ONNX Runtime takes no float zero points at 8 bits.

Rounding the zero point to an integer instead would cost a small model a fifth of its perplexity.
"""

from collections.abc import Iterator

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS, BlockFormat, Groups
from vmm_server.models.importers.gguf_reader import TensorEntry
from vmm_server.models.importers.onnx_matrix import FloatMatrix, Matrix, PackedMatrix
from vmm_server.models.importers.onnx_writer import ModelWriter, TensorSpec
from vmm_server.models.importers.weights_source import WeightsSource

PIECE_ELEMENTS = 1024**2
"""Weights that are taken apart at a time; what bounds the importer's memory."""
FLOAT_TYPES: dict[GGMLQuantizationType, int] = {
    GGMLQuantizationType.F32: TensorProto.FLOAT,
    GGMLQuantizationType.F16: TensorProto.FLOAT16,
    GGMLQuantizationType.BF16: TensorProto.BFLOAT16,
}
"""Types that are kept as they are, with their ONNX names."""


def stored_bits(form: BlockFormat) -> int:
    """The width `MatMulNBits` has that holds the format's levels: 2, 4 or 8."""
    return next(width for width in (2, 4, 8) if form.bits <= width)


def pack(groups: Groups, form: BlockFormat) -> tuple[NDArray[np.generic], ...]:
    """Groups as `MatMulNBits` has them: levels `[groups, bytes]`, scales and, if affine, zero points or offsets."""
    bits = stored_bits(form)
    levels, scales, offsets = groups.levels, groups.scales, groups.offsets
    third: tuple[NDArray[np.float32], ...] = ()
    if offsets is None or bits == 8:
        levels = levels + np.uint8(2 ** (bits - 1) - form.centre)
        third = () if offsets is None else (offsets,)
    else:
        levels, scales, zero_points = _with_zero_points(levels, scales, offsets)
        third = (zero_points,)
    return _narrow(levels, bits), scales, *third


def _with_zero_points(
    levels: NDArray[np.uint8], scales: NDArray[np.float32], offsets: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """`scale * level + offset` as `scale * (level - zero)`.

    A group of one repeated weight has scale 0 and would have no zero point: its offset becomes the scale, with
    level 0 and zero point -1.
    """
    flat = scales == 0
    scales = np.where(flat, offsets, scales)
    zero_points = np.where(flat, np.float32(-1), -offsets / np.where(flat, np.float32(1), scales))
    return np.where(flat[:, None], np.uint8(0), levels), scales, zero_points


def _narrow(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Levels `[groups, n]` to bytes `[groups, n * bits / 8]`, low bits first."""
    packed = levels[:, :: 8 // bits]
    for index in range(1, 8 // bits):
        packed = packed | levels[:, index :: 8 // bits] << np.uint8(bits * index)
    return packed


def add_matrix(
    writer: ModelWriter, file: WeightsSource, tensor: TensorEntry, name: str, row_order: NDArray[np.intp] | None = None
) -> Matrix:
    """Announce a tensor `[rows, columns]` as initialisers called after `name`; it is read when they are written.

    `row_order` reorders the rows inside every run of `len(row_order)` rows. Raises `ImportFailed` for a type that
    is not read; `CorruptFile`, while writing, for scales that are no numbers.
    """
    rows, columns = tensor.shape
    if tensor.type in FLOAT_TYPES:
        dtype = FLOAT_TYPES[tensor.type]
        spec = TensorSpec(f"{name}.weight", dtype, (rows, columns))
        writer.stream([spec], lambda: ((raw,) for raw in _read_pieces(file, tensor, row_order)))
        return FloatMatrix(spec.name, rows, columns, dtype)
    form = block_format(file, tensor)
    bits, groups = stored_bits(form), columns // form.group_size
    specs = [
        TensorSpec(f"{name}.qweight", TensorProto.UINT8, (rows, groups, form.group_size * bits // 8)),
        TensorSpec(f"{name}.scales", TensorProto.FLOAT, (rows, groups)),
    ]
    if form.affine:
        kind = "offsets" if bits == 8 else "qzeros"
        specs.append(TensorSpec(f"{name}.{kind}", TensorProto.FLOAT, (rows, groups)))
    writer.stream(specs, lambda: _packed_pieces(file, tensor, form, row_order))
    third = specs[2].name if form.affine else None
    return PackedMatrix(
        levels=specs[0].name,
        scales=specs[1].name,
        zero_points=third if bits < 8 else None,
        offsets=third if bits == 8 else None,
        rows=rows,
        columns=columns,
        bits=bits,
        group_size=form.group_size,
    )


def block_format(file: WeightsSource, tensor: TensorEntry) -> BlockFormat:
    """The format of a quantised tensor. Raises `ImportFailed` naming it when it is not one that is read."""
    if tensor.type not in BLOCK_FORMATS:
        known = ", ".join(kind.name for kind in (*FLOAT_TYPES, *BLOCK_FORMATS))
        raise ImportFailed(
            f"{file.path}: tensor {tensor.name!r} is stored as {tensor.type.name}, which is not read",
            hint=f"get this model in one of {known}",
        )
    return BLOCK_FORMATS[tensor.type]


def read_vector(file: WeightsSource, tensor: TensorEntry) -> NDArray[np.float32]:
    """A whole float tensor as float32 `[elements]`: norms, biases, rotary factors. Raises `ImportFailed`."""
    if tensor.type not in FLOAT_TYPES:
        raise ImportFailed(
            f"{file.path}: tensor {tensor.name!r} is stored as {tensor.type.name}, floats are expected",
            hint="get a file made by llama.cpp's own converter",
        )
    return as_floats(file.read_rows(tensor, 0, tensor.num_elements // tensor.shape[-1]), tensor.type).reshape(-1)


def as_floats(raw: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """Rows of a float tensor, uint8 `[rows, row bytes]`, as float32 `[rows, columns]`."""
    if kind is GGMLQuantizationType.BF16:  # the upper half of a float32
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind is GGMLQuantizationType.F16:
        return raw.view(np.float16).astype(np.float32)
    return raw.view(np.float32)


def _packed_pieces(
    file: WeightsSource, tensor: TensorEntry, form: BlockFormat, row_order: NDArray[np.intp] | None
) -> Iterator[tuple[NDArray[np.generic], ...]]:
    block_bytes = GGML_QUANT_SIZES[tensor.type][1]
    for raw in _read_pieces(file, tensor, row_order):
        with np.errstate(all="ignore"):  # what is no number is refused below
            groups = form.decode(raw.reshape(-1, block_bytes))
        for numbers in (groups.scales, groups.offsets):
            if numbers is not None and not np.isfinite(numbers).all():
                raise CorruptFile(
                    f"{file.path}: tensor {tensor.name!r} has scales that are not numbers", hint="fetch the file again"
                )
        yield pack(groups, form)


def _read_pieces(
    file: WeightsSource, tensor: TensorEntry, row_order: NDArray[np.intp] | None
) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, uint8 `[rows, row bytes]`, about `PIECE_ELEMENTS` weights at a time."""
    rows, columns = tensor.shape
    run = 1 if row_order is None else len(row_order)
    step = max(1, PIECE_ELEMENTS // columns // run) * run
    for start in range(0, rows, step):
        raw = file.read_rows(tensor, start, min(start + step, rows))
        yield raw if row_order is None else raw.reshape(-1, run, raw.shape[1])[:, row_order].reshape(raw.shape)
