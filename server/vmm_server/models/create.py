"""Models made of other models, or of files that a client uploaded (`/api/create`).

A created model is little more than a manifest: its weights are another's, or those of uploaded files once they are
imported, and what a Modelfile puts on top lies in the manifest itself. Nothing of the weights is copied.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import PurePosixPath
from threading import Event

from vmm_server.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from vmm_server.models.blobs import parse_digest
from vmm_server.models.building import Importer
from vmm_server.models.creation import Creation, find_ggufs, has_safetensors
from vmm_server.models.importers.quantization_mix import parse_quantization
from vmm_server.models.jobs import Jobs, PullEvent, Report
from vmm_server.models.names import ModelName
from vmm_server.models.on_top import CreateRequest, check_parent
from vmm_server.models.parameters import check_parameters
from vmm_server.models.plan import make_plan
from vmm_server.models.pull import IMPORTER, Puller
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy, is_uri
from vmm_server.models.store import Store
from vmm_server.prompt.templates import read_template

__all__ = ["CreateRequest", "Creator"]

MAX_FILES = 1024
MAX_PART_BYTES = 255
"""Of a file's or folder's name, as file systems have it."""
ROLES = ("system", "user", "assistant")
"""Of messages put before a conversation."""


class Creator:
    """Creates models in a store. Belongs to one event loop."""

    def __init__(self, store: Store, registry: Registry, puller: Puller, *, importer: Importer = IMPORTER) -> None:
        self._store = store
        self._registry = registry
        self._puller = puller
        self._importer = importer
        self._jobs = Jobs()

    def create(self, request: CreateRequest) -> AsyncGenerator[PullEvent]:
        """Create, or replace what has that name in one step; events until `success`.

        Raises at once what is wrong with the request: `InvalidRequest` and its kinds, `ModelNotFound` for a parent
        that is not here and that nothing is known of; while reading, what a pull raises and `ImportFailed`.
        """
        checked = self._check(request)
        pulling = None
        if checked.from_ is not None:
            parent = self._find(checked.from_)
            manifest = self._store.manifest(parent) if parent else None
            if manifest is None:  # the name and the source of a parent that has to be fetched are looked at now as well
                pulling = self._puller.pull(checked.from_)
            else:
                check_parent(checked, manifest)
        return self._follow(checked, pulling)

    async def aclose(self) -> None:
        """Stop what is being created."""
        await self._jobs.aclose()

    async def _follow(
        self, request: CreateRequest, pulling: AsyncGenerator[PullEvent] | None
    ) -> AsyncGenerator[PullEvent]:
        if pulling is not None:
            async with aclosing(pulling):
                async for event in pulling:
                    if event.status != "success":
                        yield event
        parent = None if request.from_ is None else self._find(request.from_)
        if request.from_ is not None and parent is None:
            raise ModelNotFound(request.from_)  # removed at once

        def work(report: Report, cancelled: Event) -> None:
            Creation(request, parent, self._store, self._importer, report, cancelled).run()

        async with aclosing(self._jobs.follow(object(), f"create {request.name}", work)) as events:
            async for event in events:
                yield event

    def _find(self, reference: str) -> ModelName | None:
        """The name of an installed model. Raises `InvalidRequest` for a reference that cannot be read."""
        if is_uri(reference):
            uri = make_plan(reference, None, self._registry, RetryPolicy()).source.uri
            pulled = (model for model in self._registry.installed() if model.source == uri and model.parent is None)
            return next((ModelName.parse(model.name) for model in pulled), None)
        try:
            return ModelName.parse(self._registry.resolve(reference).name)
        except ModelNotFound:
            return None

    def _check(self, request: CreateRequest) -> CreateRequest:
        """The request with its parameters in their types. Raises `InvalidRequest` naming what is wrong."""
        ModelName.parse(request.name)
        if request.adapters:
            raise UnsupportedParameter(
                "adapters: LoRA adapters are not supported", param="adapters", hint="merge it into its model first"
            )
        if request.from_ is None and not request.files:
            raise InvalidRequest("neither 'from' or 'files' was specified", param="from")
        if request.from_ is not None and request.files:
            raise InvalidRequest("from and files exclude each other", param="files", hint="leave out one of the two")
        if request.quantize:
            parse_quantization(request.quantize)
        if request.template:
            read_template(request.template)
        for index, (role, _) in enumerate(request.messages):
            if role not in ROLES:
                where = f"messages[{index}].role"
                raise InvalidRequest(f"{where}: must be one of {', '.join(ROLES)}", param=where)
        files = _check_files(request.files)
        if not find_ggufs(files, self._store) and files and request.quantize and not has_safetensors(files):
            raise InvalidRequest("quantize: only GGUF files and safetensors can be quantized", param="quantize")
        return replace(request, parameters=check_parameters(request.parameters), files=files)


def _check_files(files: Mapping[str, str]) -> dict[str, str]:
    """The files with their digests as 64 hex digits. Raises `InvalidRequest` for paths that make no folder."""
    if len(files) > MAX_FILES:
        raise InvalidRequest(f"files: {len(files)} files, the limit is {MAX_FILES}", param="files")
    checked: dict[str, str] = {}
    for path, digest in files.items():
        parts = PurePosixPath(path).parts
        is_plain = parts and path == "/".join(parts) and ".." not in parts and not any(c in path for c in "\\:\0")
        if not is_plain or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
            raise InvalidRequest(f"files: {path[:100]!r} is no relative path", param="files")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise InvalidRequest(f"files: {path[:100]!r} lies in a folder that is a file", param="files")
        if path.endswith("adapter_model.safetensors"):
            raise UnsupportedParameter(
                f"files: {path} is a LoRA adapter, which is not supported", param="files", hint="merge it first"
            )
        checked[path] = parse_digest(digest, param=f"files.{path}")
    return checked
