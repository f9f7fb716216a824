"""CLIP's or SigLIP's safetensors → a folder of two ONNX graphs, without a deep-learning framework.

Both graphs are built from names and shapes, then each tensor is written in pieces, as it is stored. What cosines are
scaled by is a weight too: it goes into config.json as `logit_scale` (exponentiated) and `logit_bias`.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from vmm_server.errors import CorruptFile, ImportFailed, StoreError
from vmm_server.models.importers.clip_config import ClipConfig, read_clip_config
from vmm_server.models.importers.clip_folder import SMALL_FILES, describe_clip
from vmm_server.models.importers.clip_graph import build_text, build_vision
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.preprocessor_config import FILES as PREPROCESSOR_FILES
from vmm_server.models.importers.preprocessor_config import read_image_recipe
from vmm_server.models.importers.stored_weights import SafetensorsWeightFiles, as_float32

_MAX_SCALE_LOG = 20.0


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def check_clip(folder: Path) -> None:
    """Say from the small files alone whether `import_clip` could read the weights. Raises `ImportFailed`."""
    read_clip_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{folder}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    if read_image_recipe(folder) is None:
        raise ImportFailed(f"{folder}: has no {PREPROCESSOR_FILES[0]}", hint="fetch the whole folder")


def import_clip(source: Path, folder: Path, progress: Callable[[int, int], None] = _no_progress) -> ImportedModel:
    """Write the model in the folder `source` into the empty `folder`; the same files give the same bytes.

    `progress` gets (bytes written, bytes in all). Everything that can be wrong with configuration, names and shapes is
    found before the first weight is written. Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or
    `StoreError` when `folder` cannot be written; `folder` is then incomplete and of no use.
    """
    check_clip(source)
    config = read_clip_config(source)
    with SafetensorsWeightFiles(source) as weights:
        text, vision = build_text(weights, config), build_vision(weights, config)
        scales = _scales(weights, config)
        total = text.size_bytes + vision.size_bytes
        try:
            _write_small_files(source, folder, scales)
            text.write(folder, lambda done, _: progress(done, total))
            vision.write(folder, lambda done, _: progress(text.size_bytes + done, total))
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
            ) from error
    return describe_clip(folder)


def _scales(weights: SafetensorsWeightFiles, config: ClipConfig) -> dict[str, float]:
    """`logit_scale`, and SigLIP's `logit_bias`. Raises `CorruptFile`."""
    scale = _scalar(weights, "logit_scale")
    if scale > _MAX_SCALE_LOG:
        raise CorruptFile(f"{weights.path}: logit_scale is {scale}", hint="fetch the folder again")
    found = {"logit_scale": math.exp(scale)}
    return found if config.family == "clip" else found | {"logit_bias": _scalar(weights, "logit_bias")}


def _scalar(weights: SafetensorsWeightFiles, name: str) -> float:
    if math.prod(weights.stored(name).shape) != 1:
        raise CorruptFile(f"{weights.path}: {name} is no single number", hint="fetch the folder again")
    (piece,) = weights.pieces(name)
    value = float(as_float32(piece).reshape(-1)[0])
    if not math.isfinite(value):
        raise CorruptFile(f"{weights.path}: {name} is {value}", hint="fetch the folder again")
    return value


def _write_small_files(source: Path, folder: Path, scales: dict[str, float]) -> None:
    for name in SMALL_FILES[1:]:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    config = read_json_object(source / "config.json") | scales
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8", newline="\n")
