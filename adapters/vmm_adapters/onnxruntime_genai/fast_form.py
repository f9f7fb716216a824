"""The same weights in the form that ONNX Runtime's fast kernels take.

Three things keep `MatMulNBits` off them, which costs a factor of 10 to 100 on a CPU:

* Float zero points. A group's weight is `w = scale·(level - zero)`, and with the centre `c = 2^(bits-1)` that is
  `scale·(level - c) + scale·(c - zero)`: what the operator does without zero points, plus one offset a group. So
  `x·W = MatMulNBits(x) + sums·offsets`, with the sums of x over each group, computed once for all matrices that read x.
  This is exact, and the levels and scales stay where they are: the offsets are all that is written.
* 2 bits, for which there are hardly kernels. Levels become 4 bits, moved so that the centres agree: exact again.
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

DATA = "fast_form.data"
"""The file beside the model that has what is new."""
VERSION = 2
"""Changes when this file writes something else."""
_INT8_ACTIVATIONS = 4
_LEVELS, _SCALES, _ZERO_POINTS, _GROUP_INDEX = 1, 2, 3, 4
"""Inputs of `MatMulNBits`."""
_PIECE_BYTES = 16 * 1024**2
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
        _has_float_zero_points(node, tensors) or _is_narrow(node, tensors) or not _attribute(node, "accuracy_level")
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    )


def write_fast_form(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Change `model`, whose external data is in the folder `source`, and write it and what is new to `target`.

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
            added = _write_offsets(node, tensors, source, data) if _has_float_zero_points(node, tensors) else None
            if _is_narrow(node, tensors):
                model.graph.initializer.append(_widen(node, tensors[node.input[_LEVELS]], source, data))
            if added is None:
                nodes.append(node)
            else:
                model.graph.initializer.append(added)
                nodes.extend(_with_offsets(node, added.name, sums))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _finish(model, sums)
    target.write_bytes(model.SerializeToString())


def _has_float_zero_points(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """A matrix whose groups are permuted is left as it is."""
    if not _input(node, _ZERO_POINTS) or _input(node, _GROUP_INDEX):
        return False
    zeros, scales = tensors.get(node.input[_ZERO_POINTS]), tensors.get(node.input[_SCALES])
    if zeros is None or scales is None or zeros.data_type not in _FLOATS:
        return False
    return not _attribute(node, "K") % _attribute(node, "block_size")


def _is_narrow(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """2 bits, without integer zero points, which would have to be widened too."""
    has_integers = _input(node, _ZERO_POINTS) and not _has_float_zero_points(node, tensors)
    return _attribute(node, "bits") == 2 and node.input[_LEVELS] in tensors and not has_integers


def _widen(node: onnx.NodeProto, levels: TensorProto, source: Path, data: BinaryIO) -> TensorProto:
    """Levels of 2 bits as 4, and 6 more: the centre was 2 and is 8."""
    table = np.arange(256, dtype=np.uint16)
    wide = np.zeros(256, np.uint16)
    for index in range(4):
        wide |= ((table >> 2 * index & 3) + 6) << 4 * index
    start = _next_page(data)
    for piece in _pieces(levels, source):
        data.write(wide.astype("<u2")[piece].tobytes())
    shape = (*levels.dims[:-1], levels.dims[-1] * 2)
    name = f"{node.output[0]}/wide"
    _set_attribute(node, "bits", 4)
    node.input[_LEVELS] = name
    return _external(name, levels.data_type, shape, start, data.tell() - start)


def _write_offsets(node: onnx.NodeProto, tensors: dict[str, TensorProto], source: Path, data: BinaryIO) -> TensorProto:
    """The matrix' offsets, written."""
    scales, zeros = (tensors[node.input[index]] for index in (_SCALES, _ZERO_POINTS))
    offsets = _offsets(_read(scales, source), _read(zeros, source), node)
    start = _next_page(data)
    offsets.tofile(data)
    return _external(f"{node.output[0]}/offsets", zeros.data_type, offsets.shape, start, offsets.nbytes)


def _offsets(scales: NDArray[np.generic], zeros: NDArray[np.generic], node: onnx.NodeProto) -> NDArray[np.generic]:
    """`[groups, rows]`, in the zero points' type."""
    centre = 2.0 ** (_attribute(node, "bits") - 1)
    rows = _attribute(node, "N")
    exact = scales.astype(np.float32, copy=False) * (np.float32(centre) - zeros.astype(np.float32, copy=False))
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


def _next_page(data: BinaryIO) -> int:
    """Where the next tensor begins, so that it can be mapped."""
    start = -(-data.tell() // _ALIGNMENT) * _ALIGNMENT
    data.seek(start)
    return start


def _pieces(tensor: TensorProto, folder: Path) -> Iterator[NDArray[np.uint8]]:
    """A uint8 tensor's bytes, some at a time."""
    if tensor.data_location != TensorProto.EXTERNAL:
        yield numpy_helper.to_array(tensor).reshape(-1)
        return
    path, start = _place(tensor, folder)
    count = int(np.prod(tensor.dims))
    for done in range(0, count, _PIECE_BYTES):
        size = min(_PIECE_BYTES, count - done)
        piece = np.fromfile(path, np.uint8, size, offset=start + done)
        if len(piece) != size:
            raise UnsupportedModel(f"{path}: ends before {tensor.name}")
        yield piece


def _place(tensor: TensorProto, folder: Path) -> tuple[Path, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return folder / entries["location"], int(entries.get("offset", 0))


def _read(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    """A float tensor's numbers, flat. onnx itself refuses files with several hard links, which a store may have."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor).reshape(-1)
    dtype, count = _FLOATS[tensor.data_type], int(np.prod(tensor.dims))
    path, start = _place(tensor, folder)
    values = np.fromfile(path, dtype, count, offset=start)
    if len(values) != count:
        raise UnsupportedModel(f"{path}: ends before {tensor.name}")
    return values


def _input(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    for index, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[index]
            break
    node.attribute.append(helper.make_attribute(name, value))
