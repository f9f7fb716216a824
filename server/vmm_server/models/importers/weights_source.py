"""What a decoder is built from: keys and tensors under GGUF's names, whatever files they lie in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmm_server.models.importers.gguf_reader import TensorEntry


class KeySource(Protocol):
    """Says what a decoder is, before a tensor is looked at."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...

    @property
    def metadata(self) -> Mapping[str, object]:
        """Keys as GGUF has them (`llama.block_count`), with plain values."""
        ...


class WeightsSource(KeySource, Protocol):
    """Tensors, read a few rows at a time."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """By GGUF's names (`blk.0.attn_q.weight`); a `TensorEntry` has the name that the file itself gives it."""
        ...

    def file_name(self, name: str) -> str:
        """What the files call the tensor that GGUF calls `name`, for messages; it need not be there."""
        ...

    def read_rows(self, tensor: TensorEntry, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows `start` to `stop` (a row is the last dimension): uint8 `[stop - start, row bytes]`.

        Raises `CorruptFile`, `ImportFailed`.
        """
        ...
