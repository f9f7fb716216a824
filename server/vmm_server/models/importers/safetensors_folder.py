"""A folder of safetensors, whatever model it holds: config.json tells which importer's it is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gguf.constants import LlamaFileType

from vmm_server.errors import InvalidRequest, UnsupportedArchitecture
from vmm_server.models.importers.clip import check_clip, import_clip
from vmm_server.models.importers.clip_config import FAMILIES as CLIP_FAMILIES
from vmm_server.models.importers.clip_config import is_clip_family
from vmm_server.models.importers.encoder import check_encoder, import_encoder
from vmm_server.models.importers.encoder_config import FAMILIES as ENCODER_FAMILIES
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.safetensors_config import FAMILIES, read_text_config
from vmm_server.models.importers.safetensors_decoder import import_decoder
from vmm_server.models.importers.safetensors_tokenizer import check_tokenizer
from vmm_server.models.importers.whisper import check_whisper, import_whisper
from vmm_server.models.importers.whisper_config import FAMILY as WHISPER

Convert = Callable[[Path, Path, Callable[[int, int], None]], ImportedModel]


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def check_safetensors(folder: Path) -> None:
    """Say from the small files alone whether the weights could be imported. Raises `ImportFailed` and its kinds."""
    if is_whisper(folder):
        check_whisper(folder)
    elif is_clip(folder):
        check_clip(folder)
    elif is_text_model(folder):
        check_tokenizer(folder, read_text_config(folder).vocab_size)
    else:
        check_encoder(folder)


def import_safetensors(
    source: Path,
    folder: Path,
    progress: Callable[[int, int], None] = _no_progress,
    *,
    quantize: LlamaFileType | None = None,
) -> ImportedModel:
    """Write the model in the folder `source` into the empty `folder`.

    See `import_decoder`, `import_encoder`, `import_clip` and `import_whisper`. Raises `InvalidRequest` for another than
    a text model that is to be quantised.
    """
    convert: Convert = import_encoder
    if is_whisper(source):
        convert = import_whisper
    elif is_clip(source):
        convert = import_clip
    elif is_text_model(source):
        return import_decoder(source, folder, progress, quantize=quantize)
    if quantize is not None:
        raise InvalidRequest("quantize: only models that write text can be quantized", param="quantize")
    return convert(source, folder, progress)


def quantizing(mix: LlamaFileType) -> Convert:
    """`import_safetensors` that quantises."""
    return partial(import_safetensors, quantize=mix)


def is_whisper(folder: Path) -> bool:
    """Whether config.json is Whisper's. Raises `CorruptFile`."""
    return read_json_object(folder / "config.json").get("model_type") == WHISPER


def is_clip(folder: Path) -> bool:
    """Whether config.json is CLIP's or SigLIP's. Raises `CorruptFile`."""
    return is_clip_family(read_json_object(folder / "config.json").get("model_type"))


def is_text_model(folder: Path) -> bool:
    """Whether config.json is a text model's; sentence-transformers' modules.json makes an encoder of any.

    Raises `UnsupportedArchitecture` for a family that is known as neither, `CorruptFile`.
    """
    path = folder / "config.json"
    found = read_json_object(path).get("model_type")
    family = found if isinstance(found, str) else str(found)[:100]
    if (folder / "modules.json").is_file() or family in ENCODER_FAMILIES:
        return False
    if family not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{path}: the model family {family!r} is not supported in safetensors",
            hint=f"supported: {', '.join(FAMILIES)}; of encoders {', '.join(ENCODER_FAMILIES)}; "
            f"{', '.join((*CLIP_FAMILIES, WHISPER))}. "
            "Look for a GGUF file of the model",
        )
    return True
