"""The files that a model is made of, sent to where it is made."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from vmm_server.cli.output import PullProgress
from vmm_server.cli.places import Place, read_pieces
from vmm_server.errors import ImportFailed, InvalidRequest, SourceNotFound
from vmm_server.models.importers.gguf_parts import all_part_paths, all_parts, whole_name
from vmm_server.models.jobs import PullEvent
from vmm_server.models.names import ModelName, derive_name
from vmm_server.models.sources import is_uri
from vmm_server.models.sources.local import LocalSource

_LOOKS_LIKE_A_PATH = re.compile(r"[./~\\]|.*\.(gguf|safetensors|onnx)$", re.IGNORECASE)
_SKIPPED = re.compile(r"(^|/)(\.|pytorch_model[^/]*\.bin$|Modelfile$|vmm_import\.json$)|\.(pth|pt|h5|msgpack|md|py)$")
"""Of a folder: what is hidden, weights that are never read, and texts about the model."""


def resolve_from(text: str, folder: Path) -> tuple[str | None, dict[str, Path]]:
    """What FROM means: a name and no files, or the files of a path (relative to `folder`) by their names.

    Raises `InvalidRequest` for a path that leads nowhere, or to nothing.
    """
    try:
        path = folder / Path(text).expanduser()
        is_there = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or no such user
        is_there = False
    if not is_there:
        if _LOOKS_LIKE_A_PATH.match(text) and not is_uri(text):
            raise InvalidRequest(f"FROM: there is no {text}", param="from", hint=f"paths are relative to {folder}")
        return text, {}
    return None, files_at(path)


def local_files(uri: str) -> tuple[ModelName, dict[str, Path]]:
    """What a `file:` source is called where it has no name, and its files by their names.

    Raises `InvalidRequest`, `SourceNotFound`, `InvalidModelName`.
    """
    path = LocalSource.parse(uri).path
    if not path.exists():
        raise SourceNotFound(f"{path}: no such file or folder", hint="check the path")
    return derive_name(path.name if path.is_dir() else Path(whole_name(path.name)).stem), files_at(path)


def files_at(path: Path) -> dict[str, Path]:
    """A file, all parts of a split one, or what belongs to a model in a folder, by their names.

    Raises `InvalidRequest` if that is nothing, or if parts are missing.
    """
    try:
        return {part.name: part for part in all_part_paths(path)} if path.is_file() else _files_in(path)
    except ImportFailed as error:
        raise InvalidRequest(f"FROM: {error.message}", param="from", hint=error.hint) from error


def _files_in(path: Path) -> dict[str, Path]:
    names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    files = {name: file for name, file in names.items() if not _SKIPPED.search(name)}
    files = {name: file for name, file in files.items() if name.endswith(".gguf")} or files  # which has all in it
    for name in files:
        all_parts(name, files)
    if not files:
        raise InvalidRequest(f"FROM: there is no model in {path}", param="from", hint="name a file, or another folder")
    return files


def send_files(files: Mapping[str, Path], place: Place, progress: PullProgress) -> dict[str, str]:
    """Have the place keep the files it has not; returns their digests."""
    try:
        total, done = sum(file.stat().st_size for file in files.values()), 0
        digests: dict[str, str] = {}
        for name, file in files.items():
            hasher = hashlib.sha256()
            for piece in read_pieces(file):
                hasher.update(piece)
                done += len(piece)
                progress.show(PullEvent("gathering model components", None, total, done))
            digests[name] = f"sha256:{hasher.hexdigest()}"
        for name, digest in digests.items():
            if not place.has_blob(digest):
                _copy(files[name], digest, place, progress)
    except OSError as error:
        raise InvalidRequest(f"FROM: {error.filename}: {error.strerror}", param="from") from error
    return digests


def _copy(file: Path, digest: str, place: Place, progress: PullProgress) -> None:
    total = file.stat().st_size

    def show(num_bytes: int) -> None:
        progress.show(PullEvent(f"copying {file.name}", digest, total, num_bytes))

    place.put_blob(digest, file, show)
