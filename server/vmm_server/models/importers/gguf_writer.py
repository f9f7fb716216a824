"""Writes a GGUF model that was read: the same keys and tensors in one file, matrices as they are or of other types."""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.gguf_reader import MAGIC, GGUFFile, TensorEntry
from vmm_server.models.importers.gguf_weights import PIECE_ELEMENTS, as_floats
from vmm_server.models.importers.k_quants import MAX_WEIGHT, quantize_rows

Progress = Callable[[int, int], None]
"""Gets (bytes read, bytes in all)."""


def write_gguf(
    file: GGUFFile,
    target: Path,
    progress: Progress,
    *,
    types: Mapping[str, GGMLQuantizationType] | None = None,
    keys: Mapping[str, int] | None = None,
) -> str:
    """Write `file` to `target`, with the tensors of `types` quantised and the `keys` replaced; returns its sha256.

    Tensors whose type changes are floats. Raises `CorruptFile` for weights that are no numbers or too large for any
    scale, and `OSError`.
    """
    kinds = {name: tensor.type for name, tensor in file.tensors.items()} | dict(types or {})
    with target.open("wb") as raw:
        writer = _HashedFile(raw)
        alignment = int(str(file.metadata.get("general.alignment", 32)))
        _write_header(writer, file, kinds, keys or {}, alignment)
        done, total = 0, sum(tensor.size_bytes for tensor in file.tensors.values())
        for tensor in file.tensors.values():
            for piece in _pieces(file, tensor):
                writer.write(_converted(piece, tensor, kinds[tensor.name], file.path))
                done += piece.nbytes
                progress(done, total)
            writer.pad(alignment)
    return writer.hexdigest()


def join_gguf(source: Path, target: Path, progress: Progress) -> str:
    """Write the split model whose first file is `source` to `target`, as one file; returns its sha256.

    Raises as `GGUFFile` does, and `OSError`.
    """
    with GGUFFile(source) as file:
        return write_gguf(file, target, progress)


class _HashedFile:
    """What is written, its length and its sha256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)

    def pad(self, alignment: int) -> None:
        self.write(bytes(-self._size % alignment))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_header(
    writer: _HashedFile,
    file: GGUFFile,
    kinds: Mapping[str, GGMLQuantizationType],
    keys: Mapping[str, int],
    alignment: int,
) -> None:
    """Keys are copied as they lie in the file, but for those that are replaced."""
    kept = [span for key, span in file.key_spans.items() if key not in keys]
    writer.write(MAGIC + struct.pack("<IQQ", 3, len(file.tensors), len(kept) + len(keys)))
    with file.path.open("rb") as source:
        for start, stop in kept:
            source.seek(start)
            writer.write(source.read(stop - start))
    for key, value in keys.items():
        writer.write(_text(key) + struct.pack("<II", GGUFValueType.UINT32, value))
    offset = 0
    for name, tensor in file.tensors.items():
        shape = tuple(reversed(tensor.shape))
        writer.write(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kinds[name], offset))
        block_size, block_bytes = GGML_QUANT_SIZES[kinds[name]]
        size_bytes = tensor.num_elements // block_size * block_bytes
        offset += -(-size_bytes // alignment) * alignment
    writer.pad(alignment)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _pieces(file: GGUFFile, tensor: TensorEntry) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, uint8 `[rows, row bytes]`, about `PIECE_ELEMENTS` weights at a time."""
    columns = tensor.shape[-1]
    rows = tensor.num_elements // columns
    step = max(1, PIECE_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield file.read_rows(tensor, start, min(start + step, rows))


def _converted(piece: NDArray[np.uint8], tensor: TensorEntry, kind: GGMLQuantizationType, source: Path) -> bytes:
    if kind is tensor.type:
        return piece.tobytes()
    floats = as_floats(piece, tensor.type)
    if not (np.abs(floats) <= MAX_WEIGHT).all():
        raise CorruptFile(
            f"{source}: tensor {tensor.name!r} has weights that are not numbers, or beyond {MAX_WEIGHT:.0f}"
        )
    return quantize_rows(kind, floats).tobytes()
