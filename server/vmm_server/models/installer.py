"""A reference → an installed model: look up, fetch, verify, import, write the manifest. Blocking; runs in a thread.

Every step leaves something a later run can go on from: a partial file, a whole blob, a finished folder. Only the
manifest, written last, makes the model exist.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import TypeAdapter, ValidationError

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import DigestMismatch, ImportFailed, InvalidRequest, ModelLoadFailed
from vmm_server.models.disk import delete_folder, publish_folder, store_errors, sync_file, sync_folder
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.names import ModelName, derive_name
from vmm_server.models.plan import Plan
from vmm_server.models.sources import Listing, SourceFile, Transfer
from vmm_server.models.sources.base import hash_file
from vmm_server.models.store import InstalledModel, Store

_DESCRIPTION = "vmm_import.json"
_IMPORTED: TypeAdapter[ImportedModel] = TypeAdapter(ImportedModel)


@dataclass(frozen=True, slots=True)
class Importer:
    """Makes what was fetched runnable."""

    detect_format: Callable[[Path], str]
    """`gguf`, `onnx` or `openvino`; raises `ImportFailed` for anything else."""
    describe_folder: Callable[[Path], ImportedModel]
    import_gguf: Callable[[Path, Path, Callable[[int, int], None]], ImportedModel]
    version: str
    """Part of an imported folder's name: a new version imports anew, what is installed stays as it is."""


