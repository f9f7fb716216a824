"""What was fetched → a folder in the store that can be loaded. All or nothing, and made once."""

import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from gguf.constants import LlamaFileType
from pydantic import TypeAdapter, ValidationError

from vmm_server.errors import ImportFailed, InvalidRequest
from vmm_server.models.disk import delete_folder, publish_folder, store_errors, sync_file, sync_folder
from vmm_server.models.importers.gguf_parts import all_part_paths
from vmm_server.models.importers.gguf_writer import join_gguf
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.quantization_mix import mix_name
from vmm_server.models.sources import Listing, Step
from vmm_server.models.sources.base import hash_file
from vmm_server.models.store import Store

DESCRIPTION_FILE = "vmm_import.json"
_LONE = "-file"
"""A single file's format is that of the folder it is put into, with this at its end."""
_IMPORTED: TypeAdapter[ImportedModel] = TypeAdapter(ImportedModel)


class Convert(Protocol):
    """Writes what is in `source`, a file or a folder, into the empty `folder` as a runnable model."""

    def __call__(self, source: Path, folder: Path, progress: Callable[[int, int], None], /) -> ImportedModel: ...


@dataclass(frozen=True, slots=True)
class Importer:
    """Makes what was fetched runnable."""

    detect_format: Callable[[Path], str]
    """`gguf`, `safetensors`, `onnx` or `openvino`; raises `ImportFailed` for anything else."""
    describe_folder: Callable[[Path], ImportedModel]
    converters: Mapping[str, Convert]
    """Of the formats that are not run as they are."""
    check_config: Callable[[Path], None]
    """Raises `ImportFailed` when a folder's small files alone show that its safetensors cannot be converted."""
    version: str
    """Part of an imported folder's name: a new version imports anew, what is installed stays as it is."""
    quantizers: Mapping[str, Callable[[LlamaFileType], Convert]] = field(default_factory=dict)
    """Converters of the formats whose weights can be quantised meanwhile."""
    promised: frozenset[str] = frozenset()
    """Formats of which only a file is taken whose digest its model card says."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A folder that can be loaded, and what is known of it."""

    folder: Path
    imported: ImportedModel
    digest: str
    format: str
    blobs: tuple[str, ...] = ()


