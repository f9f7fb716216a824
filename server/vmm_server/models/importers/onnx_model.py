"""Opens ONNX files, without their external data, and says no to those that point outside of their folder.

A tensor may name the file that its bytes lie in, and whoever loads the model reads that file: `../../.ssh/id_rsa` would
do, and its bytes would be weights that answers can be made to tell. Names are looked at in all graphs of a file, those
of branches, loops and functions included, before any runtime sees it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from vmm_server.errors import CorruptFile


def open_onnx(path: Path) -> ModelProto:
    """The file, without external data. Raises `CorruptFile` for one that is missing, no ONNX, or leaves its folder."""
    if not path.is_file():
        raise CorruptFile(f"{path}: is missing", hint="fetch the whole folder")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise CorruptFile(f"{path}: is no readable ONNX file: {error}", hint="fetch it again") from error
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise CorruptFile(f"{path}: has names that are not UTF-8", hint="fetch it again")
    for tensor in _tensors(model):
        location = external_location(tensor)
        if location is not None and not _is_plain(location):
            raise CorruptFile(
                f"{path}: the data of {tensor.name[:100]!r} lies in {location[:100]!r}, which is outside of its folder",
                hint="do not use this file: get another copy of the model",
            )
    return model


def external_location(tensor: TensorProto) -> str | None:
    """The file that a tensor's bytes lie in, as it is written; `None` for a tensor that has them itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _is_plain(location: str) -> bool:
    """Whether it is a relative path that goes down only, on every system."""
    path = PurePosixPath(location)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(location) & set("\\:\0")


def _texts(model: ModelProto) -> Iterator[str | bytes]:
    """The names that are read here. What is not UTF-8 comes as bytes: protobuf's second syntax does not check it."""
    graph = model.graph
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for value in (*graph.input, *graph.output):
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for node in graph.node:
        yield from (node.op_type, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors of a file."""
    graphs: list[GraphProto] = [model.graph]
    graphs += (training.initialization for training in model.training_info)
    graphs += (training.algorithm for training in model.training_info)
    for function in model.functions:
        yield from _of_nodes(function.node, graphs)
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _of_nodes(graph.node, graphs)


def _of_nodes(nodes: Iterable[NodeProto], graphs: list[GraphProto]) -> Iterator[TensorProto]:
    """The tensors in nodes' attributes; the graphs in them are added to `graphs`."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):  # an empty one, where there is none
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)
