"""An ONNX file as plain nodes and mapped weights: nothing of the protobuf is kept, no external data is read.

Values are known by the name of what they are, whatever floating-point type they are in: a `Cast` to a float type and an
`Identity` are no nodes here, their outputs are other names of their inputs. Constants are initialisers and `Constant`
nodes alike.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_adapters.errors import UnsupportedModel

MICROSOFT = "com.microsoft:"
"""Before the names of ONNX Runtime's own operators."""
_PACKED_TYPES = (TensorProto.INT4, TensorProto.UINT4)
_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant."""

    name: str
    dtype: int
    """`TensorProto` data type."""
    shape: tuple[int, ...]
    values: NDArray[np.generic]
    """In its shape, read-only; bfloat16 as uint16; INT4 and UINT4 as bytes, uint8 `[bytes]`, the first level low."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation. Nodes are equal only to themselves."""

    name: str
    operator: str
    """Its name, after `MICROSOFT` or `<domain>:` where it is not one of ONNX itself."""
    inputs: tuple[str, ...]
    """Empty strings are inputs left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]

    def __str__(self) -> str:
        return f"{self.operator.removeprefix(MICROSOFT)} {self.name or ', '.join(self.outputs)!r}"

    def input(self, index: int) -> str:
        """The value's name; empty for one that is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def number(self, name: str, default: float) -> float:
        """A numeric attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise refusal(self, f"the attribute {name}={value!r} is no number")
        return value


def refusal(node: Node, reason: str) -> UnsupportedModel:
    """The error that names the node."""
    return UnsupportedModel(f"{node}: {reason}")


@dataclass(frozen=True, slots=True)
class Branches:
    """The attribute of an `If`: what a branch gives where that is constants alone, in the order of its outputs."""

    outputs: tuple[Tensor | None, ...]


@dataclass(slots=True)
class Graph:
    """Nodes in the file's order, without those that only rename or convert."""

    path: Path
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Shapes; `None` is a size that varies."""
    outputs: dict[str, str] = field(default_factory=dict)
    """The value behind each output's name."""
    files: tuple[str, ...] = ()
    """Of external data."""
    _producers: dict[str, tuple[Node, int]] = field(default_factory=dict)
    _consumers: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def producer(self, value: str) -> tuple[Node, int] | None:
        """The node that a value comes from and which of its outputs it is; `None` for inputs and constants."""
        return self._producers.get(value)

    def consumers(self, value: str) -> list[Node]:
        """The nodes that read a value, once for each input."""
        return self._consumers.get(value, [])

    def behind(self, values: Iterable[str]) -> Iterator[Node]:
        """Every node that these values come from, each once."""
        seen: set[str] = set()
        met: set[Node] = set()
        waiting = list(values)
        while waiting:
            if (value := waiting.pop()) in seen or value not in self._producers:
                continue
            seen.add(value)
            node = self._producers[value][0]
            if node not in met:
                met.add(node)
                yield node
                waiting.extend(node.inputs)


