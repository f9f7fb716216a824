"""A reference → an installed model: look up, fetch, verify, import, write the manifest. Blocking; runs in a thread.

Every step leaves something a later run can go on from: a partial file, a whole blob, a finished folder. Only the
manifest, written last, makes the model exist.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from vmm_adapters.card import ModelCard, SamplingDefaults, VisionRecipe
from vmm_server.errors import DigestMismatch, ImportFailed, InvalidRequest, ModelLoadFailed
from vmm_server.models.building import FolderBuilder, Importer, Runnable
from vmm_server.models.disk import store_errors, sync_file, sync_folder
from vmm_server.models.importers.vision_folder import SEES, check_vision
from vmm_server.models.jobs import Report
from vmm_server.models.names import ModelName, derive_name
from vmm_server.models.on_top import identified
from vmm_server.models.placing import SESSION_TASKS
from vmm_server.models.plan import Plan, VariantPlan
from vmm_server.models.sources import Listing, SourceFile, Transfer
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.variants import describe_variant, with_variant

_SAFETENSORS = re.compile(r"\.safetensors$")
_WEIGHTS = re.compile(r"\.safetensors$|^model\.bin$")
"""What makes a folder one that has to be imported; model.bin is CTranslate2's."""
_TASKS = SESSION_TASKS | {"completion", "embedding", "rerank"}
"""What a folder is for; the other capabilities go with the first."""


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
        self._builder = FolderBuilder(
            store, importer, plan.source.uri, report, self._transfer, cancelled, _promised_digest(plan)
        )

    def run(self) -> InstalledModel:
        """Pull and install; quick when that is done already.

        Raises `SourceError` and its kinds, `ImportFailed` and its kinds, `StoreError`, `RequestCancelled`.
        """
        plan, report = self._plan, self._report
        report("pulling manifest")
        promised = _promised_digest(plan)
        model = self._installed(plan.name, promised)
        if model is None:
            key = hashlib.sha256(plan.source.uri.encode()).hexdigest()[:32]
            with self._store.lease(
                key, cancelled=self._cancelled, waiting=lambda: report("waiting for another pull of this model")
            ):
                # another process may have pulled it while this one waited
                model = self._installed(plan.name, promised) or self._install(promised)
        if plan.variant is not None:
            model = self._with_variant(model, plan.variant)
        report("success")
        return model

    def _with_variant(self, model: InstalledModel, wanted: VariantPlan) -> InstalledModel:
        """The model with a precision that its card lists, fetched unless it is there."""
        name, uri = ModelName.parse(model.name), wanted.plan.source.uri
        if any(each.name == wanted.name and each.source == uri for each in model.variants):
            with suppress(ModelLoadFailed):
                self._store.check_files(model, wanted.name)
                return model
        fetcher = Installer(wanted.plan, self._store, self._importer, self._client, self._report, self._cancelled)
        key = hashlib.sha256(uri.encode()).hexdigest()[:32]
        with self._store.lease(key, cancelled=self._cancelled):
            self._report(f"pulling variant {wanted.name}")
            listing = wanted.plan.source.look_up(self._transfer("pulling manifest"))
            runnable = fetcher._runnable(listing)
            variant = describe_variant(model, runnable, wanted.name, wanted.quantization, uri)
            installed = self._store.set_variants(name, lambda now: with_variant(now, model, variant))
            for digest in runnable.blobs:
                self._store.release_blob(digest)  # all that is needed of it is in the folder
        return installed

    def _runnable(self, listing: Listing) -> Runnable:
        return self._builder.use_local(listing.local) if listing.local else self._fetch(listing)

    def _install(self, promised: str | None) -> InstalledModel:
        listing = self._plan.source.look_up(self._transfer("pulling manifest"))
        name = self._plan.name or self._free_name(listing)
        revision = promised or listing.revision
        if model := self._installed(name, revision):
            return model
        self._store.discard_damaged(name)
        runnable = self._runnable(listing)
        self._report("writing manifest")
        model = self._describe(name, runnable)
        old = self._store.manifest(name)
        if old is not None and old.model.weights == model.weights:
            model = replace(model, variants=old.model.variants)
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
        if manifest and (manifest.model.source != self._plan.source.uri or manifest.model.parent):
            message = f"{name} is already installed, from {manifest.model.source}"
            raise InvalidRequest(message, param="name", hint="choose another name with --name")
        return name

    # Fetching

    def _transfer(self, status: str, *, digest: str | None = None, size_bytes: int | None = None) -> Transfer:
        def progress(completed: int, total: int | None) -> None:
            self._report(status, digest=digest, total=total or size_bytes, completed=completed)

        def reserve(needed_bytes: int) -> None:
            self._store.ensure_free(needed_bytes, self._plan.source.uri)

        return Transfer(self._cancelled, progress, reserve, self._client)

    def _fetch(self, listing: Listing) -> Runnable:
        is_one = not listing.is_folder and len(listing.files) == 1  # which a card can promise
        files = [self._promised(file) for file in listing.files] if is_one else listing.files
        self._store.ensure_free(self._needed_bytes(files, listing), self._plan.source.uri)
        listed = [file.size_bytes for file in listing.files]
        digests: dict[str, str] = {}
        for file, size_bytes in zip(files, listed, strict=True):
            is_first = _SAFETENSORS.search(file.path) and not any(map(_SAFETENSORS.search, digests))
            if is_first and "config.json" in digests:
                self._builder.check_config(_small(digests))  # before gigabytes are fetched for nothing
            digests[file.path] = self._fetch_blob(file, size_bytes, listing.revision)
        self._report("verifying sha256 digest")  # each was verified as it arrived
        if listing.is_folder and not any(map(_WEIGHTS.search, digests)):
            return self._builder.link_folder(digests)
        try:
            return self._builder.import_fetched(listing, digests)
        except ImportFailed:
            for digest in digests.values():
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
            if not listing.is_folder and not self._builder.imported_folder(file.sha256 or "unknown", "gguf").exists():
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

    def _describe(self, name: ModelName, runnable: Runnable) -> InstalledModel:
        model = describe_model(name, runnable, source=self._plan.source.uri, card=self._plan.card)
        bare = replace(model, system=None, sampling=SamplingDefaults(), license=runnable.imported.license)
        return identified(model, bare)


