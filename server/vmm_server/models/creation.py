"""A checked request → an installed model, in one step. Blocking; runs in a thread.

All of it happens under a lease: nothing that is referred to here can be collected meanwhile, and of two that create
one name the second waits. Only the manifest, written last, makes the model exist.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import ImportFailed, InvalidRequest, ModelNotFound
from vmm_server.models.building import FolderBuilder, Importer, Runnable
from vmm_server.models.disk import store_errors, sync_file, sync_folder
from vmm_server.models.importers.gguf_quantize import parse_quantization, quantize_gguf
from vmm_server.models.importers.gguf_reader import MAGIC, GGUFFile
from vmm_server.models.installer import describe_model
from vmm_server.models.jobs import Report
from vmm_server.models.manifests import Manifest
from vmm_server.models.names import ModelName
from vmm_server.models.parameters import to_sampling
from vmm_server.models.sources import Listing, Step
from vmm_server.models.store import UPLOADED, InstalledModel, Store
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.go_template import GoTemplate
from vmm_server.prompt.templates import read_template

FLOAT_FILES = ("F16", "BF16", "F32")
"""`InstalledModel.quantization` of GGUF files that can be quantised."""
_SAFETENSORS_HINT = (
    "safetensors are converted for encoders only; take a text model as a GGUF file (convert_hf_to_gguf.py of llama.cpp "
    "makes one) or as an onnxruntime-genai folder"
)


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What is to be made. A field left empty keeps what the parent has."""

    name: str
    from_: str | None = None
    """An installed model, or what `Puller.pull` takes."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Uploaded files: path → `sha256:<hex>`."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    licenses: tuple[str, ...] = ()
    """Texts."""
    system: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    """By Ollama's names; each replaces the parent's of that name."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content)"""
    quantize: str | None = None


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
            runnable = self._import_gguf(blobs[0], str(parent))
            made = describe_model(parent, runnable, source=model.source, card=None)
            has_more = model.digest != model.weights
            model = replace(
                model,
                digest=made.digest,
                weights=made.weights,
                folder=made.folder,
                size_bytes=made.size_bytes,
                quantization=made.quantization,
            )
            model = replace(model, digest=_digest(model)) if has_more else model
            blobs = runnable.blobs
        else:
            self._report(f"using existing layer sha256:{model.weights}")
        return _Base(replace(model, parent=str(parent)), blobs)

    def _from_files(self) -> _Base:
        files = self._request.files
        gguf = find_gguf(files, self._store)
        if gguf:
            runnable = self._import_gguf(files[gguf], gguf)
        else:
            runnable = self._import_folder(dict(files), "the uploaded files")
        source = f"{UPLOADED}{gguf or ', '.join(sorted(files))[:200]}"
        return _Base(describe_model(self._name, runnable, source=source, card=None), runnable.blobs)

    def _import_gguf(self, digest: str, label: str) -> Runnable:
        self._report("parsing GGUF")
        if self._request.quantize:
            digest = self._quantize(digest, self._request.quantize, label)
        return self._built(label, lambda builder: builder.import_fetched(Listing(label, None), {label: digest}))

    def _import_folder(self, digests: dict[str, str], label: str) -> Runnable:
        if not any(path.endswith(".safetensors") for path in digests):
            return self._built(label, lambda builder: builder.link_folder(digests))

        def convert(builder: FolderBuilder) -> Runnable:
            if "config.json" in digests:
                try:
                    builder.check_config(digests["config.json"])
                except ImportFailed as error:
                    raise type(error)(error.message, hint=_SAFETENSORS_HINT) from error
            return builder.import_fetched(Listing(label, None, is_folder=True), digests)

        return self._built(label, convert)

    def _built(self, label: str, build: Callable[[FolderBuilder], Runnable]) -> Runnable:
        """A folder of the store that can be run; `label` is what messages call the files."""
        before = set(self._store.models_dir.iterdir())

        def report(status: str) -> None:
            self._report("converting model" if status == "importing" else status)

        builder = FolderBuilder(self._store, self._importer, label, report, self._step, self._cancelled)
        runnable = build(builder)
        kind = "using existing" if runnable.folder in before else "creating new"
        self._report(f"{kind} layer sha256:{runnable.digest}")
        return runnable

    def _step(self, status: str) -> Step:
        shown = "converting model" if status == "importing" else status

        def progress(completed: int, total: int | None) -> None:
            self._report(shown, total=total, completed=completed)

        def reserve(needed_bytes: int) -> None:
            self._store.ensure_free(needed_bytes, self._request.name)

        return Step(self._cancelled, progress, reserve)

    def _quantize(self, digest: str, wanted: str, label: str) -> str:
        """The digest of a blob that is this one, quantised."""
        kind, source = parse_quantization(wanted), self._store.blob(digest)
        if not source.exists():
            raise InvalidRequest(f"quantize: the file that {label} was made of is gone", param="quantize")
        step = self._step(f"quantizing model to {kind.name}")
        aside = self._store.blobs_dir / f"sha256-{digest}.{secrets.token_hex(8)}.partial"

        def progress(completed: int, total: int) -> None:
            step.check()
            step.progress(completed, total)

        try:
            with store_errors(f"write {label} as {kind.name}", self._store.root):
                step.reserve(source.stat().st_size)
                made = quantize_gguf(source, aside, kind, progress)
                self._report("verifying conversion")
                GGUFFile(aside).close()
                sync_file(aside)
                aside.replace(self._store.blob(made))
                sync_folder(aside.parent)
        except ImportFailed as error:
            raise type(error)(error.message.replace(str(source), label), hint=error.hint) from error
        finally:
            aside.unlink(missing_ok=True)
        return made


