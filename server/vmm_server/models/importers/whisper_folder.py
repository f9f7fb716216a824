"""Whisper's ONNX folder, as `docs/internals.md` has it: what it holds and whether all of it is there."""

from pathlib import Path

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.whisper_config import FAMILY, read_whisper_config
from vmm_server.models.importers.whisper_decoder import FILE as DECODER
from vmm_server.models.importers.whisper_encoder import FILE as ENCODER

_CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")


def is_whisper_folder(folder: Path) -> bool:
    """Whether a folder holds the two graphs, or one of them."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in (ENCODER, DECODER))


def describe_whisper(folder: Path) -> ImportedModel:
    """Read what the folder holds and check that it is all there.

    Raises `CorruptFile` naming the file that is missing, unreadable or too short, `UnsupportedArchitecture`.
    """
    config = read_whisper_config(folder)
    for name in _CONFIGS:
        if not (folder / name).is_file():
            raise CorruptFile(f"{folder / name}: is missing", hint="fetch the whole folder")
    (encoder, quantization), (decoder, _) = (count_onnx_weights(folder / name) for name in (ENCODER, DECODER))
    is_multilingual = read_json_object(folder / "generation_config.json").get("is_multilingual") is True
    count = encoder + decoder
    return ImportedModel(
        family=FAMILY,
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=config.max_target_positions,
        embedding_length=config.d_model,
        capabilities=("transcription", "translation") if is_multilingual else ("transcription",),
        has_chat_template=False,
        license=None,
        name=None,
    )
