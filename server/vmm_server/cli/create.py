"""`vmm create`: a model of a Modelfile, with the files it names sent to where the model is made."""

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from vmm_server.cli.flags import home_option, server_option
from vmm_server.cli.output import PullProgress
from vmm_server.cli.places import Place, open_place, read_pieces
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.models.create import CreateRequest
from vmm_server.models.jobs import PullEvent
from vmm_server.models.modelfile import Modelfile, read_modelfile
from vmm_server.models.sources import is_uri

_DIGEST = re.compile(r"@?(sha256[:-][0-9a-fA-F]{64})")
_LOOKS_LIKE_A_PATH = re.compile(r"[./~\\]|.*\.(gguf|safetensors|onnx)$", re.IGNORECASE)
_SKIPPED = re.compile(r"(^|/)(\.|pytorch_model[^/]*\.bin$|Modelfile$|vmm_import\.json$)|\.(pth|pt|h5|msgpack|md|py)$")
"""Of a folder: what is hidden, weights that are never read, and texts about the model."""


@click.command()
@click.argument("name")
@click.option("-f", "--file", "path", metavar="PATH", default="Modelfile", help="The Modelfile. [Modelfile]")
@click.option("-q", "--quantize", metavar="TYPE", help="Quantise the weights: q4_K_M, q8_0, …")
@server_option
@home_option
def create(name: str, path: str, quantize: str | None, address: str | None, home: str | None) -> None:
    """Create a model from a Modelfile.

    FROM is a model's name, a source as `vmm pull` takes it, a GGUF file, or a folder with a model; paths are relative
    to the Modelfile.
    """
    modelfile, folder = _read(Path(path))
    if modelfile.adapters:
        raise UnsupportedParameter(
            "ADAPTER: LoRA adapters are not supported", param="adapters", hint="merge it into its model first"
        )
    source, files = resolve_from(modelfile.from_, folder)
    with open_place(address, home) as place, PullProgress() as progress:
        if digest := _DIGEST.fullmatch(modelfile.from_):
            source, digests = None, {"model": digest[1]}
        else:
            digests = _send(files, place, progress)
        for event in place.create(_request(name, modelfile, source, digests, quantize)):
            progress.show(event)


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
    if path.is_file():
        return None, {path.name: path}
    names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    files = {name: file for name, file in names.items() if not _SKIPPED.search(name)}
    files = {name: file for name, file in files.items() if name.endswith(".gguf")} or files  # which has all in it
    if not files:
        raise InvalidRequest(f"FROM: there is no model in {path}", param="from", hint="name a file, or another folder")
    return None, files


def _read(path: Path) -> tuple[Modelfile, Path]:
    """The Modelfile, and the folder that its paths are relative to."""
    if str(path) == "-":
        return read_modelfile(sys.stdin.buffer.read()), Path.cwd()
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "name it with -f PATH, or go to the folder it lies in"
        raise InvalidRequest(f"{path}: {error.strerror}", param="file", hint=hint) from error
    return read_modelfile(content), path.absolute().parent


def _send(files: Mapping[str, Path], place: Place, progress: PullProgress) -> dict[str, str]:
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


def _request(
    name: str, modelfile: Modelfile, source: str | None, files: Mapping[str, str], quantize: str | None
) -> CreateRequest:
    return CreateRequest(
        name,
        from_=source,
        files=files,
        template=modelfile.template,
        licenses=modelfile.licenses,
        system=modelfile.system,
        parameters=modelfile.parameters,
        messages=modelfile.messages,
        quantize=quantize,
    )