def _promised_digest(plan: Plan) -> str | None:
    return plan.card.source.sha256 if plan.card else None


def _small(digests: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if not _WEIGHTS.search(path)}


def describe_model(name: ModelName, runnable: Runnable, *, source: str, card: ModelCard | None) -> InstalledModel:
    """What there is to say of a folder: its card's words, else what the importer found.

    Raises `ImportFailed` when the two say different things, or too little.
    """
    imported = runnable.imported
    aliases = card.aliases if card and name.key == ModelName.parse(card.id).key else ()
    embedding = (card.embedding if card else None) or imported.embedding
    if "embedding" in imported.capabilities and embedding is None:
        raise ImportFailed(
            f"{source}: nothing says how its hidden states are pooled into a vector",
            hint="write a model card with an [embedding] table: pooling = mean, cls or lasttoken",
        )
    vision = _merged(card.vision if card else None, imported.vision)
    if SEES & {*imported.capabilities}:
        check_vision(source, imported.capabilities, vision)
    if card and _TASKS & {*card.capabilities} != _TASKS & {*imported.capabilities}:
        raise ImportFailed(
            f"{source} can do {', '.join(imported.capabilities)}; its card says {', '.join(card.capabilities)}",
            hint="mend the card's capabilities",
        )
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
        tool_format=card.tool_format if card else None,
        reasoning_format=card.reasoning_format if card else None,
        source=source,
        embedding=embedding,
        vision=vision,
    )


def _merged(said: VisionRecipe | None, found: VisionRecipe | None) -> VisionRecipe | None:
    """What a card says, and for what it leaves out what its files say."""
    if said is None or found is None:
        return said or found
    return VisionRecipe.model_validate(found.model_dump() | said.model_dump(exclude_none=True))