class FolderBuilder:
    """Makes the runnable folder of one pull."""

    def __init__(
        self,
        store: Store,
        importer: Importer,
        uri: str,
        report: Callable[[str], None],
        transfer: Callable[[str], Step],
        cancelled: threading.Event,
        promised: str | None = None,
    ) -> None:
        """`report` is told a status; `transfer` gives what reports progress under one; `promised` is a sha256."""
        self._store = store
        self._importer = importer
        self._uri = uri
        self._report = report
        self._transfer = transfer
        self._cancelled = cancelled
        self._promised = promised

    def use_local(self, path: Path) -> Runnable:
        """A GGUF file or a folder of safetensors is imported from where it lies; a runnable folder is used there."""
        format_ = self._importer.detect_format(path)
        status = "verifying sha256 digest"
        if path.is_file():
            files = all_part_paths(path)
            self._store.ensure_free(sum(file.stat().st_size for file in files), self._uri)
            digests = self._hash(files, path.parent, status)
            return self._import(path, digests[path.name] if len(files) == 1 else _digest_of(digests), format_)
        imported = None
        if format_ not in self._importer.converters:
            imported = self._importer.describe_folder(path)
        elif format_ == "safetensors":
            self._importer.check_config(path)  # before gigabytes are read for nothing
        digests = self._hash(sorted(found for found in path.rglob("*") if found.is_file()), path, status)
        if imported is None:
            return self._import(path, _digest_of(digests), format_)
        return Runnable(path, imported, _digest_of(digests), format_)

    def _hash(self, files: Sequence[Path], folder: Path, status: str) -> dict[str, str]:
        """The digests of files by their paths in `folder`."""
        total, done, digests = sum(file.stat().st_size for file in files), 0, {}
        for file in files:
            name = file.relative_to(folder).as_posix()
            digests[name] = hash_file(file, self._transfer(status), before=done, total=total)
            done += file.stat().st_size
        return digests

    def link_folder(self, digests: dict[str, str]) -> Runnable:
        """The runnable folder of fetched files: hard links, so they take their space once."""
        digest = _digest_of(digests)

        def write(aside: Path) -> None:
            self._link(digests, aside)

        runnable = self._built(self._store.models_dir / digest[:40], write, digest)
        return replace(runnable, blobs=tuple(digests.values()))

    def import_fetched(self, listing: Listing, digests: dict[str, str]) -> Runnable:
        """Make fetched files runnable: one file or its parts, an archive, or a folder of safetensors."""
        digest = _digest_of(digests) if listing.is_folder else next(iter(digests.values()))
        if not listing.is_folder and listing.unpack is None:
            if len(digests) > 1:
                digest = self.join_parts(digests)
            blob = self._store.blob(digest)
            with self._named(blob):
                runnable = self._import(blob, digest, self._importer.detect_format(blob))
            if runnable.format == "gguf":
                return replace(runnable, blobs=(digest,))
            self._store.release_blob(digest)  # all that is needed of it is in the folder
            return runnable
        with self._scratch() as source:
            if listing.unpack is not None:
                listing.unpack(self._store.blob(digest), source, self._transfer("unpacking"))
            else:
                self._link(digests, source)
            with self._named(source):
                found = self._importer.detect_format(source)
                if listing.quantize is not None:
                    runnable = self._import_quantized(source, digest, found, listing.quantize)
                elif found in self._importer.converters:
                    runnable = self._import(source, digest, found)
                else:
                    runnable = self._keep(source, digest)
        for fetched in digests.values():
            self._store.release_blob(fetched)  # all that is needed of it is in the folder
        return runnable

    def join_parts(self, digests: Mapping[str, str]) -> str:
        """The digest of one GGUF file with all that the parts of a split model (path → digest) have.

        Raises `ImportFailed` and its kinds naming the part that is missing, or does not belong to the others.
        """
        names = {PurePosixPath(path).name: digest for path, digest in digests.items()}
        step = self._transfer("joining the parts")

        def progress(completed: int, total: int) -> None:
            step.check()
            step.progress(completed, total)

        with self._scratch() as folder, self._named(folder):
            self._link(names, folder)
            step.reserve(sum(file.stat().st_size for file in folder.iterdir()))
            joined = write_blob(self._store, _digest_of(names), lambda to: join_gguf(folder / min(names), to, progress))
        for digest in names.values():
            self._store.release_blob(digest)
        return joined

    def check_config(self, digests: Mapping[str, str]) -> None:
        """Raise `ImportFailed` when small files (path → blob) show that the weights beside them cannot be converted."""
        with self._scratch() as folder, self._named(folder):
            self._link(digests, folder)
            self._importer.check_config(folder)

    def imported_folder(self, digest: str, format_: str) -> Path:
        """Where what is converted of this source goes."""
        return self._store.models_dir / f"{digest[:40]}-{format_}-{self._importer.version}"

    def _import_quantized(self, source: Path, digest: str, format_: str, mix: LlamaFileType) -> Runnable:
        """Convert a folder whose weights are quantised meanwhile: what comes out is another model."""
        if format_ not in self._importer.quantizers:
            raise InvalidRequest("quantize: only GGUF files and safetensors can be quantized", param="quantize")
        quantized = hashlib.sha256(f"{digest} {mix_name(mix)}".encode()).hexdigest()
        return self._import(source, quantized, format_, self._importer.quantizers[format_](mix))

    def _import(self, source: Path, digest: str, format_: str, convert: Convert | None = None) -> Runnable:
        """Convert a file or folder into a folder of the store; by its format's own converter without another."""
        if (found := self._importer.detect_format(source)) != format_:
            hint = "name the folder it lies in"
            raise ImportFailed(f"{self._uri}: a {format_} file was expected, this is {found}", hint=hint)
        if format_ in self._importer.promised and digest != self._promised:
            raise ImportFailed(
                f"{self._uri}: is {format_}: such files can run code, and are read only where a model card says their "
                "sha256",
                hint="look for the model in safetensors or ONNX",
            )
        folder = self.imported_folder(digest, format_)
        transfer = self._transfer("importing")

        room_checked = False

        def progress(completed: int, total: int) -> None:
            nonlocal room_checked
            if not room_checked:
                transfer.reserve(total - completed)
                room_checked = True
            transfer.check()
            transfer.progress(completed, total)

        def write(aside: Path) -> None:
            imported = (convert or self._importer.converters[format_])(source, aside, progress)
            (aside / DESCRIPTION_FILE).write_bytes(_IMPORTED.dump_json(imported))

        def read() -> ImportedModel:
            return _IMPORTED.validate_json((folder / DESCRIPTION_FILE).read_bytes())

        self._report("importing")
        return Runnable(folder, self._build(folder, write, read), digest, format_.removesuffix(_LONE))

    def _keep(self, source: Path, digest: str) -> Runnable:
        """Move the files of a scratch folder, which can be run as they are, into a folder of the store."""

        def write(aside: Path) -> None:
            for child in source.iterdir():
                child.rename(aside / child.name)

        return self._built(self._store.models_dir / digest[:40], write, digest)

    def _built(self, folder: Path, write: Callable[[Path], None], digest: str) -> Runnable:
        """A folder of the store that can be run as it was fetched, once `write` has filled it."""

        def checked(aside: Path) -> None:
            write(aside)
            with self._named(aside):
                self._importer.describe_folder(aside)

        imported = self._build(folder, checked, lambda: self._importer.describe_folder(folder))
        return Runnable(folder, imported, digest, self._importer.detect_format(folder))

    def _link(self, digests: Mapping[str, str], folder: Path) -> None:
        """Put fetched files into `folder`, under their paths."""
        for path, digest in digests.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self._store.blob(digest), target)
            except OSError:  # a file system without links
                shutil.copyfile(self._store.blob(digest), target)

    def _build(self, folder: Path, write: Callable[[Path], None], read: Callable[[], ImportedModel]) -> ImportedModel:
        """Make `folder` with `write`, all or nothing, unless it is there; then `read` what it holds."""
        aside = folder.with_name(f"{folder.name}.partial")
        with self._store.lock(f"model-{folder.name}", self._cancelled), store_errors("write the model", folder):
            if folder.exists():
                with suppress(FileNotFoundError, ValidationError, ImportFailed):
                    found = read()
                    os.utime(folder)  # in use again
                    return found
                delete_folder(folder)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            try:
                write(aside)
                publish_folder(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return read()

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder that is deleted on exit, on the store's disk."""
        with tempfile.TemporaryDirectory(dir=self._store.models_dir, suffix=".partial") as folder:
            yield Path(folder)

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Errors about a fetched file or files of a scratch folder name the source instead."""
        try:
            yield
        except ImportFailed as error:
            raise type(error)(error.message.replace(str(path), self._uri), hint=error.hint) from error


def write_blob(store: Store, key: str, write: Callable[[Path], str]) -> str:
    """Keep a file that `write` makes and tells the digest of: durably, under that digest, which is returned.

    `key`, 64 hex digits, names it meanwhile. Raises `StoreError`, and what `write` raises; nothing is left then.
    """
    aside = store.blobs_dir / f"sha256-{key}.{secrets.token_hex(8)}.partial"
    try:
        with store_errors("write a GGUF file", store.root):
            made = write(aside)
            sync_file(aside)
            aside.replace(store.blob(made))
            sync_folder(aside.parent)
    finally:
        aside.unlink(missing_ok=True)
    return made


def _digest_of(digests: Mapping[str, str]) -> str:
    """One digest for several files: sha256 of the listing that sha256sum would print, sorted by path."""
    listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
