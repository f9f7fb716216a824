"""Counts the weights of an ONNX file by its header alone, and checks that its external data is all there."""

import math
from collections import Counter
from pathlib import Path

from onnx import TensorProto

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.onnx_model import open_onnx

_TABLE_INPUTS = (7, 8)
"""Of GroupQueryAttention: cosines and sines, which are no weights."""
_NAMES = {
    TensorProto.FLOAT: "F32",
    TensorProto.FLOAT16: "F16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
}
_CONSTANTS = "/model/constants/"
"""Where onnxruntime-genai's builder (and ours) puts shapes, indices and tables."""
_PACKED_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")


def count_onnx_weights(path: Path) -> tuple[int, str]:
    """(weights, what most of them are stored as: `int4`, `F16`, …). Raises `CorruptFile`."""
    graph = open_onnx(path).graph
    packed: dict[str, int] = {}
    no_weights: set[str] = set()
    for node in graph.node:
        if node.op_type in _PACKED_OPERATORS:
            bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            packed[node.input[node.op_type == "MatMulNBits"]] = bits
            no_weights.update(node.input[2:])
        elif node.op_type == "GroupQueryAttention":
            no_weights.update(node.input[index] for index in _TABLE_INPUTS if index < len(node.input))
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            no_weights.update(node.input[1:])
    stored: Counter[str] = Counter()
    for tensor in graph.initializer:
        _check_extent(path, tensor)
        if tensor.name in packed:
            bits = packed[tensor.name]
            stored[f"int{bits}"] += math.prod(tensor.dims) * (8 // bits if tensor.data_type == TensorProto.UINT8 else 1)
        elif tensor.name in no_weights or tensor.name.startswith(_CONSTANTS) or not tensor.dims:
            continue
        elif tensor.data_type in _NAMES:
            stored[_NAMES[tensor.data_type]] += math.prod(tensor.dims)
    return stored.total(), stored.most_common(1)[0][0] if stored else "unknown"


def _check_extent(path: Path, tensor: TensorProto) -> None:
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data = path.parent / entries.get("location", "")
    if not data.is_file():
        raise CorruptFile(f"{data}: is missing", hint="fetch the whole folder")
    try:
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except ValueError as error:
        raise CorruptFile(f"{path}: {tensor.name!r} has no readable extent", hint="fetch it again") from error
    if end > data.stat().st_size:
        raise CorruptFile(f"{data}: is cut off at byte {data.stat().st_size}", hint="fetch it again")
