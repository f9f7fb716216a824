"""What an ONNX file says of itself: its inputs and outputs, what computes them, and the texts put into it beside."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.onnx_model import open_onnx

_IR_VERSION_TAG, _MAX_IR_VERSION = 0x08, 64
_BYTES_FIELD = 2
"""Protobuf's wire type of what follows in every file: the producer's name, or the graph."""
_MAX_LITERAL = 1 << 20
_MAX_PIXELS = 8192 * 8192
"""That a graph may take at a time, all pictures of a fixed batch together: 800 MB in float32."""
_PASSED_THROUGH = ("Identity", "Cast")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output."""

    name: str
    dtype: int
    """`TensorProto` data type."""
    shape: tuple[int | None, ...]
    """`None`: a size that may differ. Empty where the file does not say."""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """The outside of a graph."""

    path: Path
    inputs: tuple[Port, ...]
    """Without initialisers."""
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    """`metadata_props`: Ultralytics and others write what a model is for there."""
    operators: Mapping[str, str]
    """Output → the operator that computes it, before a mere `Cast`."""
    has_external_data: bool
    """Whether weights lie in a file beside it."""

    def literal(self, key: str) -> object:
        """What a metadata text spells as a Python literal (`{0: 'person'}`); the text itself where it is none.

        Nothing is run, and texts beyond 1 MiB are not looked at: they are `None`, as is a key that is not there.
        """
        text = self.metadata.get(key)
        if text is None or len(text) > _MAX_LITERAL:
            return None
        try:
            value: object = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return text
        return value

    def output(self, *names: str) -> Port | None:
        """The first output that has one of these names."""
        return next((port for name in names for port in self.outputs if port.name == name), None)

    def image_input(self) -> Port | None:
        """The one that takes pictures: of rank 4."""
        return next((port for port in self.inputs if len(port.shape) == 4), None)


def starts_like_onnx(start: bytes) -> bool:
    """Whether these first four bytes are those of an ONNX file: a protobuf that begins with its `ir_version`."""
    return (
        len(start) >= 3
        and start[0] == _IR_VERSION_TAG
        and 1 <= start[1] <= _MAX_IR_VERSION
        and start[2] & 7 == _BYTES_FIELD
    )


def read_graph(path: Path) -> OnnxGraph:
    """Read it, without external data. Raises `CorruptFile` for a file that is missing or is no ONNX graph."""
    model = open_onnx(path)
    graph = model.graph
    if not graph.output:
        raise CorruptFile(f"{path}: is no readable ONNX file: it has no graph", hint="fetch it again")
    weights = {tensor.name for tensor in graph.initializer}
    return OnnxGraph(
        path,
        tuple(_port(value) for value in graph.input if value.name not in weights),
        tuple(_port(value) for value in graph.output),
        {entry.key: entry.value for entry in model.metadata_props},
        _operators(graph),
        any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer),
    )


def with_external_data(graphs: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Graphs of a repository, and the files of its `paths` that their weights may lie in."""
    return [path for graph in graphs for path in (graph, f"{graph}.data", f"{graph}_data") if path in paths]


def check_image_input(graph: OnnxGraph) -> Port:
    """The input of pictures, if it is one that can be fed. Raises `UnsupportedArchitecture` saying what it is."""
    port = graph.image_input()
    if port is None:
        names = ", ".join(each.name for each in graph.inputs)
        raise UnsupportedArchitecture(
            f"{graph.path}: takes no pictures; its inputs are {names or 'none'}",
            hint="models that see are read from ONNX files; other models from GGUF files, or from a folder",
        )
    if port.dtype != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(port.dtype)
        raise UnsupportedArchitecture(
            f"{graph.path}: its input {port.name} is {kind}", hint="export it with inputs in float32"
        )
    if port.shape[1] not in (3, None):
        shape = ", ".join("?" if size is None else str(size) for size in port.shape)
        raise UnsupportedArchitecture(
            f"{graph.path}: its input {port.name} is [{shape}], [batch, 3, height, width] is read",
            hint="export it with the channels first",
        )
    batch, _, height, width = (size or 1 for size in port.shape)
    if math.prod((batch, height, width)) > _MAX_PIXELS:
        raise UnsupportedArchitecture(
            f"{graph.path}: its input {port.name} is {batch} x {height} x {width} pixels; the limit is {_MAX_PIXELS}",
            hint="export it for smaller pictures, or for fewer at a time",
        )
    return port


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Port(value.name, kind.elem_type, shape)


def _operators(graph: onnx.GraphProto) -> dict[str, str]:
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for value in graph.output:
        node, seen = makers.get(value.name), 0
        while node is not None and node.op_type in _PASSED_THROUGH and node.input and seen < len(graph.node):
            node, seen = makers.get(node.input[0]), seen + 1
        if node is not None:
            found[value.name] = node.op_type
    return found
