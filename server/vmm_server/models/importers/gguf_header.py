"""The header of a GGUF file: key/value pairs, then one entry a tensor (ggml/docs/gguf.md, versions 2 and 3).

Nothing in it is trusted: every count, length and extent is checked against the size of the file before anything is
allocated, so that a truncated, corrupt or hostile file is a `CorruptFile` in milliseconds.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from vmm_server.errors import CorruptFile, ImportFailed

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 64 * 1024**2
"""The largest known vocabularies (262 k tokens with merges) need 16 MiB."""
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_ITEMS = 8 * 1024**2
"""Elements of all arrays together; each takes up to 60 bytes in memory. Those vocabularies need 1.5 million."""
_MAX_NAME_BYTES = 65535
_DEFAULT_ALIGNMENT = 32
_SCALARS: dict[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the file and what it is."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as numpy has it (a matrix is `[rows, columns]`, rows are output features)."""
    type: GGMLQuantizationType
    offset: int
    """Of the first byte, from the start of its file."""
    size_bytes: int
    part: int = 0
    """Which of a split model's files it lies in."""

    @property
    def num_elements(self) -> int:
        """Weights in the tensor."""
        return math.prod(self.shape)


class HeaderReader:
    """A cursor over the header that knows how many bytes are left."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0
        self._where = "the header"
        self.key_spans: dict[str, tuple[int, int]] = {}
        """Where each key and its value lie in the file: first byte, and the one after the last."""
        magic = self._take(min(4, self._size))
        if magic != MAGIC:
            raise CorruptFile(
                f"{path}: is not a GGUF file (it starts with {magic!r}, not {MAGIC!r})",
                hint="fetch the file again, or give the path of a .gguf file",
            )
        self._check_version(self._number("<I"))
        self._num_tensors, self._num_keys = self._number("<Q"), self._number("<Q")
        # An entry is at least a name's length, a type and a value; a tensor's is longer.
        counts = ((self._num_keys, 13, MAX_KEYS, "keys"), (self._num_tensors, 32, MAX_TENSORS, "tensors"))
        for count, least, limit, what in counts:
            if count * least > self._size - self._position:
                raise self._corrupt(f"claims {count} {what}, more than its {self._size} bytes can hold")
            if count > limit:
                raise self._corrupt(f"claims {count} {what}, the limit is {limit}")
        self._num_items = 0

    def _corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self._path}: {what}", hint="fetch the file again")

    def _check_version(self, version: int) -> None:
        if version in (2, 3):
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
            raise ImportFailed(f"{self._path}: is a big-endian GGUF", hint="get a little-endian one")
        if version == 1:
            raise ImportFailed(f"{self._path}: is of GGUF version 1", hint="get a newer file of this model")
        raise self._corrupt(f"is of GGUF version {version}, versions 2 and 3 are read")

    def _take(self, num_bytes: int) -> bytes:
        end = self._position + num_bytes
        if end > self._size:
            raise self._corrupt(f"ends at byte {self._size}, in {self._where}, which needs {num_bytes} bytes more")
        if end > MAX_HEADER_BYTES:
            raise self._corrupt(f"has a header of more than {MAX_HEADER_BYTES} bytes, in {self._where}")
        content = self._file.read(num_bytes)
        if len(content) != num_bytes:
            raise self._corrupt(f"ended early, in {self._where}")
        self._position = end
        return content

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _text(self) -> str:
        try:
            return self._take(self._number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise self._corrupt(f"has text that is not UTF-8 in {self._where}") from error

    def _name(self, what: str) -> str:
        self._where = what
        name = self._text()
        if not name or len(name) > _MAX_NAME_BYTES or not name.isprintable():
            raise self._corrupt(f"has {what} with an unreadable name")
        return name

    def _value(self, kind: int) -> object:
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind == GGUFValueType.ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._corrupt(f"has a value of unknown type {kind} in {self._where}")
        scalar = _SCALARS[kind]
        value: object = scalar.unpack(self._take(scalar.size))[0]
        return value

    def _array(self) -> list[object]:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == GGUFValueType.STRING:
            if count * 8 > self._size - self._position:
                raise self._corrupt(f"claims {count} strings in {self._where}, more than the file can hold")
            self._count_items(count)
            return [self._text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._corrupt(f"has an array of unknown type {kind} in {self._where}")
        scalar = _SCALARS[kind]
        content = self._take(count * scalar.size)
        self._count_items(count)
        return [value for (value,) in scalar.iter_unpack(content)]

    def _count_items(self, count: int) -> None:
        self._num_items += count
        if self._num_items > MAX_ITEMS:
            raise self._corrupt(f"has arrays of more than {MAX_ITEMS} elements, in {self._where}")

    def read_metadata(self) -> dict[str, object]:
        """The keys with plain values: str, int, float, bool, or a list of one of them."""
        metadata: dict[str, object] = {}
        for index in range(self._num_keys):
            start = self._position
            key = self._name(f"key {index}")
            self._where = f"the value of {key!r}"
            if key in metadata:
                raise self._corrupt(f"has the key {key!r} twice")
            metadata[key] = self._value(self._number("<I"))
            self.key_spans[key] = (start, self._position)
        return metadata

    def read_tensors(self, metadata: Mapping[str, object]) -> dict[str, TensorEntry]:
        """The tensors by name, in the file's order, each inside the file and none over another."""
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._corrupt(f"has general.alignment {alignment!r}, which is not a power of two")
        relative = [self._entry(index) for index in range(self._num_tensors)]
        first_byte = -(-self._position // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for entry in relative:
            if entry.name in tensors:
                raise self._corrupt(f"has the tensor {entry.name!r} twice")
            if entry.offset % alignment:
                raise self._corrupt(f"has tensor {entry.name!r} at a byte that is no multiple of {alignment}")
            end = first_byte + entry.offset + entry.size_bytes
            if end > self._size:
                raise self._corrupt(f"is cut off: tensor {entry.name!r} ends at byte {end}, the file at {self._size}")
            tensors[entry.name] = TensorEntry(
                entry.name, entry.shape, entry.type, first_byte + entry.offset, entry.size_bytes
            )
        self._check_no_overlap(tensors)
        return tensors

    def _entry(self, index: int) -> TensorEntry:
        """One tensor's entry; its offset still counts from the end of the header."""
        name = self._name(f"the entry of tensor {index}")
        self._where = f"the entry of tensor {name!r}"
        rank = self._number("<I")
        if not 1 <= rank <= 4:
            raise self._corrupt(f"has tensor {name!r} with {rank} dimensions, 1 to 4 are possible")
        shape = tuple(reversed(struct.unpack(f"<{rank}Q", self._take(8 * rank))))
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            quantization = GGMLQuantizationType(kind)
        except ValueError as error:
            raise self._corrupt(f"has tensor {name!r} of unknown type {kind}") from error
        block_size, block_bytes = GGML_QUANT_SIZES[quantization]
        if 0 in shape or shape[-1] % block_size:
            raise self._corrupt(
                f"has tensor {name!r} of shape {list(shape)}: not whole blocks of {block_size} {quantization.name}"
            )
        return TensorEntry(name, shape, quantization, offset, math.prod(shape) // block_size * block_bytes)

    def _check_no_overlap(self, tensors: Mapping[str, TensorEntry]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in pairwise(ordered):
            if before.offset + before.size_bytes > after.offset:
                raise self._corrupt(f"has tensors {before.name!r} and {after.name!r} over one another")
