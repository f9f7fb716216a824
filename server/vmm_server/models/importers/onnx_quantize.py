"""An ONNX decoder → the same decoder with its matrices in 8 or 4 bits.

Each product with a matrix of more bits becomes a `MatMulNBits` with blocks of 32; everything else is copied. Weights
are read, quantised and written piece by piece. At 4 bits the embedding and the head, which cost a small model most and
a large one little room, get 8 bits, and so do the values of attention: of the default model's loss at 4 bits they are a
sixth, and of its weights a fortieth (llama.cpp gives them more in its Q4_K_M as well).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vmm_server.errors import ImportFailed
from vmm_server.models.importers.graph_matrices import DecoderGraph, FoundMatrix
from vmm_server.models.importers.onnx_matrix import PackedMatrix, add_product, add_row_lookup
from vmm_server.models.importers.onnx_writer import ModelWriter, Pieces, TensorSpec
from vmm_server.models.importers.weight_blocks import BLOCK, quantize_blocks

PIECE_ELEMENTS = 1024**2
"""Weights that are quantised at a time; what bounds the memory."""
SENSITIVE_BITS = 8
"""Of the embedding, the head and the values, at least."""
_LEAST_OPSET = 13
"""From which on reductions take their axes as inputs."""
_SUFFIXES = ("/MatMul", "/MatMulNBits", "/offsets/Add", "/Gather", "/Cast")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A decoder whose new form is known and not yet written."""

    writer: ModelWriter
    num_matrices: int
    """That change."""
    bits_before: int
    """Of most weights in products, as they are stored."""
    data_files: frozenset[str]
    """Of the decoder as it was, which the new one does not need."""


