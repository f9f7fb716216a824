"""Reads safetensors files (huggingface.co/docs/safetensors, "Format"), trusting nothing that is in them.

A file is the length of its header (8 bytes, little-endian), the header (JSON: one entry a tensor) and the tensors'
bytes, without a gap. All extents are checked against the size of the file when it is opened. Tensors are read with
plain reads, never mapped: a file that shrinks while it is read is an error then, not a crash.
"""

import io
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed

MAX_HEADER_BYTES = 16 * 1024**2
"""The format allows 100 MB, which JSON could make gigabytes of; a hundred thousand tensors need 10."""
_DTYPES = {
    64: ("F64", "C64", "I64", "U64"),
    32: ("F32", "I32", "U32"),
    16: ("F16", "BF16", "I16", "U16"),
    8: ("F8_E5M2", "F8_E4M3", "F8_E8M0", "I8", "U8", "BOOL"),
    6: ("F6_E2M3", "F6_E3M2"),
    4: ("F4",),
}
ELEMENT_BITS = {dtype: bits for bits, dtypes in _DTYPES.items() for dtype in dtypes}
"""Of each dtype that the format knows."""
_METADATA = "__metadata__"
_MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in its file and what it is."""

    name: str
    dtype: str
    """As the format spells it: `BF16`."""
    shape: tuple[int, ...]
    """Row-major."""
    offset: int
    """Of the first byte, from the start of the file."""
    size_bytes: int


class SafetensorsFile:
    """An open file: `tensors` is read at once, their bytes when asked for. A context manager.

    Raises `CorruptFile` naming the file and what is wrong, `ImportFailed` for one that cannot be opened.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = io.BufferedReader(io.FileIO(path), 1024**2)
        except FileNotFoundError as error:
            raise CorruptFile(f"{path}: is missing", hint="fetch the whole folder") from error
        except OSError as error:
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the path and its permissions") from error
        try:
            self.tensors = MappingProxyType(self._read_header())
        except OSError as error:
            self._file.close()
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the disk it lies on") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read of it stays."""
        self._file.close()

    def read(self, tensor: StoredTensor, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """`num_bytes` of a tensor's bytes from its byte `start` on: uint8 `[num_bytes]`."""
        raw = np.empty(num_bytes, np.uint8)
        try:
            self._file.seek(tensor.offset + start)
            num_read = self._file.readinto(raw.data) if num_bytes else 0
        except OSError as error:
            raise ImportFailed(f"{self.path}: {error.strerror}", hint="check the disk it lies on") from error
        if num_read != num_bytes:
            raise self._corrupt(f"became shorter while it was read, in tensor {tensor.name!r}")
        return raw

    def _corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what}", hint="fetch the file again")

    def _read_header(self) -> dict[str, StoredTensor]:
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise self._corrupt(f"is no safetensors file, or cut off: a header of {length} bytes in a file of {size}")
        try:
            entries = json.loads(self._file.read(length), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"has no readable header: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(entries, dict):
            raise self._corrupt("has a header that is no JSON object")
        data = 8 + length
        tensors = {name: self._entry(name, entry, data) for name, entry in entries.items() if name != _METADATA}
        end = data
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size_bytes)):
            if tensor.offset != end:
                raise self._corrupt(f"tensor {tensor.name!r} begins at byte {tensor.offset}, {end} is expected")
            end += tensor.size_bytes
        if end != size:
            what = f"is cut off at byte {size} of {end}" if size < end else f"has {size - end} bytes after its tensors"
            raise self._corrupt(what)
        return tensors

    def _entry(self, name: str, entry: object, data: int) -> StoredTensor:
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        bits = ELEMENT_BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None:
            raise self._corrupt(
                f"tensor {name[:200]!r} is of dtype {str(dtype)[:50]!r}, which the format does not have"
            )
        if not (_are_sizes(shape) and len(shape) <= _MAX_RANK and _are_sizes(offsets) and len(offsets) == 2):
            raise self._corrupt(f"tensor {name[:200]!r} has no readable shape and data_offsets")
        start, stop = offsets
        if math.prod(shape) * bits != (stop - start) * 8:
            sizes = "x".join(map(str, shape))
            raise self._corrupt(f"tensor {name[:200]!r} is {sizes} of {dtype} but has {stop - start} bytes")
        return StoredTensor(name, str(dtype), tuple(shape), data + start, stop - start)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in value
    )


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found
