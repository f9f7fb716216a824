"""Reads GGUF files, llama.cpp's format, whole ones and split ones; `gguf_header` says how, and what is checked.

Tensors are read with plain reads, never mapped: a file that shrinks while it is read is an error then, not a crash.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_header import MAGIC, MAX_HEADER_BYTES, HeaderReader, TensorEntry
from vmm_server.models.importers.gguf_parts import PartName

__all__ = ["MAGIC", "MAX_HEADER_BYTES", "GGUFFile", "TensorEntry"]

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
"""llama.cpp's keys of a split model: which part a file is (from 0), of how many, and how many tensors all have."""
_SPLIT_KEYS = (_NUMBER, _COUNT, _TENSORS)
_MAX_PARTS = 99999
"""As many as the five digits in the parts' names can count."""


class GGUFFile:
    """An open GGUF model: `metadata` and `tensors` are read at once, tensor bytes when asked for.

    The first file of a split model opens all of them, which lie beside it under llama.cpp's names; the keys are the
    first file's, but for those about the split. A context manager. Raises `CorruptFile` naming the file and what is
    wrong, `ImportFailed` for a file that cannot be opened, is missing, or is of a kind that is not read (other
    versions, big-endian).
    """

    path: Path
    metadata: Mapping[str, object]
    """Keys to plain values: str, int, float, bool, or a list of one of them."""
    tensors: Mapping[str, TensorEntry]
    key_spans: Mapping[str, tuple[int, int]]
    """Where each key and its value lie in the file: first byte, and the one after the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths, self._files = [path], [_open(path)]
        try:
            header = HeaderReader(self._files[0], path)
            metadata = header.read_metadata()
            tensors = header.read_tensors(metadata)
            if (count := _part_count(path, metadata)) > 1:
                self._add_parts(metadata, tensors, count)
            self.metadata = MappingProxyType({key: value for key, value in metadata.items() if key not in _SPLIT_KEYS})
            self.tensors = MappingProxyType(tensors)
            spans = {key: span for key, span in header.key_spans.items() if key not in _SPLIT_KEYS}
            self.key_spans = MappingProxyType(spans)
        except OSError as error:
            self.close()
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the disk it lies on") from error
        except BaseException:
            self.close()
            raise

    def _add_parts(self, metadata: Mapping[str, object], tensors: dict[str, TensorEntry], count: int) -> None:
        """Open the other files and add their tensors. Raises `CorruptFile`, `ImportFailed` naming the one."""
        own = PartName.parse(self.path.name)
        if own is None or own.count != count:
            hint = f"give all parts the names they were published under, ending in {PartName('', 1, count)}"
            raise ImportFailed(f"{self.path}: is one of {count} parts, and its name does not say which", hint=hint)
        if (number := metadata.get(_NUMBER)) != 0 or own.number != 1:
            first = PartName(own.stem, 1, count)
            raise ImportFailed(f"{self.path}: is a later part of a split model", hint=f"name {first}")
        for number in range(1, count):
            path = self.path.with_name(str(PartName(own.stem, number + 1, count)))
            if not path.exists():
                raise ImportFailed(
                    f"{path}: is missing, part {number + 1} of {count} of a split model",
                    hint="put all its parts into one folder",
                )
            self._paths.append(path)
            self._files.append(_open(path))
            header = HeaderReader(self._files[-1], path)
            part = header.read_metadata()
            wanted = (number, count, metadata.get(_TENSORS))
            if (found := (part.get(_NUMBER), part.get(_COUNT), part.get(_TENSORS))) != wanted:
                raise _not_belonging(path, f"{_NUMBER}, {_COUNT} and {_TENSORS} are {found}, {wanted} are expected")
            for name, tensor in header.read_tensors(part).items():
                if name in tensors:
                    raise _not_belonging(path, f"tensor {name!r} is in another part as well")
                tensors[name] = replace(tensor, part=number)
        if len(tensors) != metadata.get(_TENSORS):
            raise _not_belonging(self.path, f"its parts have {len(tensors)} tensors, not {metadata.get(_TENSORS)!r}")

    def close(self) -> None:
        """Close what is open; what was read of it stays."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def file_name(self, name: str) -> str:
        """What the file calls the tensor `name`: just that."""
        return name

    def read_rows(self, tensor: TensorEntry, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows `start` to `stop` (a row is the last dimension): uint8 `[stop - start, row bytes]`."""
        rows = tensor.num_elements // tensor.shape[-1]
        row_bytes = tensor.size_bytes // rows
        raw, path = np.empty((stop - start, row_bytes), np.uint8), self._paths[tensor.part]
        try:
            file = self._files[tensor.part]
            file.seek(tensor.offset + start * row_bytes)
            num_read = file.readinto(raw.data.cast("B")) if raw.size else 0
        except OSError as error:
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the disk it lies on") from error
        if num_read != raw.size:
            raise CorruptFile(
                f"{path}: became shorter while it was read, in tensor {tensor.name!r}",
                hint="fetch the file again",
            )
        return raw


def _open(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(io.FileIO(path), 1024**2)
    except OSError as error:
        raise ImportFailed(f"{path}: {error.strerror}", hint="check the path and its permissions") from error


def _part_count(path: Path, metadata: Mapping[str, object]) -> int:
    count = metadata.get(_COUNT, 1)
    if not isinstance(count, int) or not 0 <= count <= _MAX_PARTS:
        raise CorruptFile(f"{path}: has {_COUNT} {count!r}", hint="fetch the file again")
    return max(1, count)


def _not_belonging(path: Path, why: str) -> CorruptFile:
    return CorruptFile(f"{path}: is a part of another model: {why}", hint="fetch all parts again, from one place")
