"""Models on disk: what is installed, made of which files, and what may be deleted.

    <root>/blobs/sha256-<hex>         fetched files, named by their content; `….partial` while in flight
    <root>/models/<key>/              runnable folders; the key names the source's digest and the importer
    <root>/manifests/<name>.json      one a name: an `InstalledModel` and what it refers to
    <root>/releases.json              what plain names mean, where that is more than a manifest: `releases`
    <root>/locks/                     who is at work; shared by all processes that use the store

Everything is written aside and renamed, so a reader sees the old state or the new one. A pull holds a *lease* for as
long as it runs: while any lease is held nothing is collected, because a pull has files that no manifest refers to yet.
What a removed or replaced model leaves behind gets a modification time of 0 and goes at the next collection; what an
interrupted pull left behind stays a week, to be resumed.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vmm_server.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, StoreError
from vmm_server.models.blobs import is_unfinished, parse_digest, receive, unfinished_name
from vmm_server.models.disk import FreeBytes, delete_folder, format_bytes, free_bytes, store_errors, sync_folder
from vmm_server.models.locks import Locks
from vmm_server.models.manifests import FileState, InstalledModel, Manifest, Manifests, UnreadableManifest, Variant
from vmm_server.models.names import ModelName
from vmm_server.models.releases import Release, Releases

__all__ = ["InstalledModel", "Store", "Variant", "how_to_mend"]

logger = logging.getLogger(__name__)

UPLOADED = "upload:"
"""The source of a model created of files that a client sent starts with this; their names follow."""
STALE_AFTER_S = 7 * 24 * 3600.0
"""How long the leftovers of an interrupted pull are kept for a resume."""
ABANDONED_AFTER_S = 24 * 3600.0
"""The same of an upload that nothing more came of; none is ever resumed."""


def how_to_mend(model: InstalledModel, variant: str = "") -> str:
    """What to do when the files of a model, or of a variant of it, are not what they should be."""
    if variant:
        return f"vmm rm {model.name} --variant {variant}, and make or pull it again"
    name = model.parent or model.name  # whose files they are
    if model.source.startswith(UPLOADED):
        return f"create {name} again from its files"
    return f"vmm pull {model.source} --name {name}"


class Store:
    """The folder `settings.store_dir`. Safe to use from several threads and processes."""

    def __init__(self, root: Path, *, free_bytes: FreeBytes = free_bytes) -> None:
        self.root = root.absolute()
        self.blobs_dir = self.root / "blobs"
        self.models_dir = self.root / "models"
        self.releases = Releases(self.root)
        """To be read; changed by `put_release` and `clear_release`."""
        self._manifests = Manifests(self.root)
        self._locks = Locks(self.root / "locks")
        self._free_bytes = free_bytes

    def prepare(self) -> None:
        """Make the folders. Raises `StoreError`."""
        with store_errors("make the model store", self.root):
            for name in ("blobs", "models", "manifests", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Where the file with this sha256 lies, if it is there."""
        return self.blobs_dir / _blob_name(digest)

    def ensure_free(self, needed_bytes: int, what: str) -> None:
        """Raises `StoreError` when the disk has less than `needed_bytes` left for `what`."""
        available = self._free_bytes(self.root)
        if available < needed_bytes:
            raise StoreError(
                f"not enough disk space for {what}: {format_bytes(needed_bytes)} needed in {self.root}, "
                f"{format_bytes(available)} free",
                hint="free some space (vmm rm MODEL), or set VMM_MODELS_DIR to a bigger disk",
            )

    def installed(self) -> list[InstalledModel]:
        """Every model with a readable manifest, newest first."""
        models = [manifest.model for manifest in self._manifests.all(skip_unreadable=True)]
        return sorted(models, key=lambda model: model.modified_at, reverse=True)

    def manifest(self, name: ModelName) -> Manifest | None:
        """The manifest of exactly this name."""
        return self._manifests.read(name)

    def install(
        self, model: InstalledModel, *, blobs: Iterable[str] = (), revision: str | None = None
    ) -> InstalledModel:
        """Write the manifest, replacing the one of that name; what only that one referred to is released.

        `model.folder` and those of its variants must be complete. A folder outside the store is used in place and
        never deleted. Returns the model as readers will see it. Raises `StoreError`.
        """
        self.prepare()
        model = model.in_folders(Path.absolute)
        with store_errors(f"install {model.name}", self.root):
            files = self._file_states(model)
            with self._locks.moment():
                self._write(Manifest(model=model, revision=revision, blobs=tuple(blobs), files=files))
        return model

    def copy(self, source: ModelName, destination: ModelName) -> bool:
        """Install the model under a second name, on the same files; False if there is none of exactly this name.

        What has the name already is replaced in one step. Aliases stay with the source.
        """
        self.prepare()
        with store_errors(f"copy {source}", self.root):
            with self._locks.moment():
                manifest = self._manifests.read(source)
                if manifest is None:
                    return False
                if source.key == destination.key:
                    return True
                model = replace(manifest.model, name=str(destination), aliases=(), modified_at=datetime.now(UTC))
                self._write(manifest.model_copy(update={"model": model}))
            self.collect()
        return True

    def remove(self, name: ModelName) -> bool:
        """Delete the manifest of exactly this name and what only it referred to; False if there is none.

        Raises `InvalidRequest` for a model that a release sends requests to.
        """
        path = self._manifests.path(name)
        if not path.exists():
            return False
        with store_errors(f"remove {name}", self.root):
            with self._locks.moment():
                if release := self.releases.naming(name):
                    raise InvalidRequest(
                        f"{name} is released: {release}",
                        param="model",
                        hint=f"release something else first, or end it: vmm release {release.name} --clear",
                    )
                old = self._manifests.read(name)
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
                if old:
                    self._release(old)
            self.collect()
        return True

    def put_release(self, release: Release) -> None:
        """Have a plain name mean what the release says. Raises `ModelNotFound` for a model that is not installed."""
        self.prepare()
        with store_errors(f"release {release.name}", self.root), self._locks.moment():
            for model, _ in release.shares:
                if self._manifests.read(model) is None:
                    raise ModelNotFound(str(model))
            self.releases.put(release)

    def clear_release(self, name: ModelName) -> bool:
        """End the release of exactly this name; False if there is none."""
        with store_errors(f"end the release of {name}", self.root), self._locks.moment():
            return self.releases.clear(name)

    def set_variants(self, name: ModelName, change: Callable[[InstalledModel], tuple[Variant, ...]]) -> InstalledModel:
        """Give the model of exactly this name the variants that `change` makes of what it is now, in one step.

        Those that are new have complete folders; what those that are gone had is released. Raises `ModelNotFound`,
        `StoreError`, and what `change` raises.
        """
        with store_errors(f"change the variants of {name}", self.root):
            with self._locks.moment():
                manifest = self._manifests.read(name)
                if manifest is None:
                    raise ModelNotFound(str(name))
                model = replace(manifest.model, variants=change(manifest.model))
                known = {"", *(each.name for each in manifest.model.variants if each in model.variants)}
                files = [state for state in manifest.files if state.variant in known]
                files += self._variant_states(each for each in model.variants if each.name not in known)
                self._write(manifest.model_copy(update={"model": model, "files": tuple(files)}))
            self.collect()
        return model

    def keep_files(self, model: InstalledModel, variant: str = "") -> Callable[[], None]:
        """Have a model's files stay, whatever becomes of its name, until what this returns is called, in any thread.

        That holds in every process, and ends with this one.
        """
        manifest = self.manifest(ModelName.parse(model.name))
        blobs = manifest.blobs if manifest and manifest.model.folder == model.folder else ()
        folders = {model.folder, model.folders.get(variant, model.folder)}
        try:
            return self._locks.keep(
                [*(folder.name for folder in folders if self._owns(folder)), *map(_blob_name, blobs)]
            )
        except OSError as error:  # who may not write here deletes nothing here either
            logger.debug("cannot lock the files of %s: %s", model.name, error)
            return lambda: None

    def check_files(self, model: InstalledModel, variant: str = "") -> None:
        """Raises `ModelLoadFailed` when a file of the model's folder is missing or not as it was installed.

        With the name of a variant, the same of that one's folder.
        """
        manifest = self.manifest(ModelName.parse(model.name))
        for state in manifest.files if manifest else ():
            if state.variant != variant or variant not in model.folders:
                continue
            path = model.folders[variant] / state.path
            try:
                found = path.stat()
            except OSError as error:
                problem = f"{path}: {error.strerror}"
            else:
                if found.st_size == state.size_bytes and state.mtime_ns in (None, found.st_mtime_ns):
                    continue
                problem = f"{path} has changed since"
            message = f"the files of {model.name} are not as they were installed: {problem}"
            raise ModelLoadFailed(message, hint=how_to_mend(model, variant))

    def has_blob(self, digest: str) -> bool:
        """Whether a file with this sha256 is here; it then stays as long as a fresh one. Raises `InvalidRequest`."""
        path = self.blob(parse_digest(digest))
        if not path.exists():
            return False
        with store_errors("find a file", self.root), self._locks.moment():
            try:
                os.utime(path)
            except FileNotFoundError:  # collected in this moment
                return False
        return True

    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes], *, size_bytes: int | None = None) -> bool:
        """Keep a file that a client sends, so that models can be created of it; False if it was here already.

        Nothing is read then. `size_bytes` is how much will come, if that is known. What no model is created of goes
        after a week. Nothing is left when it raises: `InvalidRequest` for a digest that is none, `DigestMismatch`,
        `StoreError`, or what `chunks` raises.
        """
        digest = parse_digest(digest)
        if await asyncio.to_thread(self.has_blob, digest):
            return False
        self.prepare()
        if size_bytes is not None:
            self.ensure_free(size_bytes, f"sha256:{digest}")
        aside = self.blobs_dir / unfinished_name(digest)

        def begin() -> Callable[[], None]:
            with store_errors("keep an upload", self.root):
                return self._locks.keep([aside.name])

        def publish() -> None:
            with store_errors("keep an upload", self.root), self._locks.moment():
                aside.replace(self.blob(digest))
                sync_folder(self.blobs_dir)

        let_go = await asyncio.to_thread(begin)  # until then it is nobody's leftover, whatever the clock says
        try:
            await receive(chunks, aside, digest)
            await asyncio.to_thread(publish)
        finally:
            let_go()
        return True

    def release_blob(self, digest: str) -> None:
        """Let the next collection take a fetched file, unless a manifest refers to it."""
        with store_errors("release a file", self.root):
            os.utime(self.blob(digest), (0, 0))

    def discard_damaged(self, name: ModelName) -> None:
        """Delete the folder of an installed model that `check_files` refuses, so that it is made anew."""
        manifest = self.manifest(name)
        if manifest is None or not self._owns(manifest.model.folder):
            return
        try:
            self.check_files(manifest.model)
        except ModelLoadFailed as error:
            logger.warning("%s; making it anew", error.message)
            with store_errors(f"replace {name}", self.root):
                delete_folder(manifest.model.folder)

    @contextmanager
    def lease(
        self, key: str, *, cancelled: threading.Event, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold off collection, and other leases with this `key`, in every process; collect when it ends well."""
        self.prepare()
        with self._locks.hold(f"pull-{key}", cancelled, waiting):
            yield
        try:
            self.collect()
        except StoreError as error:  # the pull itself succeeded
            logger.warning("%s; will be tried again", error.message)

    @contextmanager
    def lock(self, name: str, cancelled: threading.Event) -> Iterator[None]:
        """Exclude everybody else who takes the lock of this name. Raises `RequestCancelled`."""
        with self._locks.hold(name, cancelled):
            yield

    def collect(self) -> None:
        """Delete what no manifest refers to and nobody will resume; nothing while a pull is at work."""
        self.prepare()
        with store_errors("clean up", self.root), self._locks.moment():
            if self._locks.any_held():
                return
            self._locks.sweep()
            try:
                manifests = list(self._manifests.all(skip_unreadable=False))
            except UnreadableManifest:
                return  # it may refer to anything
            kept = {path for manifest in manifests for path in self._references(manifest)}
            for path in (*self.blobs_dir.iterdir(), *self.models_dir.iterdir()):
                stale_after_s = ABANDONED_AFTER_S if is_unfinished(path) else STALE_AFTER_S
                if path.parent == self.models_dir and path.suffix == ".partial":
                    stale_after_s = 0.0  # who made it is gone, or would hold a lease, and nobody goes on with it
                if path in kept or time.time() - _mtime(path) < stale_after_s or self._locks.is_kept(path.name):
                    continue
                logger.info("deleting %s, which no model uses", path)
                if path.is_dir():
                    delete_folder(path)
                else:
                    path.unlink()

    def _owns(self, folder: Path) -> bool:
        return folder.is_relative_to(self.models_dir)

    def _references(self, manifest: Manifest) -> list[Path]:
        folders = manifest.model.folders.values()
        return [*filter(self._owns, folders), *map(self.blob, manifest.blobs)]

    def _file_states(self, model: InstalledModel) -> tuple[FileState, ...]:
        own = _file_states(model.folder, with_mtime=not self._owns(model.folder))
        return (*own, *self._variant_states(model.variants))

    def _variant_states(self, variants: Iterable[Variant]) -> Iterator[FileState]:
        for variant in variants:
            with_mtime = not self._owns(variant.folder)
            for state in _file_states(variant.folder, with_mtime=with_mtime):
                yield state.model_copy(update={"variant": variant.name})

    def _write(self, manifest: Manifest) -> None:
        """Write a manifest in place of the one of that name, which is released. Only inside `moment()`."""
        old = self._manifests.read(ModelName.parse(manifest.model.name))
        self._manifests.write(manifest)
        if old:
            self._release(old)

    def _release(self, old: Manifest) -> None:
        """Mark what `old` referred to; what another manifest refers to stays all the same."""
        for path in self._references(old):
            if path.exists():
                os.utime(path, (0, 0))


def _blob_name(digest: str) -> str:
    return f"sha256-{digest}"


def _mtime(path: Path) -> float:
    """When it was changed; now, for an upload that has just got its name."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _file_states(folder: Path, *, with_mtime: bool) -> Iterator[FileState]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            stat = path.stat()
            mtime_ns = stat.st_mtime_ns if with_mtime else None
            yield FileState(path=path.relative_to(folder).as_posix(), size_bytes=stat.st_size, mtime_ns=mtime_ns)
