"""Reads the tensors of a PyTorch checkpoint (`.pth`) without PyTorch, and without ever running what is in it.

Whoever unpickles a file runs a program that is in it, which is why pickled weights are refused everywhere else. Some
good models exist in no other form: for them the program is read, not run (`pickled_program`), and the numbers are taken
from where it says that they lie. Even so such a file is only taken when a model card promises its sha256.

Formats (torch/serialization.py of PyTorch 2): the older one is five things one after the other: a magic number, the
version, a note on the machine, the object, the keys of its storages, each pickled; then each storage's length and its
bytes. The newer one is a zip archive with the object in `<name>/data.pkl` and each storage in `<name>/data/<key>`.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.pickled_program import PickledTensor, Storage, Unreadable, read_program

_START, _ARCHIVE_START = b"\x80\x02\x8a\x0a", b"PK\x03\x04"
"""The first four bytes of either format."""
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MAX_PICKLE_BYTES = 64 * 1024**2


def is_pickled(path: Path) -> bool:
    """Whether a file looks like one of either format."""
    with path.open("rb") as file:
        start = file.read(4)
    if start != _ARCHIVE_START:
        return start == _START
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


class PickledWeights:
    """The tensors of a file that maps names to them (`state_dict`).

    Raises `CorruptFile` for a file that is damaged, `ImportFailed` for one that holds or does something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                is_archive = file.read(4) == _ARCHIVE_START
            found, self._read = _open_archive(path) if is_archive else _open_stream(path)
        except Unreadable as error:
            raise ImportFailed(
                f"{path}: is pickled, and {error}", hint="look for the model in safetensors or ONNX"
            ) from error
        except (ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise _corrupt(path, error) from error
        except OSError as error:
            raise ImportFailed(f"{path}: {error.strerror}", hint="check the path and its permissions") from error
        if not isinstance(found, dict):
            raise ImportFailed(f"{path}: is pickled, and holds no tensors by name")
        tensors = {str(key): value for key, value in found.items() if isinstance(value, PickledTensor)}
        self.tensors: Mapping[str, PickledTensor] = MappingProxyType(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises `CorruptFile` when it is not there."""
        return self._found(name).shape

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers. Raises `CorruptFile` when it is not there, or not all of it is."""
        tensor = self._found(name)
        storage = tensor.storage
        try:
            raw = self._read(storage.key, storage.count * np.dtype(storage.dtype).itemsize)
        except (ValueError, EOFError, struct.error, KeyError, zipfile.BadZipFile, zlib.error, OSError) as error:
            raise _corrupt(self.path, error) from error
        except (NotImplementedError, RuntimeError) as error:  # zipfile's, of archives that it cannot open
            raise _corrupt(self.path, error) from error
        numbers = np.frombuffer(raw, storage.dtype)[tensor.start :]
        strides = [stride * numbers.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False).astype(np.float32)

    def _found(self, name: str) -> PickledTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CorruptFile(f"{self.path}: has no tensor {name}", hint="get another copy of this model")
        return tensor


_Read = Callable[[str, int], bytes]
"""(storage's key, bytes that it has) → these bytes."""


def _corrupt(path: Path, error: Exception) -> CorruptFile:
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return CorruptFile(f"{path}: is damaged or cut off: {what}", hint="fetch it again")


def _open_archive(path: Path) -> tuple[object, _Read]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unreadable(f"holds {len(pickles)} of data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
            raise Unreadable("its description is larger than that of any model")
        try:
            program = archive.read(pickles[0])
        except RuntimeError as error:  # encrypted
            raise ValueError(str(error)) from error
    found = read_program(io.BytesIO(program))

    def read(key: str, num_bytes: int) -> bytes:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{root}data/{key}")
            if member.file_size != num_bytes:
                raise ValueError(f"storage {key[:50]!r} has {member.file_size} bytes, {num_bytes} are expected")
            return archive.read(member)

    return found, read


def _open_stream(path: Path) -> tuple[object, _Read]:
    places: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        size = path.stat().st_size
        if read_program(file) != _MAGIC or read_program(file) != _VERSION:
            raise Unreadable("is no checkpoint of PyTorch")
        note = read_program(file)
        if not isinstance(note, dict) or note.get("little_endian") is not True:
            raise Unreadable("was not written on a little-endian machine")
        found = read_program(file)
        storages = {storage.key: storage for storage in _storages(found)}
        keys = read_program(file)
        for key in keys if isinstance(keys, list) else ():
            (count,) = struct.unpack("<q", file.read(8))
            if not isinstance(key, str) or key not in storages or storages[key].count != count:
                raise ValueError(f"storage {str(key)[:50]!r} has {count} numbers, others are expected")
            num_bytes = count * np.dtype(storages[key].dtype).itemsize
            if file.tell() + num_bytes > size:
                raise ValueError(f"{size} bytes are too few")
            places[key] = file.tell(), num_bytes
            file.seek(num_bytes, io.SEEK_CUR)

    def read(key: str, num_bytes: int) -> bytes:
        start, _ = places[key]
        with path.open("rb") as file:
            file.seek(start)
            raw = file.read(num_bytes)
        if len(raw) != num_bytes:
            raise EOFError("it became shorter while it was read")
        return raw

    return found, read


def _storages(found: object) -> Iterator[Storage]:
    for value in found.values() if isinstance(found, dict) else ():
        if isinstance(value, PickledTensor):
            yield value.storage
