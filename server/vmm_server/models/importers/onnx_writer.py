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
_COPIED_BYTES = 1 << 22
"""At a time."""


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
    sizes_bytes: tuple[int, ...]
    pieces: Callable[[], Pieces]


class ModelWriter:
    """Collects a graph, then writes it once. Every value is known by its name, as in ONNX itself."""

    def __init__(
        self,
        graph_name: str,
        *,
        like: onnx.ModelProto | None = None,
        file_name: str = MODEL_FILE,
        standard_opset: int | None = None,
    ) -> None:
        """`like` is a model whose nodes go into this one: its versions are kept.

        With a `standard_opset` the graph has operators of ONNX alone, as of that version. The weights go into a file
        called as `file_name` is, and `.data`.
        """
        self._graph = onnx.GraphProto(name=graph_name)
        self._file_name = file_name
        self._ir_version = like.ir_version if like else IR_VERSION
        self._opsets = {each.domain: each.version for each in like.opset_import} if like else {"": OPSET}
        self._opsets.setdefault(MICROSOFT, 1)
        if standard_opset is not None:
            self._opsets = {"": standard_opset}
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
        tensors = [TensorProto(name=spec.name, data_type=spec.dtype, dims=spec.shape) for spec in specs]
        offsets = [self._place(tensor, spec.size_bytes) for tensor, spec in zip(tensors, specs, strict=True)]
        self._streams.append(_Stream(tuple(offsets), tuple(spec.size_bytes for spec in specs), pieces))

    def copy_node(self, node: onnx.NodeProto) -> None:
        """Append another model's node as it is."""
        self._graph.node.append(node)

    def copy_value(self, value: onnx.ValueInfoProto, *, is_output: bool) -> None:
        """Declare an input or output as another model has it."""
        (self._graph.output if is_output else self._graph.input).append(value)

    def copy_tensor(self, tensor: TensorProto, data: NDArray[np.uint8] | None) -> None:
        """Another model's initialiser; `data` are its bytes if they lie outside of that model's graph."""
        self._constants.add(tensor.name)
        if data is None:
            self._graph.initializer.append(tensor)
            return
        kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        offset = self._place(kept, len(data))
        starts = range(0, len(data), _COPIED_BYTES)
        self._streams.append(
            _Stream((offset,), (len(data),), lambda: ((data[start : start + _COPIED_BYTES],) for start in starts))
        )

    @property
    def size_bytes(self) -> int:
        """Of the external file, as far as it has been announced."""
        return self._end

    @property
    def _data_name(self) -> str:
        return f"{self._file_name}.data"

    def _place(self, tensor: TensorProto, size_bytes: int) -> int:
        """Announce a tensor with external data; where that begins."""
        alignment = _PAGE_BYTES if size_bytes >= _PAGE_ALIGNED_FROM_BYTES else _CACHE_LINE_BYTES
        offset = -(-self._end // alignment) * alignment
        self._end = offset + size_bytes
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._data_name), ("offset", offset), ("length", size_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._graph.initializer.append(tensor)
        return offset

    def write(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        """Write the graph, and its weights beside it. `progress` gets (bytes written, bytes in all)."""
        model = helper.make_model(
            self._graph,
            producer_name="vmm",
            ir_version=self._ir_version,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._opsets.items()],
        )
        (folder / self._file_name).write_bytes(model.SerializeToString(deterministic=True))
        written = 0
        with (folder / self._data_name).open("wb") as file:
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
                for size_bytes, start, end in zip(stream.sizes_bytes, stream.offsets, ends, strict=True):
                    if end - start != size_bytes:
                        raise RuntimeError(f"at {start}: {end - start} bytes came, {size_bytes} were announced")
            file.flush()
        progress(self._end, self._end)