def plan_quantized(path: Path, bits: int, *, widen: bool = False) -> Quantized:
    """What the decoder at `path` is in `bits` (8 or 4) bits; also where it has fewer, if `widen`.

    Raises `CorruptFile`, and `ImportFailed` for a graph that is too old.
    """
    source = DecoderGraph(path)
    opset = next((each.version for each in source.model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < _LEAST_OPSET:
        raise ImportFailed(f"{path}: is of opset {opset}; {_LEAST_OPSET} is needed", hint="export the model anew")
    matrices = list(source.matrices())
    products = [each for each in matrices if each.kind == "product"]
    weights: dict[int, int] = {}
    for each in products:
        weights[each.bits] = weights.get(each.bits, 0) + each.rows * each.columns
    sensitive = source.sensitive({each.node for each in products})
    chosen = {each.node: (each, wanted) for each in matrices if (wanted := _wanted(each, bits, sensitive, widen))}
    rewriter = _Rewriter(source, chosen)
    before = max(weights, key=lambda each: weights[each], default=0)
    return Quantized(rewriter.run(), len(chosen), before, source.data_files)


def _wanted(matrix: FoundMatrix, bits: int, sensitive: Collection[int], widen: bool) -> int | None:
    """The bits that a matrix gets; `None`: it stays as it is."""
    is_sensitive = matrix.kind == "lookup" or matrix.node in sensitive
    wanted = max(bits, SENSITIVE_BITS) if is_sensitive else bits
    may_widen = widen and wanted == bits
    if matrix.columns % BLOCK or matrix.bits == wanted or (matrix.bits < wanted and not may_widen):
        return None
    return wanted


class _Rewriter:
    def __init__(self, source: DecoderGraph, chosen: dict[int, tuple[FoundMatrix, int]]) -> None:
        self._source = source
        self._chosen = chosen
        self._writer = ModelWriter(source.graph.name, like=source.model)
        self._made: dict[tuple[str, int, int], PackedMatrix] = {}

    def run(self) -> ModelWriter:
        graph, writer = self._source.graph, self._writer
        live, used = self._live()
        for value in graph.input:
            writer.copy_value(value, is_output=False)
        for value in graph.output:
            writer.copy_value(value, is_output=True)
        for tensor in graph.initializer:
            if tensor.name in used:
                writer.copy_tensor(tensor, self._source.raw(tensor))
        for index in live:
            if index in self._chosen:
                self._replace(graph.node[index], *self._chosen[index])
            else:
                writer.copy_node(graph.node[index])
        return writer

    def _live(self) -> tuple[list[int], set[str]]:
        """Nodes that something still needs, in order, and the names of all values that they read."""
        used = {value.name for value in self._source.graph.output}
        live: list[int] = []
        nodes = self._source.graph.node
        for index in reversed(range(len(nodes))):
            if not used.intersection(nodes[index].output):
                continue
            live.append(index)
            used |= {self._chosen[index][0].value} if index in self._chosen else _read_by(nodes[index])
        return live[::-1], used

    def _replace(self, node: onnx.NodeProto, matrix: FoundMatrix, bits: int) -> None:
        writer, output, base = self._writer, node.output[0], node.name or f"/quantized/{node.output[0]}"
        for suffix in _SUFFIXES:
            base = base.removesuffix(suffix)
        if matrix.kind == "product":
            add_product(writer, base, matrix.value, self._packed(matrix, bits, matrix.dtype), output)
            return
        packed, base = self._packed(matrix, bits, TensorProto.FLOAT), f"{base}/int{bits}"
        if matrix.dtype == TensorProto.FLOAT:
            add_row_lookup(writer, base, matrix.value, packed, output)
        else:
            rows = add_row_lookup(writer, base, matrix.value, packed)
            writer.node("Cast", [rows], f"{base}/to/Cast", [output], to=matrix.dtype)

    def _packed(self, matrix: FoundMatrix, bits: int, dtype: int) -> PackedMatrix:
        """The initialisers of a matrix, announced once: a head may share them with the embedding."""
        key = (matrix.weight, bits, dtype)
        if key not in self._made:
            stem = f"{matrix.weight.removesuffix('.weight').removesuffix('.qweight')}.int{bits}"
            if any(made[0] == matrix.weight for made in self._made):
                stem += f".{TensorProto.DataType.Name(dtype).lower()}"
            self._made[key] = _announce(self._writer, stem, matrix, bits, dtype)
        return self._made[key]


def _announce(writer: ModelWriter, stem: str, matrix: FoundMatrix, bits: int, dtype: int) -> PackedMatrix:
    rows, groups = matrix.rows, matrix.columns // BLOCK
    specs = [
        TensorSpec(f"{stem}.qweight", TensorProto.UINT8, (rows, groups, BLOCK * bits // 8)),
        TensorSpec(f"{stem}.scales", dtype, (rows, groups)),
    ]
    if bits < 8:
        specs.append(TensorSpec(f"{stem}.qzeros", TensorProto.UINT8, (rows, -(-groups * bits // 8))))
    writer.stream(specs, lambda: _pieces(matrix, bits, dtype))
    zeros = specs[2].name if bits < 8 else None
    return PackedMatrix(specs[0].name, specs[1].name, zeros, None, rows, matrix.columns, bits, BLOCK)


def _pieces(matrix: FoundMatrix, bits: int, dtype: int) -> Pieces:
    step = max(1, PIECE_ELEMENTS // matrix.columns)
    for start in range(0, matrix.rows, step):
        blocks = quantize_blocks(matrix.read(start, min(start + step, matrix.rows)), bits)
        scales = blocks.scales.astype(helper.tensor_dtype_to_np_dtype(dtype))
        zeros = () if blocks.zero_points is None else (_narrow(blocks.zero_points, bits),)
        yield _narrow(blocks.levels, bits), scales, *zeros


def _narrow(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Levels `[..., n]` to bytes, the first in the low bits; what is left of the last byte is 0."""
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros((*levels.shape[:-1], 1), np.uint8)], axis=-1)
    return levels[..., ::2] | levels[..., 1::2] << np.uint8(4)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names of the values that a node reads, its subgraphs' from outside of them among these."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names |= {value.name for value in graph.output}
            for inner in graph.node:
                names |= _read_by(inner)
    return names


Progress = Callable[[int, int], None]


def write_quantized(plan: Quantized, folder: Path, progress: Progress) -> None:
    """Write `model.onnx` and its data into `folder`. Raises `CorruptFile`, `OSError`, and what `progress` raises."""
    plan.writer.write(folder, progress)