def find_gguf(files: Mapping[str, str], store: Store) -> str | None:
    """Which of the uploaded files (path → 64 hex digits) is the GGUF file that the model is made of, if one is.

    Its first bytes say so: clients leave out the ending. Raises `InvalidRequest` for files that are not there, and for
    files that cannot be made one model of.
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
    if len(ggufs) > 1:
        raise InvalidRequest(
            f"files: {', '.join(ggufs)[:300]} are several GGUF files; a model is made of one",
            param="files",
            hint="join the parts of a split model first: llama-gguf-split --merge FIRST-PART OUTPUT",
        )
    if ggufs and len(files) > 1:
        others = ", ".join(path for path in files if path not in ggufs)
        raise InvalidRequest(f"files: nothing goes with a GGUF file; leave out {others[:300]}", param="files")
    return ggufs[0] if ggufs else None


def check_parent(request: CreateRequest, parent: Manifest) -> None:
    """Raise `InvalidRequest` for what cannot be made of this model."""
    model, blobs = parent.model, parent.blobs
    _check_task(request, model)
    if not request.quantize:
        return
    if model.format != "gguf" or len(blobs) != 1:
        raise InvalidRequest(f"quantize: {model.name} has no GGUF file that could be quantized", param="quantize")
    if model.quantization not in FLOAT_FILES:
        raise InvalidRequest(
            f"quantize: {model.name} is {model.quantization} already; only F16, BF16 and F32 can be quantized",
            param="quantize",
        )


def _check_task(request: CreateRequest, model: InstalledModel) -> None:
    given = {"system": request.system, "template": request.template, "messages": request.messages}
    param = next((param for param, value in given.items() if value), None)
    if param and not model.generates:
        raise InvalidRequest(f"{param}: {model.title} makes no text", param=param)


def put_on_top(base: InstalledModel, request: CreateRequest, name: ModelName, *, now: datetime) -> InstalledModel:
    """The base under a new name, with what the request sets in place of the base's own. Raises `InvalidRequest`."""
    _check_task(request, base)
    parameters = {**base.parameters, **request.parameters}
    num_ctx = parameters.get("num_ctx")
    model = replace(
        base,
        name=str(name),
        aliases=(),
        modified_at=now,
        system=request.system or base.system,
        template=request.template or base.template,
        capabilities=_capabilities(base.capabilities, request.template),
        parameters=parameters,
        sampling=SamplingDefaults.model_validate(base.sampling.model_dump() | to_sampling(request.parameters)),
        num_ctx=num_ctx if isinstance(num_ctx, int) else None,
        messages=request.messages or base.messages,
        license_texts=tuple(dict.fromkeys((*base.license_texts, *request.licenses))),
    )
    is_changed = any((request.system, request.template, request.parameters, request.messages, request.licenses))
    return replace(model, digest=_digest(model)) if is_changed else model


def _capabilities(base: tuple[str, ...], source: str | None) -> tuple[str, ...]:
    """A template adds what it has places for. None takes away: tools that have no place in it are told in words."""
    if not source:
        return base
    template = read_template(source)
    format = find_format(template, ())
    shown = {"tools": format.tools_in_template, "thinking": format.reasoning is not None}
    shown["insert"] = isinstance(template, GoTemplate) and template.inserts
    return (*base, *[name for name, is_shown in shown.items() if is_shown and name not in base])


def _digest(model: InstalledModel) -> str:
    """sha256 of the weights' digest and of all that is put on top, as JSON with sorted keys."""
    on_top = {
        "weights": model.weights,
        "system": model.system,
        "template": model.template,
        "parameters": model.parameters,
        "sampling": model.sampling.model_dump(mode="json"),
        "messages": model.messages,
        "licenses": model.license_texts,
    }
    return hashlib.sha256(json.dumps(on_top, sort_keys=True).encode()).hexdigest()
