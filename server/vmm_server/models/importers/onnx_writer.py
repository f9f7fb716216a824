"""Writes one ONNX model whose weights lie in a file of their own and are never all in memory.

Nodes and small constants are collected; large initialisers are only announced, with a function that yields
their pieces. The place of every byte follows from names, types and shapes, so `write` puts the graph first and
then fills the external data piece by piece. The same calls give the same bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MODEL_FILE = "model.onnx"
EXTERNAL_FILE = "model.onnx.data"
IR_VERSION = 10
"""Not the newest: current runtimes refuse what the newest `onnx` package writes by default."""
OPSET = 21
MICROSOFT = "com.microsoft"
_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
_PAGE_ALIGNED_FROM_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An initialiser to come: name, `TensorProto` data type, shape."""

    name: str
    dtype: int
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in the external file."""
        return math.prod(self.shape) * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize


Pieces = Iterable[tuple[NDArray[np.generic], ...]]
"""Consecutive parts, one array for each tensor announced together."""


@dataclass(frozen=True, slots=True)
class _Stream:
    offsets: tuple[int, ...]
    specs: tuple[TensorSpec, ...]
    pieces: Callable[[], Pieces]


class ModelWriter:
    """Collects a graph, then writes it once. Every value is known by its name, as in ONNX itself."""

    def __init__(self, graph_name: str) -> None:
        self._graph = onnx.GraphProto(name=graph_name)
        self._streams: list[_Stream] = []
        self._end = 0
        self._constants: set[str] = set()

    def input(self, name: str, dtype: int, shape: Sequence[str | int]) -> str:
        """Declare a model input and return its name; a text in `shape` is a dynamic dimension."""
        self._graph.input.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[str | int]) -> str:
        """Declare the value `name` a model output and return its name."""
        self._graph.output.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        outputs: Sequence[str] | None = None,
        *,
        domain: str = "",
        **attributes: int | float | str | list[int],
    ) -> str:
        """Append a node and return its first output, which is `<name>/output_0` unless `outputs` says otherwise."""
        outputs = outputs or [f"{name}/output_0"]
        self._graph.node.append(helper.make_node(op, inputs, outputs, name, None, domain, None, **attributes))
        return outputs[0]

    def constant(self, value: NDArray[np.generic] | int | float) -> str:
        """A small tensor, kept in the graph itself; int64 and float32 for plain numbers. Equal ones are shared."""
        if isinstance(value, int | float):
            value = np.asarray(value, np.int64 if isinstance(value, int) else np.float32)
        name = f"/model/constants/{value.dtype.name}/{value.shape}/{value.tobytes().hex()[:64]}"
        if value.size <= 4:
            name = f"/model/constants/{value.dtype.name.upper()}/{value.tolist()}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def stream(self, specs: Sequence[TensorSpec], pieces: Callable[[], Pieces]) -> None:
        """Announce initialisers that are written together; `pieces` is called once, by `write`."""
        offsets = []
        for spec in specs:
            alignment = _PAGE_BYTES if spec.size_bytes >= _PAGE_ALIGNED_FROM_BYTES else _CACHE_LINE_BYTES
            offset = -(-self._end // alignment) * alignment
            self._end = offset + spec.size_bytes
            offsets.append(offset)
            tensor = TensorProto(name=spec.name, data_type=spec.dtype, dims=spec.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", EXTERNAL_FILE), ("offset", offset), ("length", spec.size_bytes)):
                tensor.external_data.add(key=key, value=str(value))
            self._graph.initializer.append(tensor)
        self._streams.append(_Stream(tuple(offsets), tuple(specs), pieces))

    def write(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        """Write `model.onnx` and `model.onnx.data`. `progress` gets (bytes written, bytes in all)."""
        model = helper.make_model(
            self._graph,
            producer_name="vmm",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        (folder / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        written = 0
        with (folder / EXTERNAL_FILE).open("wb") as file:
            file.truncate(self._end)
            for stream in self._streams:
                ends = list(stream.offsets)
                for piece in stream.pieces():
                    for index, array in enumerate(piece):
                        file.seek(ends[index])
                        file.write(np.ascontiguousarray(array).data)
                        ends[index] += array.nbytes
                        written += array.nbytes
                    progress(written, self._end)
                for spec, start, end in zip(stream.specs, stream.offsets, ends, strict=True):
                    if end - start != spec.size_bytes:
                        raise RuntimeError(f"{spec.name}: {end - start} bytes came, {spec.size_bytes} were announced")
            file.flush()
        progress(self._end, self._end)
