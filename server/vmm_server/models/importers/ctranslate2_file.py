"""Reads CTranslate2's model.bin (github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, `_serialize`).

Little-endian: the version of the format, the specification's name and revision, then the variables (name, rank, sizes,
type, bytes) and aliases (a second name of a variable). Nothing in it is trusted: all extents are checked against the
size of the file when it is opened. Weights are read with plain reads when they are asked for.
"""

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed

FILE = "model.bin"
VERSION = 6
"""Of the format; since CTranslate2 2.23 (2022)."""
_DTYPES = (("float32", 4), ("int8", 1), ("int16", 2), ("int32", 4), ("float16", 2), ("bfloat16", 2))
"""Name and bytes of an element, by the type's number."""
_MAX_RANK = 8
_MAX_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Variable:
    """Where one tensor lies in its file and what it is."""

    name: str
    dtype: str
    """As CTranslate2 spells it: `bfloat16`."""
    shape: tuple[int, ...]
    """Row-major; empty for a plain number."""
    offset: int
    """Of the first byte, from the start of the file."""
    size_bytes: int


class CTranslate2File:
    """An open file: `variables` are read at once, their bytes when asked for. A context manager.

    Raises `CorruptFile` naming the file and what is wrong, `ImportFailed` for one that cannot be opened or is of
    another version.
    """

    path: Path
    spec: str
    """What kind of model it is: `WhisperSpec`."""
    variables: Mapping[str, Variable]
    """By their names and aliases."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = io.BufferedReader(io.FileIO(path), 1024**2)
        except FileNotFoundError as error:
            raise CorruptFile(f"{path}: is missing", hint="fetch the whole folder") from error
        except OSError as error:
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the path and its permissions") from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.spec = self._read_start()
            self.variables = MappingProxyType(self._read_variables())
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
        self._file.close()

    def read(self, variable: Variable, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """`num_bytes` of a variable's bytes from its byte `start` on: uint8 `[num_bytes]`."""
        raw = np.empty(num_bytes, np.uint8)
        try:
            self._file.seek(variable.offset + start)
            num_read = self._file.readinto(raw.data) if num_bytes else 0
        except OSError as error:
            raise ImportFailed(f"{self.path}: {error.strerror}", hint="check the disk it lies on") from error
        if num_read != num_bytes:
            raise self._corrupt(f"became shorter while it was read, in variable {variable.name!r}")
        return raw

    def _read_start(self) -> str:
        version = self._number("<I")
        if version != VERSION:
            raise ImportFailed(
                f"{self.path}: is of version {version} of CTranslate2's format, version {VERSION} is read",
                hint="convert the model again with a current CTranslate2",
            )
        spec = self._text()
        self._number("<I")  # the specification's revision; names and shapes are checked by who reads them
        return spec

    def _read_variables(self) -> dict[str, Variable]:
        variables: dict[str, Variable] = {}
        for _ in range(self._number("<I")):
            variable = self._read_variable()
            self._add(variables, variable.name, variable)
        for _ in range(self._number("<I")):
            alias, name = self._text(), self._text()
            if name not in variables:
                raise self._corrupt(f"{alias!r} is another name of {name!r}, which is not there")
            self._add(variables, alias, variables[name])
        if (end := self._file.tell()) != self._size:
            raise self._corrupt(f"has {self._size - end} bytes after its variables")
        return variables

    def _add(self, variables: dict[str, Variable], name: str, variable: Variable) -> None:
        if name in variables:
            raise self._corrupt(f"has two variables {name!r}")
        variables[name] = variable

    def _read_variable(self) -> Variable:
        name, rank = self._text(), self._number("<B")
        if rank > _MAX_RANK:
            raise self._corrupt(f"variable {name!r} has {rank} dimensions")
        shape = tuple(self._number("<I") for _ in range(rank))
        kind, size_bytes = self._number("<B"), self._number("<I")
        if kind >= len(_DTYPES):
            raise self._corrupt(f"variable {name!r} is of the unknown type {kind}")
        dtype, item_bytes = _DTYPES[kind]
        offset = self._file.tell()
        if math.prod(shape) * item_bytes != size_bytes:
            raise self._corrupt(f"variable {name!r} is {shape} of {dtype} but has {size_bytes} bytes")
        if offset + size_bytes > self._size:
            raise self._corrupt(f"is cut off at byte {self._size}, in variable {name!r}")
        self._file.seek(offset + size_bytes)
        return Variable(name, dtype, shape, offset, size_bytes)

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return number

    def _text(self) -> str:
        length = self._number("<H")
        if not 1 <= length <= _MAX_NAME_BYTES:
            raise self._corrupt(f"a name of {length} bytes stands before byte {self._file.tell()}")
        raw = self._bytes(length)
        try:
            text = raw[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._corrupt(f"a name before byte {self._file.tell()} is no text") from error
        if raw[-1] or not text.isprintable():
            raise self._corrupt(f"a name before byte {self._file.tell()} is no text")
        return text

    def _bytes(self, count: int) -> bytes:
        raw = self._file.read(count)
        if len(raw) != count:
            raise self._corrupt(f"is cut off at byte {self._size}")
        return raw

    def _corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what}", hint="fetch the file again")


def is_ctranslate2(path: Path) -> bool:
    """Whether a file begins as model.bin does: a version of the format, and a specification's name."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return False
    version, length = struct.unpack("<IH", start[:6]) if len(start) >= 6 else (0, 0)
    name = start[6 : 6 + length]
    return 1 <= version <= VERSION and name.endswith(b"Spec\0")
