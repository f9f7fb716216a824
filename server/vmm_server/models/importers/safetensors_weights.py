"""A safetensors folder of a text model as a source of weights: one file or several, under GGUF's names.

Weights are handed on as they are stored: float32, float16 and bfloat16 are kept, and both runtimes take all three with
a `Cast` beside them, exactly. A bfloat16 has float32's range, so making it a float16 could lose weights, and making it
a float32 would double the folder for nothing: both runtimes need as much memory for the one as for the other.

Two things are not in the files as GGUF has them, and are made while reading: Gemma's norms, of which transformers keeps
what is above one, and rotary factors (Llama 3's, LongRoPE's).
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_reader import TensorEntry
from vmm_server.models.importers.gguf_weights import as_floats
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.safetensors_config import TextConfig
from vmm_server.models.importers.safetensors_file import SafetensorsFile, StoredTensor

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILES = 512
"""All are open at the same time; the largest models have fewer than 200."""
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"ffn_up": "mlp.gate_up_proj"}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_NO_WEIGHTS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Old versions of transformers stored what follows from config.json."""
_FACTORS = "rope_freqs.weight"
_TYPES = {
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}


class SafetensorsWeights:
    """The open files of one model; a `WeightsSource` and a context manager.

    Raises `CorruptFile` naming the file and the tensor that is missing, empty or in two places, `ImportFailed` naming
    one that is no float.
    """

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, TensorEntry]

    def __init__(self, folder: Path, config: TextConfig) -> None:
        self.path, self.metadata, self._config = folder, config.metadata, config
        traits = config.decoder.traits
        self._names = _LAYER | (_POST_NORMS if traits.post_norms else {}) | (_FUSED if traits.fused_projections else {})
        self._gguf_names = {theirs: ours for ours, theirs in self._names.items()}
        self._stored: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        with ExitStack() as files:
            for path in weight_files(folder):
                file = files.enter_context(SafetensorsFile(path))
                for tensor in file.tensors.values():
                    if tensor.name in self._stored:
                        raise CorruptFile(f"{path}: tensor {tensor.name!r} is in another file as well")
                    self._stored[tensor.name] = (file, tensor)
            self._check_index()
            self.tensors = MappingProxyType(dict(self._entries()))
            self._check_needed()
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def file_name(self, name: str) -> str:
        """What the files call a tensor that GGUF calls `name`."""
        stem, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"blk\.(\d+)\.(.+)", stem):
            return f"model.layers.{found[1]}.{self._names.get(found[2], found[2])}.{kind}"
        return f"{_OUTER[stem]}.{kind}" if stem in _OUTER else name

    def read_rows(self, tensor: TensorEntry, start: int, stop: int) -> NDArray[np.uint8]:
        """See `WeightsSource`."""
        if tensor.name == _FACTORS and self._config.rope_factors is not None:
            return self._config.rope_factors[None].view(np.uint8)
        file, stored = self._stored[tensor.name]
        row_bytes = stored.size_bytes // (tensor.num_elements // tensor.shape[-1])
        raw = file.read(stored, start * row_bytes, (stop - start) * row_bytes).reshape(stop - start, row_bytes)
        if self._is_offset(tensor.name):
            return (as_floats(raw, _TYPES[stored.dtype]) + np.float32(1)).view(np.uint8)
        return raw

    def _check_index(self) -> None:
        """What the index promises is there; without one there is nothing to check."""
        if not (self.path / FILE).is_file():
            for name, file in _read_index(self.path).items():
                if name not in self._stored or self._stored[name][0].path.name != file:
                    raise CorruptFile(
                        f"{self.path / file}: lacks the tensor {name!r} that {INDEX} says it has",
                        hint="fetch the folder again",
                    )

    def _entries(self) -> Iterator[tuple[str, TensorEntry]]:
        for name, (file, stored) in self._stored.items():
            ours = self._gguf_name(name)
            if ours is None:
                continue
            if stored.dtype not in _TYPES:
                raise ImportFailed(
                    f"{file.path}: tensor {name!r} is stored as {stored.dtype}, which is not read",
                    hint=f"get this model in one of {', '.join(_TYPES)}",
                )
            if not stored.size_bytes or not stored.shape:
                raise CorruptFile(f"{file.path}: tensor {name!r} is empty or no matrix or vector")
            if self._is_offset(name):
                size_bytes = 4 * math.prod(stored.shape)
                yield ours, TensorEntry(name, stored.shape, GGMLQuantizationType.F32, stored.offset, size_bytes)
            else:
                yield ours, TensorEntry(name, stored.shape, _TYPES[stored.dtype], stored.offset, stored.size_bytes)
        if (factors := self._config.rope_factors) is not None:
            yield _FACTORS, TensorEntry(_FACTORS, factors.shape, GGMLQuantizationType.F32, 0, factors.nbytes)

    def _gguf_name(self, name: str) -> str | None:
        """GGUF's name; `None` for what is no weight, the name itself where GGUF has none, so that it is refused."""
        if _NO_WEIGHTS.fullmatch(name) or (name == "lm_head.weight" and self._config.is_tied):
            return None
        for ours, theirs in _OUTER.items():
            if name == f"{theirs}.weight":
                return f"{ours}.weight"
        found = _IN_LAYER.fullmatch(name)
        part = self._gguf_names.get(found[2]) if found else None
        if not found or part is None or (found[3] == "bias" and part not in self._config.biases):
            return name
        return f"blk.{found[1]}.{part}.{found[3]}"

    def _is_offset(self, name: str) -> bool:
        return self._config.family.offset_norms and name.endswith("norm.weight")

    def _check_needed(self) -> None:
        """Tensors that GGUF may leave out, but this model may not."""
        layers = range(self._config.decoder.num_layers)
        needed = [f"blk.{layer}.{part}.bias" for layer in layers for part in sorted(self._config.biases)]
        needed += [] if self._config.is_tied else ["output.weight"]
        for name in needed:
            if name not in self.tensors:
                raise CorruptFile(f"{self.path}: lacks the tensor {self.file_name(name)!r}", hint="fetch it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder of transformers. Raises `CorruptFile`, `ImportFailed`."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    names = sorted(set(_read_index(folder).values()))
    if len(names) > MAX_FILES:
        raise ImportFailed(f"{folder / INDEX}: names {len(names)} files, the limit is {MAX_FILES}")
    return [folder / name for name in names]


def _read_index(folder: Path) -> dict[str, str]:
    """Tensors' names → the files they are in, which lie beside the index."""
    path = folder / INDEX
    found = read_json_object(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CorruptFile(f"{path}: has no weight_map", hint="fetch it again")
    for name, file in found.items():
        is_plain = isinstance(file, str) and file == PurePosixPath(file).name and not re.search(r"[\\:\0]", file)
        if not is_plain or not file.endswith(".safetensors"):
            raise CorruptFile(f"{path}: {name[:200]!r} is in {str(file)[:200]!r}, no safetensors file beside it")
    return found
