"""A CTranslate2 folder of Whisper as a source of weights, under transformers' names.

CTranslate2 puts the projections of queries, keys and values below each other: self-attention's `linear_0` is all
three, cross-attention's `linear_1` keys and values. Keys have a bias there, which the softmax does not see: it is left
out, as in transformers. Quantised weights are `weight * scale` rounded, one scale a row (int8) or one in all (int16);
they become float16, whose own rounding is far below theirs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.ctranslate2_file import FILE, CTranslate2File, Variable
from vmm_server.models.importers.stored_weights import PIECE_BYTES, StoredWeight, as_float32
from vmm_server.models.importers.whisper_config import WhisperConfig, check_sizes

SPEC = "WhisperSpec"
_OUTER = {
    "encoder.embed_positions.weight": "encoder/position_encodings/encodings",
    "decoder.embed_positions.weight": "decoder/position_encodings/encodings",
    "decoder.embed_tokens.weight": "decoder/embeddings/weight",
}
_LAYER = {
    "self_attn_layer_norm": ("self_attention/layer_norm", 0, 1),
    "self_attn.q_proj": ("self_attention/linear_0", 0, 3),
    "self_attn.k_proj": ("self_attention/linear_0", 1, 3),
    "self_attn.v_proj": ("self_attention/linear_0", 2, 3),
    "self_attn.out_proj": ("self_attention/linear_1", 0, 1),
    "encoder_attn_layer_norm": ("attention/layer_norm", 0, 1),
    "encoder_attn.q_proj": ("attention/linear_0", 0, 1),
    "encoder_attn.k_proj": ("attention/linear_1", 0, 2),
    "encoder_attn.v_proj": ("attention/linear_1", 1, 2),
    "encoder_attn.out_proj": ("attention/linear_2", 0, 1),
    "final_layer_norm": ("ffn/layer_norm", 0, 1),
    "fc1": ("ffn/linear_0", 0, 1),
    "fc2": ("ffn/linear_1", 0, 1),
}
"""Of each part of a layer its name, and which of how many below each other it is."""
_IN_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_STORED = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, np.uint16),
    "int8": (TensorProto.FLOAT16, np.int8),
    "int16": (TensorProto.FLOAT16, np.int16),
}
"""Of CTranslate2's types what the weights become, and what is read."""
_INTEGERS = ("int8", "int16")
_LARGEST = float(np.finfo(np.float16).max)
_GELU = 3
"""CTranslate2's number of it (python/ctranslate2/specs/common_spec.py, `Activation`)."""
_WANTED = {
    "decoder/activation": _GELU,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/alibi": 0,
    "decoder/start_from_zero_embedding": 0,
}


