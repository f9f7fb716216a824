"""A GGUF file of floats → one of 4 to 8 bits: the same keys and tensors, its matrices quantised."""

from pathlib import Path

from gguf.constants import LlamaFileType

from vmm_server.errors import InvalidRequest
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_weights import FLOAT_TYPES
from vmm_server.models.importers.gguf_writer import Progress, write_gguf
from vmm_server.models.importers.quantization_mix import target_types

_QUANTIZATION_VERSION = 2
"""Of the blocks' layouts (ggml.h, GGML_QNT_VERSION)."""


def quantize_gguf(source: Path, target: Path, wanted: LlamaFileType, progress: Progress) -> str:
    """Write the model in `source` to `target` with the matrices that `wanted` asks for; the sha256 of what was written.

    Raises `InvalidRequest` (param `quantize`) for a file that is quantised already, `CorruptFile` for one with weights
    that are no numbers or too large for any scale, and `OSError`.
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
        types = {name: kind for name, kind in targets.items() if kind is not None}
        keys = {"general.file_type": int(wanted), "general.quantization_version": _QUANTIZATION_VERSION}
        return write_gguf(file, target, progress, types=types, keys=keys)
