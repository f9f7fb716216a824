"""`vmm create`: a model of a Modelfile, with the files it names sent to where the model is made."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from vmm_server.cli.flags import home_option, server_option
from vmm_server.cli.output import PullProgress
from vmm_server.cli.places import open_place
from vmm_server.cli.uploads import local_files, resolve_from, send_files
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.models.create import CreateRequest
from vmm_server.models.modelfile import Modelfile, read_modelfile
from vmm_server.models.sources import is_local

_DIGEST = re.compile(r"@?(sha256[:-][0-9a-fA-F]{64})")


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
        if source is not None and is_local(source) and not place.reads_files:
            files, source = local_files(source)[1], None
        if digest := _DIGEST.fullmatch(modelfile.from_):
            source, digests = None, {"model": digest[1]}
        else:
            digests = send_files(files, place, progress)
        for event in place.create(_request(name, modelfile, source, digests, quantize)):
            progress.show(event)


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