class CTranslate2Whisper:
    """An open model.bin; `StoredWeights` and a context manager.

    Raises `CorruptFile`, `ImportFailed`; `UnsupportedArchitecture` for another model than Whisper.
    """

    path: Path
    config: WhisperConfig

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._file = CTranslate2File(self.path)
        try:
            self.config = self._read_config()
        except BaseException:
            self._file.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def stored(self, name: str) -> StoredWeight:
        """See `StoredWeights`."""
        variable, _, count = self._found(name)
        if variable.dtype not in _STORED or not variable.shape or variable.shape[0] % count:
            raise CorruptFile(
                f"{self.path}: {variable.name} is {variable.shape} of {variable.dtype}, no {count} matrices or vectors",
                hint="get another copy of this model",
            )
        if variable.dtype in _INTEGERS:
            self._scale(variable)
        return StoredWeight((variable.shape[0] // count, *variable.shape[1:]), _STORED[variable.dtype][0])

    def pieces(self, name: str) -> Iterator[NDArray[np.generic]]:
        """See `StoredWeights`."""
        variable, which, count = self._found(name)
        height = variable.shape[0] // count
        row_bytes = variable.size_bytes // variable.shape[0]
        rows = max(1, PIECE_BYTES // row_bytes)
        scale = self._scale(variable) if variable.dtype in _INTEGERS else None
        first, last = which * height, (which + 1) * height
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            raw = self._file.read(variable, start * row_bytes, (stop - start) * row_bytes)
            piece = raw.view(_STORED[variable.dtype][1]).reshape(-1, *variable.shape[1:])
            if scale is None:
                yield piece
            else:
                yield (piece / (scale[start:stop] if len(scale) > 1 else scale)).astype(np.float16)

    def _found(self, name: str) -> tuple[Variable, int, int]:
        """The variable that a weight is in, and which of how many there."""
        which, count = 0, 1
        if match := _IN_LAYER.fullmatch(name):
            part, which, count = _LAYER[match[3]]
            theirs = f"{match[1]}/layer_{match[2]}/{part}/{match[4]}"
        else:
            theirs = _OUTER.get(name, name.replace(".", "/"))
        if theirs.endswith(("layer_norm/weight", "layer_norm/bias")):
            theirs = theirs.replace("/weight", "/gamma").replace("/bias", "/beta")
        return self._variable(theirs), which, count

    def _variable(self, name: str) -> Variable:
        variable = self._file.variables.get(name)
        if variable is None:
            raise CorruptFile(f"{self.path}: lacks the variable {name}", hint="get another copy of this model")
        return variable

    def _scale(self, variable: Variable) -> NDArray[np.float32]:
        """What a quantised variable was multiplied by, so that it divides rows of it: `[rows or 1, …]`."""
        found, shape = self._variable(f"{variable.name}_scale"), variable.shape
        if found.shape not in ((), shape[:1]):
            raise CorruptFile(f"{self.path}: {found.name} has the shape {found.shape}, {shape[:1]} is expected")
        values = self._floats(found).reshape(-1, *(1 for _ in shape[1:]))
        least = -np.iinfo(variable.dtype).min / _LARGEST
        if not (np.isfinite(values) & (values >= least)).all():
            raise CorruptFile(f"{self.path}: {found.name} has a scale that is no number above {least:.2g}")
        return values

    def _floats(self, variable: Variable) -> NDArray[np.float32]:
        if variable.dtype not in _STORED:
            raise CorruptFile(f"{self.path}: {variable.name} is of {variable.dtype}, no float")
        raw = self._file.read(variable, 0, variable.size_bytes)
        return as_float32(raw.view(_STORED[variable.dtype][1]))

    def _read_config(self) -> WhisperConfig:
        if self._file.spec != SPEC:
            raise UnsupportedArchitecture(
                f"{self.path}: is a {self._file.spec} of CTranslate2; {SPEC} is supported",
                hint="look for a GGUF file or safetensors of the model",
            )
        for name, wanted in _WANTED.items():
            if (value := self._number(name, wanted)) != wanted:
                raise UnsupportedArchitecture(f"{self.path}: {name} is {value}; {wanted} is supported")
        words = self._variable("decoder/embeddings/weight")
        if self._file.variables.get("decoder/projection/weight", words) is not words:
            raise UnsupportedArchitecture(f"{self.path}: decoder/projection/weight is not decoder/embeddings/weight")
        d_model, num_mel_bins = self._sizes("encoder/conv1/weight", 3)[:2]
        return check_sizes(
            WhisperConfig(
                d_model=d_model,
                vocab_size=self._sizes("decoder/embeddings/weight", 2)[0],
                num_mel_bins=num_mel_bins,
                encoder_layers=self._count_layers("encoder"),
                encoder_attention_heads=self._number("encoder/num_heads"),
                encoder_ffn_dim=self._sizes("encoder/layer_0/ffn/linear_0/weight", 2)[0],
                decoder_layers=self._count_layers("decoder"),
                decoder_attention_heads=self._number("decoder/num_heads"),
                decoder_ffn_dim=self._sizes("decoder/layer_0/ffn/linear_0/weight", 2)[0],
                max_source_positions=self._sizes("encoder/position_encodings/encodings", 2)[0],
                max_target_positions=self._sizes("decoder/position_encodings/encodings", 2)[0],
            ),
            self.path,
        )

    def _sizes(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self._variable(name).shape
        if len(shape) != rank or not all(shape):
            raise CorruptFile(f"{self.path}: {name} has the shape {shape}, {rank} sizes are expected")
        return shape

    def _number(self, name: str, default: int | None = None) -> int:
        """A plain whole number; the default where there is no such variable."""
        if default is not None and name not in self._file.variables:
            return default
        variable = self._variable(name)
        if variable.shape or variable.dtype not in _INTEGERS:
            raise CorruptFile(f"{self.path}: {name} is {variable.shape} of {variable.dtype}, no whole number")
        value = int(self._file.read(variable, 0, variable.size_bytes).view(_STORED[variable.dtype][1])[0])
        if value < (1 if default is None else 0):
            raise CorruptFile(f"{self.path}: {name} is {value}")
        return value

    def _count_layers(self, side: str) -> int:
        count = 0
        while f"{side}/layer_{count}/ffn/linear_0/weight" in self._file.variables:
            count += 1
        return count
