"""safetensors → an encoder's ONNX folder: BERT and its kin, without a deep-learning framework.

The graph is built from the tensors' names and shapes, then each tensor is written in pieces, in float32. What
sentence-transformers keeps beside the weights is copied, so that the new folder says how its vectors are made.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vmm_server.errors import ImportFailed, StoreError
from vmm_server.models.importers.encoder_config import read_encoder_config
from vmm_server.models.importers.encoder_folder import describe_encoder, is_encoder_file
from vmm_server.models.importers.encoder_graph import build_encoder
from vmm_server.models.importers.encoder_weights import FILE, EncoderWeights
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.onnx_writer import ModelWriter


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def check_encoder(folder: Path) -> None:
    """Say from the configuration alone whether `import_encoder` could read the weights. Raises `ImportFailed`."""
    read_encoder_config(folder)


def import_encoder(source: Path, folder: Path, progress: Callable[[int, int], None] = _no_progress) -> ImportedModel:
    """Write the encoder in the folder `source` into the empty `folder`; the same files give the same bytes.

    `progress` gets (bytes written, bytes in all). Everything that can be wrong with configuration, names and shapes is
    found before the first weight is written. Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or
    `StoreError` when `folder` cannot be written; `folder` is then incomplete and of no use.
    """
    config = read_encoder_config(source)
    if not (source / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{source}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    with EncoderWeights(source / FILE, config.family) as weights:
        writer = ModelWriter(f"{config.family} encoder")
        max_length = build_encoder(writer, weights, config)
        try:
            _copy_small_files(source, folder)
            _note_max_length(folder, max_length + config.first_position)
            writer.write(folder, progress)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
            ) from error
    return describe_encoder(folder)


def _copy_small_files(source: Path, folder: Path) -> None:
    for path in sorted(source.rglob("*.json")):
        relative = PurePosixPath(path.relative_to(source).as_posix())
        if is_encoder_file(str(relative)):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def _note_max_length(folder: Path, max_positions: int) -> None:
    """The table's rows are what counts, whatever config.json says of them."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"max_position_embeddings": max_positions}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8", newline="\n")
