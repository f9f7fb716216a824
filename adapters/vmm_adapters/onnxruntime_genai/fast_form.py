"""The same weights in the form that ONNX Runtime's fast kernels take.

Two things keep `MatMulNBits` off them, which costs a factor of 10 to 20 on a CPU:

* Float zero points. A group's weight is `w = scale·(level - zero)`, and with the centre `c = 2^(bits-1)` that is
  `scale·(level - c) + scale·(c - zero)`: what the operator does without zero points, plus one offset a group. So
  `x·W = MatMulNBits(x) + sums·offsets`, with the sums of x over each group, computed once for all matrices that read x.
  This is exact, and no byte of the levels or scales is copied: the offsets are all that is written.
* No `accuracy_level`: the products are then made in float32. 4 rounds the activations to 8 bits in groups, as llama.cpp
  does. Only models that do not choose are changed.

docs/onnxruntime-genai-adapter.md has the measurements.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_adapters.errors import UnsupportedModel

DATA = "offsets.data"
"""The file beside the model that has the offsets."""
VERSION = 1
"""Changes when this file writes something else."""
_INT8_ACTIVATIONS = 4
_ZERO_POINTS = 3
"""Index of that input of `MatMulNBits`."""
_ALIGNMENT = 4096
_LAST_AXIS = "fast_form/last_axis"
_FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
}


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data. Raises `UnsupportedModel`."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path}: {error}") from error


def data_files(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the files with the model's external data."""
    return frozenset(
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    )


def is_fast(model: onnx.ModelProto) -> bool:
    """Whether there is nothing to change."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return not any(
        _has_float_zero_points(node, tensors) or not _attribute(node, "accuracy_level") for node in _products(model)
    )


def write_fast_form(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Change `model`, whose external data is in the folder `source`, and write it and its offsets to `target`.

    `target` is the model's new path; its folder must get the files of `data_files` too. One matrix' offsets are in
    memory at a time. Raises `UnsupportedModel` for a file that ends too early.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    sums: dict[tuple[str, int], str] = {}
    with (target.parent / DATA).open("wb") as data:
        for node in model.graph.node:
            if node.op_type != "MatMulNBits":
                nodes.append(node)
                continue
            if not _attribute(node, "accuracy_level"):
                _set_attribute(node, "accuracy_level", _INT8_ACTIVATIONS)
            if not _has_float_zero_points(node, tensors):
                nodes.append(node)
                continue
            scales, zeros = (tensors[name] for name in (node.input[2], node.input[_ZERO_POINTS]))
            offsets = _offsets(_read(scales, source), _read(zeros, source), node)
            name = f"{node.output[0]}/offsets"
            start = _append(data, offsets)
            model.graph.initializer.append(_external(name, zeros.data_type, offsets.shape, start, offsets.nbytes))
            nodes.extend(_with_offsets(node, name, sums))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _finish(model, sums)
    target.write_bytes(model.SerializeToString())


def _products(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if node.op_type == "MatMulNBits")


def _has_float_zero_points(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """`g_idx`, input 4, permutes the groups: such a matrix is left as it is."""
    if len(node.input) <= _ZERO_POINTS or (len(node.input) > 4 and node.input[4]):
        return False
    zeros, scales = tensors.get(node.input[_ZERO_POINTS]), tensors.get(node.input[2])
    if zeros is None or scales is None or zeros.data_type not in _FLOATS:
        return False
    return not _attribute(node, "K") % _attribute(node, "block_size")


def _offsets(scales: NDArray[np.generic], zeros: NDArray[np.generic], node: onnx.NodeProto) -> NDArray[np.generic]:
    """`[groups, rows]`, in the zero points' type."""
    centre = 2.0 ** (_attribute(node, "bits") - 1)
    rows = _attribute(node, "N")
    exact = scales.astype(np.float64) * (centre - zeros.astype(np.float64))
    return np.ascontiguousarray(exact.reshape(rows, -1).T, zeros.dtype)


def _with_offsets(node: onnx.NodeProto, offsets: str, sums: dict[tuple[str, int], str]) -> Iterable[onnx.NodeProto]:
    """The node without its zero points, and what adds them back; `sums` are those that are there already."""
    value, output = node.input[0], node.output[0]
    size = _attribute(node, "block_size")
    if (value, size) not in sums:
        grouped, summed = f"{value}/in_groups_of_{size}", f"{value}/sums_of_{size}"
        sums[value, size] = summed
        yield helper.make_node("Reshape", [value, _shape_name(size)], [grouped], name=f"{grouped}/Reshape")
        yield helper.make_node("ReduceSum", [grouped, _LAST_AXIS], [summed], name=f"{summed}/ReduceSum", keepdims=0)
    node.input[_ZERO_POINTS] = ""
    while not node.input[-1]:
        del node.input[-1]
    node.output[0] = f"{output}/centred"
    yield node
    shift = f"{output}/shift"
    yield helper.make_node("MatMul", [sums[value, size], offsets], [shift], name=f"{shift}/MatMul")
    yield helper.make_node("Add", [node.output[0], shift], [output], name=f"{output}/shift/Add")


def _shape_name(size: int) -> str:
    return f"fast_form/groups_of_{size}"


def _finish(model: onnx.ModelProto, sums: dict[tuple[str, int], str]) -> None:
    """Add the constants of the new nodes, take out what nothing reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    constants = {_shape_name(size): np.array([0, 0, -1, size], np.int64) for _, size in sums}
    constants[_LAST_AXIS] = np.array([-1], np.int64)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _external(name: str, data_type: int, shape: tuple[int, ...], start: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": DATA, "offset": start, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _append(data: BinaryIO, array: NDArray[np.generic]) -> int:
    """Write at the next page, where it can be mapped; the position."""
    start = -(-data.tell() // _ALIGNMENT) * _ALIGNMENT
    data.seek(start)
    array.tofile(data)
    return start


def _read(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    """A float tensor's numbers, flat. onnx itself refuses files with several hard links, which a store may have."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor).reshape(-1)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype, count = _FLOATS[tensor.data_type], int(np.prod(tensor.dims))
    path = folder / entries["location"]
    values = np.fromfile(path, dtype, count, offset=int(entries.get("offset", 0)))
    if len(values) != count:
        raise UnsupportedModel(f"{path}: ends before {tensor.name}")
    return values


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    for index, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[index]
            break
    node.attribute.append(helper.make_attribute(name, value))