def read_graph(path: Path) -> Graph:
    """Read an ONNX file; its external data is mapped. Raises `UnsupportedModel` for what is no such file."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise UnsupportedModel(f"{path}: is no readable ONNX file: {error}", hint="fetch it again") from error
    reader = _Reader(path)
    return reader.read(model.graph)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._graph = Graph(path)
        self._maps: dict[str, NDArray[np.uint8]] = {}
        self._names: dict[str, str] = {}

    def read(self, source: onnx.GraphProto) -> Graph:
        graph = self._graph
        for tensor in source.initializer:
            graph.constants[tensor.name] = self._tensor(tensor)
        for value in source.input:
            if value.name not in graph.constants:
                dims = value.type.tensor_type.shape.dim
                sizes = (size.dim_value if size.HasField("dim_value") else None for size in dims)
                graph.inputs[value.name] = tuple(sizes)
        for node in source.node:
            self._add(node)
        graph.outputs.update((value.name, self._name(value.name)) for value in source.output)
        graph.files = tuple(str(graph.path.parent / location) for location in sorted(self._maps))
        return graph

    def _name(self, value: str) -> str:
        return self._names.get(value, value)

    def _add(self, source: onnx.NodeProto) -> None:
        graph = self._graph
        domain = "" if source.domain in ("", "ai.onnx") else f"{source.domain}:"
        attributes = {attribute.name: self._attribute(attribute) for attribute in source.attribute}
        node = Node(
            source.name,
            domain + source.op_type,
            tuple(self._name(value) for value in source.input),
            tuple(source.output),
            attributes,
        )
        for value in node.inputs:
            if value and not (value in graph.inputs or value in graph.constants or value in graph._producers):
                raise refusal(node, f"reads {value!r}, which no node before it gives")
        if node.operator == "Constant" and (constant := _constant(node)):
            graph.constants[constant.name] = constant
        elif _is_rename(node):
            self._names[node.outputs[0]] = node.inputs[0]
        else:
            graph.nodes.append(node)
            graph._producers.update((value, (node, index)) for index, value in enumerate(node.outputs) if value)
            for value in node.inputs:
                if value:
                    graph._consumers[value].append(node)

    def _attribute(self, attribute: onnx.AttributeProto) -> object:
        if attribute.type == onnx.AttributeProto.GRAPH:
            return self._branch(attribute.g)
        if attribute.type == onnx.AttributeProto.TENSOR:
            return self._tensor(attribute.t)
        value = helper.get_attribute_value(attribute)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def _branch(self, source: onnx.GraphProto) -> Branches:
        constants = {tensor.name: self._tensor(tensor) for tensor in source.initializer}
        for node in source.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
                constants[node.output[0]] = self._tensor(node.attribute[0].t)
        return Branches(tuple(constants.get(value.name) for value in source.output))

    def _tensor(self, tensor: TensorProto) -> Tensor:
        is_external = tensor.data_location == TensorProto.EXTERNAL
        try:
            values = self._mapped(tensor) if is_external else _inline(tensor)
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{self._graph.path}: the tensor {tensor.name!r} cannot be read: {error}"
            raise UnsupportedModel(reason, hint="fetch the model again") from error
        values.flags.writeable = False
        return Tensor(tensor.name, tensor.data_type, tuple(tensor.dims), values)

    def _mapped(self, tensor: TensorProto) -> NDArray[np.generic]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype, count = _storage(tensor)
        start = int(entries.get("offset", 0))
        raw = self._map(entries.get("location", ""))[start : start + count * dtype.itemsize]
        if start < 0 or len(raw) != count * dtype.itemsize:
            raise ValueError("the file of its external data ends before it")
        values = raw.view(dtype)
        if not values.flags.aligned:  # compiled code reads aligned numbers alone
            values = values.copy()
        return values if tensor.data_type in _PACKED_TYPES else values.reshape(tuple(tensor.dims))

    def _map(self, location: str) -> NDArray[np.uint8]:
        if location not in self._maps:
            for pure in (PurePosixPath(location), PureWindowsPath(location)):
                if pure.anchor or ".." in pure.parts:
                    raise ValueError(f"{location!r} is outside of the model's folder")
            path = self._graph.path.parent / location
            is_empty = not path.stat().st_size  # which cannot be mapped
            self._maps[location] = np.zeros(0, np.uint8) if is_empty else np.asarray(np.memmap(path, np.uint8, "r"))
        return self._maps[location]


def _inline(tensor: TensorProto) -> NDArray[np.generic]:
    if tensor.data_type in _PACKED_TYPES:
        return np.frombuffer(tensor.raw_data or bytes(byte & 255 for byte in tensor.int32_data), np.uint8)
    values = np.asarray(numpy_helper.to_array(tensor))
    return values.view(np.uint16) if tensor.data_type == TensorProto.BFLOAT16 else values


def _storage(tensor: TensorProto) -> tuple[np.dtype[np.generic], int]:
    """How a tensor's numbers are stored, and how many of these there are."""
    count = math.prod(tensor.dims)
    if tensor.data_type in _PACKED_TYPES:
        return np.dtype(np.uint8), -(-count // 2)
    if tensor.data_type == TensorProto.BFLOAT16:
        return np.dtype(np.uint16), count
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), count


def _is_rename(node: Node) -> bool:
    """Whether a node gives its input, perhaps as another float type."""
    is_float = node.operator == "Cast" and node.attributes.get("to") in _FLOAT_TYPES
    return len(node.inputs) == len(node.outputs) == 1 and (node.operator == "Identity" or is_float)


def _constant(node: Node) -> Tensor | None:
    """What a `Constant` node gives; `None` for a form that no decoder has."""
    for name, value in node.attributes.items():
        if name == "value" and isinstance(value, Tensor):
            return Tensor(node.outputs[0], value.dtype, value.shape, value.values)
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            dtype = TensorProto.INT64 if "int" in name else TensorProto.FLOAT
            values = np.asarray(value, helper.tensor_dtype_to_np_dtype(dtype))
            return Tensor(node.outputs[0], dtype, values.shape, values)
    return None
