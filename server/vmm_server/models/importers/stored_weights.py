"""A model's weights, whatever files they lie in: under transformers' names, without their `model.` in front.

Weights are handed on as they are stored, in pieces of rows, so that a model of any size is imported in little memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.safetensors_file import SafetensorsFile, StoredTensor
from vmm_server.models.importers.safetensors_weights import weight_files

PIECE_BYTES = 4 * 1024**2
_PREFIX = "model."
_STORED = {
    "F32": (TensorProto.FLOAT, np.float32),
    "F16": (TensorProto.FLOAT16, np.float16),
    "BF16": (TensorProto.BFLOAT16, np.uint16),
}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """What a weight is before it is read."""

    shape: tuple[int, ...]
    dtype: int
    """FLOAT, FLOAT16 or BFLOAT16 of `TensorProto`."""


class StoredWeights(Protocol):
    """Weights, read in pieces."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...

    def stored(self, name: str) -> StoredWeight:
        """Of the weight `name` (`encoder.conv1.weight`). Raises `CorruptFile` when it is not there."""
        ...

    def pieces(self, name: str) -> Iterator[NDArray[np.generic]]:
        """Its rows one after the other: float32, float16, or uint16 with the bits of bfloat16. Raises `CorruptFile`."""
        ...


class SafetensorsWeightFiles:
    """The open files of a folder of transformers; `StoredWeights` and a context manager.

    Raises `CorruptFile` naming the file that is missing or damaged.
    """

    path: Path

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._tensors: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        with ExitStack() as files:
            for path in weight_files(folder):
                file = files.enter_context(SafetensorsFile(path))
                for tensor in file.tensors.values():
                    name = tensor.name.removeprefix(_PREFIX)
                    if name in self._tensors:
                        raise CorruptFile(f"{path}: tensor {tensor.name!r} is in another file as well")
                    self._tensors[name] = (file, tensor)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def stored(self, name: str) -> StoredWeight:
        """See `StoredWeights`. Raises `ImportFailed` for a weight of another type."""
        file, tensor = self._found(name)
        if tensor.dtype not in _STORED:
            raise ImportFailed(
                f"{file.path}: tensor {tensor.name!r} is stored as {tensor.dtype}, which is not read",
                hint=f"get this model in one of {', '.join(_STORED)}",
            )
        return StoredWeight(tensor.shape, _STORED[tensor.dtype][0])

    def pieces(self, name: str) -> Iterator[NDArray[np.generic]]:
        """See `StoredWeights`."""
        file, tensor = self._found(name)
        count = tensor.shape[0] if tensor.shape else 1
        row_bytes = tensor.size_bytes // max(1, count)
        rows = max(1, PIECE_BYTES // max(1, row_bytes))
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            raw = file.read(tensor, start * row_bytes, (stop - start) * row_bytes)
            yield raw.view(_STORED[tensor.dtype][1]).reshape(-1, *tensor.shape[1:])

    def _found(self, name: str) -> tuple[SafetensorsFile, StoredTensor]:
        found = self._tensors.get(name)
        if found is None:
            raise CorruptFile(f"{self.path}: lacks the tensor {_PREFIX}{name}", hint="fetch the folder again")
        return found


def as_float32(piece: NDArray[np.generic]) -> NDArray[np.float32]:
    """What a piece of `StoredWeights` says, in float32."""
    if piece.dtype == np.uint16:  # a bfloat16 is the upper half of a float32
        return (piece.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return piece.astype(np.float32)
