"""A checked request → an installed model, in one step. Blocking; runs in a thread.

All of it happens under a lease: nothing that is referred to here can be collected meanwhile, and of two that create
one name the second waits. Only the manifest, written last, makes the model exist.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from vmm_server.errors import ImportFailed, InvalidRequest, ModelNotFound
from vmm_server.models.building import FolderBuilder, Importer, Runnable, write_blob
from vmm_server.models.importers.gguf_parts import all_parts
from vmm_server.models.importers.gguf_quantize import quantize_gguf
from vmm_server.models.importers.gguf_reader import MAGIC, GGUFFile
from vmm_server.models.importers.quantization_mix import mix_name, parse_quantization
from vmm_server.models.installer import describe_model
from vmm_server.models.jobs import Report
from vmm_server.models.names import ModelName
from vmm_server.models.on_top import CreateRequest, check_parent, digest_of, put_on_top
from vmm_server.models.sources import Listing, Step
from vmm_server.models.store import UPLOADED, InstalledModel, Store

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class _Base:
    """The model that things are put on top of, and the fetched files it was made of."""

    model: InstalledModel
    blobs: tuple[str, ...]


class Creation:
    """One model being created. Use once."""

    def __init__(
        self,
        request: CreateRequest,
        parent: ModelName | None,
        store: Store,
        importer: Importer,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        """`request` has been checked; `parent` is installed, and without one there are files."""
        self._request = request
        self._parent = parent
        self._store = store
        self._importer = importer
        self._report = report
        self._cancelled = cancelled
        self._name = ModelName.parse(request.name)

    def run(self) -> InstalledModel:
        """Create and install. Raises `ModelNotFound`, `InvalidRequest`, `ImportFailed` and its kinds, `StoreError`."""
        key = hashlib.sha256(self._name.key.encode()).hexdigest()[:32]
        with self._store.lease(
            f"create-{key}",
            cancelled=self._cancelled,
            waiting=lambda: self._report("waiting for another creation of this model"),
        ):
            base = self._from_files() if self._parent is None else self._from_model(self._parent)
            self._report("writing manifest")
            model = put_on_top(base.model, self._request, self._name, now=datetime.now(UTC))
            model = self._store.install(model, blobs=base.blobs)
        self._report("success")
        return model

    def _from_model(self, parent: ModelName) -> _Base:
        manifest = self._store.manifest(parent)
        if manifest is None:
            raise ModelNotFound(str(parent))  # removed in this moment
        self._store.check_files(manifest.model)
        model, blobs = manifest.model, manifest.blobs
        if self._request.quantize:
            check_parent(self._request, manifest)
            runnable = self._import_gguf({str(parent): blobs[0]}, str(parent))
            made = describe_model(parent, runnable, source=model.source, card=None)
            has_more = model.digest != model.weights
            model = replace(
                model,
                digest=made.digest,
                weights=made.weights,
                folder=made.folder,
                size_bytes=made.size_bytes,
                quantization=made.quantization,
                variants=(),
            )
            model = replace(model, digest=digest_of(model)) if has_more else model
            blobs = runnable.blobs
        else:
            self._report(f"using existing layer sha256:{model.weights}")
        return _Base(replace(model, parent=str(parent)), blobs)

    def _from_files(self) -> _Base:
        files = self._request.files
        ggufs = find_ggufs(files, self._store)
        if ggufs:
            runnable = self._import_gguf({path: files[path] for path in ggufs}, ggufs[0])
        else:
            runnable = self._import_folder(dict(files), "the uploaded files")
        source = f"{UPLOADED}{next(iter(ggufs), None) or ', '.join(sorted(files))[:200]}"
        return _Base(describe_model(self._name, runnable, source=source, card=None), runnable.blobs)

    def _import_gguf(self, digests: Mapping[str, str], label: str) -> Runnable:
        """Of a GGUF file, or the parts of a split one (path → digest)."""
        self._report("parsing GGUF")
        digest = next(iter(digests.values()))
        if len(digests) > 1:
            digest = self._builder(label).join_parts(digests)
        if self._request.quantize:
            source, digest = digest, self._quantize(digest, self._request.quantize, label)
            if len(digests) > 1:
                self._store.release_blob(source)
        return self._built(label, lambda builder: builder.import_fetched(Listing(label, None), {label: digest}))

    def _import_folder(self, digests: dict[str, str], label: str) -> Runnable:
        if not has_safetensors(digests):
            return self._built(label, lambda builder: builder.link_folder(digests))

        def convert(builder: FolderBuilder) -> Runnable:
            if "config.json" in digests:
                builder.check_config({path: each for path, each in digests.items() if not path.endswith(SAFETENSORS)})
            quantize = parse_quantization(self._request.quantize) if self._request.quantize else None
            return builder.import_fetched(Listing(label, None, is_folder=True, quantize=quantize), digests)

        return self._built(label, convert)

    def _built(self, label: str, build: Callable[[FolderBuilder], Runnable]) -> Runnable:
        """A folder of the store that can be run; `label` is what messages call the files."""
        before = set(self._store.models_dir.iterdir())
        runnable = build(self._builder(label))
        kind = "using existing" if runnable.folder in before else "creating new"
        self._report(f"{kind} layer sha256:{runnable.digest}")
        return runnable

    def _builder(self, label: str) -> FolderBuilder:
        def report(status: str) -> None:
            self._report("converting model" if status == "importing" else status)

        return FolderBuilder(self._store, self._importer, label, report, self._step, self._cancelled)

    def _step(self, status: str) -> Step:
        shown = "converting model" if status == "importing" else status

        def progress(completed: int, total: int | None) -> None:
            self._report(shown, total=total, completed=completed)

        def reserve(needed_bytes: int) -> None:
            self._store.ensure_free(needed_bytes, self._request.name)

        return Step(self._cancelled, progress, reserve)

    def _quantize(self, digest: str, wanted: str, label: str) -> str:
        """The digest of a blob that is this one, quantised."""
        mix, source = parse_quantization(wanted), self._store.blob(digest)
        if not source.exists():
            raise InvalidRequest(f"quantize: the file that {label} was made of is gone", param="quantize")
        step = self._step(f"quantizing model to {mix_name(mix)}")

        def progress(completed: int, total: int) -> None:
            step.check()
            step.progress(completed, total)

        def write(aside: Path) -> str:
            made = quantize_gguf(source, aside, mix, progress)
            self._report("verifying conversion")
            GGUFFile(aside).close()
            return made

        try:
            step.reserve(source.stat().st_size)
            return write_blob(self._store, digest, write)
        except ImportFailed as error:
            raise type(error)(error.message.replace(str(source), label), hint=error.hint) from error


def has_safetensors(files: Iterable[str]) -> bool:
    """Whether there are weights to convert among these paths."""
    return any(path.endswith(SAFETENSORS) for path in files)


def find_ggufs(files: Mapping[str, str], store: Store) -> list[str]:
    """Which of the uploaded files (path → 64 hex digits) are the GGUF file, or its parts, that the model is made of.

    Their first bytes say so: clients leave out the ending. None: it is made of something else. Raises `InvalidRequest`
    for files that are not there, and for files that cannot be made one model of.
    """
    ggufs = []
    for path, digest in files.items():
        try:
            with store.blob(digest).open("rb") as file:
                start = file.read(len(MAGIC))
        except FileNotFoundError as error:
            raise InvalidRequest(
                f"files: sha256:{digest} ({path}) was not uploaded",
                param="files",
                hint=f"send it to /api/blobs/sha256:{digest} first",
            ) from error
        if start == MAGIC:
            ggufs.append(path)
    if ggufs and len(ggufs) < len(files):
        others = ", ".join(path for path in files if path not in ggufs)
        raise InvalidRequest(f"files: nothing goes with a GGUF file; leave out {others[:300]}", param="files")
    if ggufs:
        _check_parts(ggufs)
    return sorted(ggufs)


def _check_parts(paths: Sequence[str]) -> None:
    """Raise `InvalidRequest` for several GGUF files that are not, by their names, all the parts of one."""
    names = [PurePosixPath(path).name for path in paths]
    try:
        parts = all_parts(min(names), names)
    except ImportFailed as error:
        raise InvalidRequest(f"files: {error.message}", param="files", hint=error.hint) from error
    if others := sorted(set(names) - set(parts)):
        raise InvalidRequest(
            f"files: {', '.join(others)[:300]} is no part of the model that {parts[0]} is of; a model is made of one",
            param="files",
            hint="leave it out; the parts of a split model keep their names, such as model-00001-of-00003.gguf",
        )
    if len(paths) > len(parts):
        raise InvalidRequest(f"files: {parts[0]} is there more than once", param="files", hint="leave one out")
