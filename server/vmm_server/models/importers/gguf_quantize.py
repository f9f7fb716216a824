"""A GGUF file of floats → one of 4 to 8 bits: the same keys and tensors, its matrices quantised."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, InvalidRequest
from vmm_server.models.importers.gguf_reader import MAGIC, GGUFFile, TensorEntry
from vmm_server.models.importers.gguf_weights import FLOAT_TYPES, PIECE_ELEMENTS, as_floats
from vmm_server.models.importers.k_quants import MAX_WEIGHT, quantize_rows
from vmm_server.models.importers.quantization_mix import target_types

_QUANTIZATION_VERSION = 2
"""Of the blocks' layouts (ggml.h, GGML_QNT_VERSION)."""
_REPLACED = ("general.file_type", "general.quantization_version")


def quantize_gguf(source: Path, target: Path, wanted: LlamaFileType, progress: Callable[[int, int], None]) -> str:
    """Write the model in `source` to `target` with the matrices that `wanted` asks for; the sha256 of what was written.

    `progress` gets (bytes read, bytes in all). Raises `InvalidRequest` (param `quantize`) for a file that is quantised
    already, `CorruptFile` for one with weights that are no numbers or too large for any scale, and `OSError`.
    """
    with GGUFFile(source) as file:
        for tensor in file.tensors.values():
            if tensor.type not in FLOAT_TYPES:
                raise InvalidRequest(
                    f"quantize: this model has {tensor.type.name} weights already; only F16, BF16 and F32 can be "
                    "quantized",
                    param="quantize",
                )
        targets = target_types({name: tensor.shape for name, tensor in file.tensors.items()}, wanted)
        kinds = {name: targets[name] or tensor.type for name, tensor in file.tensors.items()}
        with target.open("wb") as raw:
            writer = _HashedFile(raw)
            alignment = file.metadata.get("general.alignment", 32)
            _write_header(writer, file, kinds, wanted, int(str(alignment)))
            done, total = 0, sum(tensor.size_bytes for tensor in file.tensors.values())
            for tensor in file.tensors.values():
                for piece in _pieces(file, tensor):
                    writer.write(_converted(piece, tensor, kinds[tensor.name], source))
                    done += piece.nbytes
                    progress(done, total)
                writer.pad(int(str(alignment)))
        return writer.hexdigest()


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
    kinds: dict[str, GGMLQuantizationType],
    wanted: LlamaFileType,
    alignment: int,
) -> None:
    """Keys are copied as they lie in the file, but for those that say how it is quantised."""
    kept = [span for key, span in file.key_spans.items() if key not in _REPLACED]
    writer.write(MAGIC + struct.pack("<IQQ", 3, len(file.tensors), len(kept) + len(_REPLACED)))
    with file.path.open("rb") as source:
        for start, stop in kept:
            source.seek(start)
            writer.write(source.read(stop - start))
    values = (wanted, _QUANTIZATION_VERSION)
    for key, value in zip(_REPLACED, values, strict=True):
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
