"""The weight matrices of an ONNX decoder, wherever they came from: which nodes multiply by them, and their numbers.

Known are the forms that onnxruntime-genai's builder and our importers write:

    MatMul(x, W)                                  W float [columns, rows]
    MatMul(x, Transpose(W)), with a Cast between  W float [rows, columns]
    MatMulNBits(x, levels, scales[, zero points]) packed; and with `sum(x) · offsets` added to it
    Gather(W, ids)[, Cast]                        rows of a float embedding

Nothing is read but what `FoundMatrix.read` is asked for: the files are mapped.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.k_quants import MAX_WEIGHT
from vmm_server.models.importers.onnx_model import open_onnx
from vmm_server.models.importers.onnx_writer import MICROSOFT

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Read = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FoundMatrix:
    """A matrix and the node that is to be replaced by one that multiplies by, or looks up in, another form of it."""

    node: int
    """Index of the node whose output is the result."""
    kind: Literal["product", "lookup"]
    weight: str
    """Of the initialiser with the numbers or levels."""
    value: str
    """What is multiplied, or the ids of the rows."""
    rows: int
    columns: int
    bits: int
    """Of a weight as it is stored."""
    dtype: int
    """`TensorProto` data type of the result."""
    read: Read
    """Rows `start` to `stop` as float32 `[stop - start, columns]`."""


class DecoderGraph:
    """An ONNX file and its external data."""

    def __init__(self, path: Path) -> None:
        """Raises `CorruptFile`."""
        self.model = open_onnx(path)
        self.graph = self.model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self._path = path
        self._producer = {name: index for index, node in enumerate(self.graph.node) for name in node.output if name}
        self._consumers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.graph.node):
            for name in node.input:
                self._consumers[name].append(index)

    def sensitive(self, products: Collection[int]) -> frozenset[int]:
        """Which of these nodes give the logits and the values of attention, up to what is added or multiplied."""
        ends = [node.input[2] for node in self.graph.node if node.op_type == "GroupQueryAttention"]
        return frozenset(found for name in ("logits", *ends) if (found := self._behind(name, products)) is not None)

    def _behind(self, name: str, products: Collection[int]) -> int | None:
        while (index := self._producer.get(name)) is not None and index not in products:
            name = next(iter(self.graph.node[index].input), "")
        return index

    @property
    def data_files(self) -> frozenset[str]:
        """Names of the files with external data."""
        return frozenset(
            entry.value for tensor in self.tensors.values() for entry in tensor.external_data if entry.key == "location"
        )

    def raw(self, tensor: TensorProto) -> NDArray[np.uint8] | None:
        """The bytes of external data, mapped; `None` for a tensor that is in the graph. Raises `CorruptFile`."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return None
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._path.parent / entries["location"]
        is_narrow = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
        bits = 4 if is_narrow else 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        length = int(entries.get("length", 0)) or -(-math.prod(tensor.dims) * bits // 8)
        try:
            if not length:
                return np.zeros(0, np.uint8)
            return np.memmap(path, np.uint8, "r", int(entries.get("offset", 0)), (length,))
        except (OSError, ValueError) as error:
            raise CorruptFile(f"{path}: ends before {tensor.name}: {error}", hint="fetch it again") from error

    def matrices(self) -> Iterator[FoundMatrix]:
        """Every product with a weight matrix, and every lookup of float rows."""
        for index, node in enumerate(self.graph.node):
            if node.op_type == "MatMul" and node.domain == "":
                found = self._product(index, node)
            elif node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
                found = self._packed_product(index, node)
            elif node.op_type == "Gather" and node.domain == "":
                found = self._lookup(index, node)
            else:
                continue
            if found is not None:
                yield found

    def _product(self, index: int, node: onnx.NodeProto) -> FoundMatrix | None:
        name, is_transposed, dtype = node.input[1], False, 0
        while name not in self.tensors:
            if name not in self._producer:
                return None
            before = self.graph.node[self._producer[name]]
            if before.op_type == "Transpose" and not is_transposed and _ints(before, "perm") in ([1, 0], []):
                is_transposed = True
            elif before.op_type == "Cast" and not dtype:
                dtype = _int(before, "to")
            else:
                return None
            name = before.input[0]
        tensor = self.tensors[name]
        if tensor.data_type not in _FLOATS or len(tensor.dims) != 2:
            return None
        numbers = self._numbers(tensor) if is_transposed else self._numbers(tensor).T
        return self._found(index, "product", name, node.input[0], numbers, dtype or tensor.data_type)

    def _lookup(self, index: int, node: onnx.NodeProto) -> FoundMatrix | None:
        tensor = self.tensors.get(node.input[0])
        if tensor is None or tensor.data_type not in _FLOATS or len(tensor.dims) != 2 or _int(node, "axis"):
            return None
        if node.input[1] not in {each.name for each in self.graph.input}:
            return None
        dtype, consumers = tensor.data_type, self._consumers[node.output[0]]
        if len(consumers) == 1 and _int(self.graph.node[consumers[0]], "to") == TensorProto.FLOAT:
            index, dtype = consumers[0], TensorProto.FLOAT
        return self._found(index, "lookup", tensor.name, node.input[1], self._numbers(tensor), dtype)

    def _packed_product(self, index: int, node: onnx.NodeProto) -> FoundMatrix | None:
        bits, size, rows, columns = (_int(node, name) for name in ("bits", "block_size", "N", "K"))
        parts = [self.tensors.get(name) for name in node.input[1:]]
        is_plain = len(node.input) < 5 or not any(node.input[4:])  # g_idx permutes groups, a bias is added
        if not is_plain or bits not in (2, 4, 8) or columns % size or None in parts[:2]:
            return None
        levels, scales, zeros = (each for each in (*parts, None)[:3])
        if (len(node.input) > 3 and node.input[3] and zeros is None) or levels is None or scales is None:
            return None
        groups = columns // size
        packed = self._numbers(levels).reshape(rows, groups, -1)
        factors = self._numbers(scales).reshape(rows, groups)
        zero = None if zeros is None else self._numbers(zeros).reshape(rows, -1)
        offsets, index = self._offsets(index, node, groups)

        def read(start: int, stop: int) -> NDArray[np.float32]:
            found = _unpacked(packed[start:stop], bits).astype(np.float32)
            if zero is None:
                found -= np.float32(2 ** (bits - 1))
            else:
                middle = zero[start:stop]
                if zero.dtype == np.uint8:
                    middle = _unpacked(middle, bits)[:, :groups]
                found -= middle.astype(np.float32)[:, :, None]
            found *= factors[start:stop].astype(np.float32)[:, :, None]
            if offsets is not None:
                found += offsets[start:stop, :, None].astype(np.float32)
            return found.reshape(stop - start, columns)

        return FoundMatrix(
            index, "product", levels.name, node.input[0], rows, columns, bits, scales.data_type, self._checked(read)
        )

    def _offsets(self, index: int, node: onnx.NodeProto, groups: int) -> tuple[NDArray[np.generic] | None, int]:
        """What is added to every weight of a group, float32 `[rows, groups]`, and the node with the result."""
        consumers = self._consumers[node.output[0]]
        if len(consumers) != 1 or (add := self.graph.node[consumers[0]]).op_type != "Add":
            return None, index
        other = next((name for name in add.input if name != node.output[0]), "")
        shift = self.graph.node[self._producer[other]] if other in self._producer else None
        if shift is None or shift.op_type != "MatMul" or not all(name in self._producer for name in shift.input):
            return None, index
        sums, turned = (self.graph.node[self._producer[name]] for name in shift.input)
        if sums.op_type != "ReduceSum" or turned.op_type != "Transpose" or turned.input[0] not in self.tensors:
            return None, index
        grouped = self.graph.node[self._producer[sums.input[0]]] if sums.input[0] in self._producer else None
        if grouped is None or grouped.op_type != "Reshape" or grouped.input[0] != node.input[0]:
            return None, index
        numbers = self._numbers(self.tensors[turned.input[0]])
        return (numbers, consumers[0]) if numbers.shape[-1] == groups else (None, index)

    def _found(
        self,
        index: int,
        kind: Literal["product", "lookup"],
        name: str,
        value: str,
        numbers: NDArray[np.generic],
        to: int,
    ) -> FoundMatrix:
        def read(start: int, stop: int) -> NDArray[np.float32]:
            return np.ascontiguousarray(numbers[start:stop], np.float32)

        rows, columns = numbers.shape
        return FoundMatrix(index, kind, name, value, rows, columns, 8 * numbers.dtype.itemsize, to, self._checked(read))

    def _checked(self, read: Read) -> Read:
        def checked(start: int, stop: int) -> NDArray[np.float32]:
            found = read(start, stop)
            if not (np.abs(found) <= MAX_WEIGHT).all():  # nor if it is no number
                raise CorruptFile(f"{self._path}: has weights that are no numbers, or too large to be quantised")
            return found

        return checked

    def _numbers(self, tensor: TensorProto) -> NDArray[np.generic]:
        data = self.raw(tensor)
        if data is None:
            return np.asarray(numpy_helper.to_array(tensor))
        return data.view(helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))


def _unpacked(packed: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Levels of bytes, the first in the low bits: `[..., n]` to `[..., n * 8 / bits]`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    levels = (packed.astype(np.uint8)[..., None] >> shifts) & np.uint8(2**bits - 1)
    return levels.reshape(*packed.shape[:-1], -1)


def _int(node: onnx.NodeProto, name: str) -> int:
    default = 4 if name == "bits" else 0
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])