class Report(Protocol):
    """Told of every step and, for long ones, of progress."""

    def __call__(
        self, status: str, *, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Runnable:
    """A folder that can be loaded, and what is known of it."""

    folder: Path
    imported: ImportedModel
    digest: str
    format: str
    blobs: tuple[str, ...] = ()


class Installer:
    """One pull. Use once."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        importer: Importer,
        client: httpx.Client,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        self._plan = plan
        self._store = store
        self._importer = importer
        self._client = client
        self._report = report
        self._cancelled = cancelled

    def run(self) -> InstalledModel:
        """Pull and install; quick when that is done already.

        Raises `SourceError` and its kinds, `ImportFailed` and its kinds, `StoreError`, `RequestCancelled`.
        """
        plan, report = self._plan, self._report
        report("pulling manifest")
        promised = plan.card.source.sha256 if plan.card else None
        model = self._installed(plan.name, promised)
        if model is None:
            key = hashlib.sha256(plan.source.uri.encode()).hexdigest()[:32]
            with self._store.lease(
                key, cancelled=self._cancelled, waiting=lambda: report("waiting for another pull of this model")
            ):
                # another process may have pulled it while this one waited
                model = self._installed(plan.name, promised) or self._install(promised)
        report("success")
        return model

    def _install(self, promised: str | None) -> InstalledModel:
        listing = self._plan.source.look_up(self._transfer("pulling manifest"))
        name = self._plan.name or self._free_name(listing)
        revision = promised or listing.revision
        if model := self._installed(name, revision):
            return model
        self._store.discard_damaged(name)
        runnable = self._use_local(listing.local) if listing.local else self._fetch(listing)
        self._report("writing manifest")
        model = self._describe(name, runnable)
        return self._store.install(model, blobs=runnable.blobs, revision=revision)

    def _installed(self, name: ModelName | None, revision: str | None) -> InstalledModel | None:
        """The model, if exactly this content of this source is installed under that name and whole."""
        manifest = self._store.manifest(name) if name else None
        if manifest is None or revision is None or manifest.revision != revision:
            return None
        if manifest.model.source != self._plan.source.uri:
            return None
        try:
            self._store.check_files(manifest.model)
        except ModelLoadFailed:
            return None
        return manifest.model

    def _free_name(self, listing: Listing) -> ModelName:
        """A name nobody chose must not replace another model."""
        name = derive_name(listing.name)
        manifest = self._store.manifest(name)
        if manifest and manifest.model.source != self._plan.source.uri:
            message = f"{name} is already installed, from {manifest.model.source}"
            raise InvalidRequest(message, param="name", hint="choose another name with --name")
        return name

    # Fetching

    def _transfer(self, status: str, *, digest: str | None = None, size_bytes: int | None = None) -> Transfer:
        def progress(completed: int, total: int | None) -> None:
            self._report(status, digest=digest, total=total or size_bytes, completed=completed)

        def reserve(needed_bytes: int) -> None:
            self._store.ensure_free(needed_bytes, self._plan.source.uri)

        return Transfer(self._client, self._cancelled, progress, reserve)

    def _fetch(self, listing: Listing) -> _Runnable:
        files = listing.files if listing.is_folder else [self._promised(file) for file in listing.files]
        self._store.ensure_free(self._needed_bytes(files, listing), self._plan.source.uri)
        listed = [file.size_bytes for file in listing.files]
        digests = [
            self._fetch_blob(file, size_bytes, listing.revision) for file, size_bytes in zip(files, listed, strict=True)
        ]
        self._report("verifying sha256 digest")  # each was verified as it arrived
        if listing.is_folder:
            return self._link_folder({file.path: digest for file, digest in zip(files, digests, strict=True)})
        (digest,) = digests
        try:
            return replace(self._import(self._store.blob(digest), digest), blobs=(digest,))
        except ImportFailed:
            self._store.release_blob(digest)  # of no use until a later version can import it
            raise

    def _needed_bytes(self, files: Iterable[SourceFile], listing: Listing) -> int:
        """What is still to be written, as far as sizes are known: the rest of the files, and the import's result."""
        needed = 0
        for file in files:
            size_bytes = file.size_bytes or 0
            blob, partial = self._store.blob(file.sha256 or "unknown"), self._partial(file, listing.revision)
            if not blob.exists():
                needed += max(0, size_bytes - (partial.stat().st_size if partial.exists() else 0))
            if not listing.is_folder and not self._imported_folder(file.sha256 or "unknown").exists():
                needed += size_bytes  # about; the importer tells exactly, when it has read the header
        return needed

    def _promised(self, file: SourceFile) -> SourceFile:
        """The file with what the card promises of it. Raises `DigestMismatch` if the source says otherwise."""
        if not self._plan.card:
            return file
        source = self._plan.card.source
        if source.sha256 and file.sha256 not in (None, source.sha256):
            raise DigestMismatch(self._plan.source.uri, expected=source.sha256, actual=str(file.sha256))
        return replace(file, sha256=source.sha256 or file.sha256, size_bytes=source.size_bytes or file.size_bytes)

    def _fetch_blob(self, file: SourceFile, listed_bytes: int | None, revision: str | None) -> str:
        """The file's digest, once it is in the store. `listed_bytes` is what will be transferred, if that is known."""
        partial = self._partial(file, revision)
        noted = partial.with_suffix(".digest")
        status = f"pulling {file.sha256[:12]}" if file.sha256 else f"pulling {file.path}"
        digest = f"sha256:{file.sha256}" if file.sha256 else None
        transfer = self._transfer(status, digest=digest, size_bytes=listed_bytes)
        if listed_bytes:  # clients take the first total they see
            self._report(status, digest=digest, total=listed_bytes)
        with self._store.lock(f"blob-{partial.stem}", self._cancelled):
            known = file.sha256 or (noted.read_text() if revision and noted.exists() else "")
            if known and self._store.blob(known).exists():
                os.utime(self._store.blob(known))  # in use again
                size_bytes = self._store.blob(known).stat().st_size
                transfer.progress(size_bytes, size_bytes)
                return known
            actual = self._plan.source.fetch(file, partial, transfer)
            if file.sha256 not in (None, actual):
                partial.unlink()
                raise DigestMismatch(f"{self._plan.source.uri}", expected=str(file.sha256), actual=actual)
            with store_errors(f"keep {file.path}", self._store.root):
                sync_file(partial)
                partial.replace(self._store.blob(actual))
                if not file.sha256:
                    noted.write_text(actual)
                sync_folder(partial.parent)
        return actual

    def _partial(self, file: SourceFile, revision: str | None) -> Path:
        """Where the file is while it is fetched; named by what it is, so that a later pull goes on with it."""
        identity = f"{self._plan.source.uri}\n{revision}\n{file.path}"
        key = file.sha256 or hashlib.sha256(identity.encode()).hexdigest()
        return self._store.blobs_dir / f"sha256-{key}.partial"

    # Making it runnable

    def _use_local(self, path: Path) -> _Runnable:
        """A GGUF file is imported from where it lies; a folder is used there."""
        format_ = self._importer.detect_format(path)
        status = "verifying sha256 digest"
        if path.is_file():
            size_bytes = path.stat().st_size
            self._store.ensure_free(size_bytes, self._plan.source.uri)
            return self._import(path, hash_file(path, self._transfer(status), total=size_bytes))
        imported = self._importer.describe_folder(path)
        files = sorted(found for found in path.rglob("*") if found.is_file())
        total, done, digests = sum(file.stat().st_size for file in files), 0, {}
        for file in files:
            digests[file.relative_to(path).as_posix()] = hash_file(
                file, self._transfer(status), before=done, total=total
            )
            done += file.stat().st_size
        return _Runnable(path, imported, _digest_of(digests), format_)

    def _import(self, source: Path, digest: str) -> _Runnable:
        if (found := self._importer.detect_format(source)) != "gguf":
            hint = "name the folder it lies in"
            raise ImportFailed(f"{self._plan.source.uri}: a GGUF file was expected, this is {found}", hint=hint)
        folder = self._imported_folder(digest)
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
            imported = self._importer.import_gguf(source, aside, progress)
            (aside / _DESCRIPTION).write_bytes(_IMPORTED.dump_json(imported))

        def read() -> ImportedModel:
            return _IMPORTED.validate_json((folder / _DESCRIPTION).read_bytes())

        self._report("importing")
        return _Runnable(folder, self._build(folder, write, read), digest, "gguf")

    def _imported_folder(self, digest: str) -> Path:
        return self._store.models_dir / f"{digest[:40]}-gguf-{self._importer.version}"

    def _link_folder(self, digests: dict[str, str]) -> _Runnable:
        """The runnable folder of fetched files: hard links, so they take their space once."""
        digest = _digest_of(digests)
        folder = self._store.models_dir / digest[:40]

        def write(aside: Path) -> None:
            for path, file_digest in digests.items():
                try:
                    os.link(self._store.blob(file_digest), aside / path)
                except OSError:  # a file system without links
                    shutil.copyfile(self._store.blob(file_digest), aside / path)
            self._importer.describe_folder(aside)

        imported = self._build(folder, write, lambda: self._importer.describe_folder(folder))
        format_ = self._importer.detect_format(folder)
        return _Runnable(folder, imported, digest, format_, tuple(digests.values()))

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

    def _describe(self, name: ModelName, runnable: _Runnable) -> InstalledModel:
        card, imported = self._plan.card, runnable.imported
        aliases = card.aliases if card and name.key == ModelName.parse(card.id).key else ()
        context_length = min(card.context_length, imported.context_length) if card else imported.context_length
        return InstalledModel(
            name=str(name),
            aliases=tuple(str(ModelName.parse(alias)) for alias in aliases),
            digest=runnable.digest,
            size_bytes=sum(file.stat().st_size for file in runnable.folder.rglob("*") if file.is_file()),
            modified_at=datetime.now(UTC),
            adapter=imported.adapter,
            folder=runnable.folder,
            format=runnable.format,
            family=imported.family,
            parameter_size=card.parameter_size if card else imported.parameter_size,
            quantization=card.quantization if card else imported.quantization,
            context_length=context_length,
            embedding_length=imported.embedding_length,
            capabilities=card.capabilities if card else imported.capabilities,
            license=card.license if card else imported.license,
            title=card.title if card else imported.name or name.model,
            system=card.system if card else None,
            sampling=card.sampling if card else SamplingDefaults(),
            source=self._plan.source.uri,
        )


def _digest_of(digests: dict[str, str]) -> str:
    """One digest for several files: sha256 of the listing that sha256sum would print, sorted by path."""
    listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
