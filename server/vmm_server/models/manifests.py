"""What is installed: one JSON file a model name."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vmm_adapters.card import EmbeddingRecipe, SamplingDefaults, VisionRecipe
from vmm_server.errors import InvalidModelName
from vmm_server.models.disk import write_atomically
from vmm_server.models.names import ModelName

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """Another precision of an installed model, in a folder of its own."""

    name: str
    """`int8`, `int4`, or what its card calls it."""
    folder: Path
    """As `InstalledModel.folder`."""
    size_bytes: int
    digest: str
    """64 hex digits: of what it was made of and how, or of what was fetched."""
    format: str
    """As `InstalledModel.format`."""
    quantization: str
    source: str
    """The URI it came from; `""`: it was made of the model here."""
    perplexity_ratio: float | None = None
    """Its perplexity by that of the model as installed; `None` where nobody has measured."""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One model that is ready to be loaded."""

    name: str
    """Short form with tag: `smollm2:135m`."""
    aliases: tuple[str, ...]
    """Other short forms it answers to."""
    digest: str
    """64 hex digits: `weights`, or the sha256 of those and of all that a card or a Modelfile put on top."""
    size_bytes: int
    """Of the runnable folder."""
    modified_at: datetime
    """When it was installed, with its time zone."""
    adapter: str
    """`openvino`: any that reads the form of `folder`; any other is the only one that can compute the model."""
    folder: Path
    """Absolute: a genai ONNX folder, an OpenVINO IR folder, or the ONNX folder of a one-shot model."""
    format: str
    """What was fetched: `gguf`, `onnx`, `openvino` or `safetensors`."""
    family: str
    parameter_size: str
    quantization: str
    context_length: int
    """Tokens; 0 of a model that reads none."""
    embedding_length: int | None
    capabilities: tuple[str, ...]
    license: str | None
    title: str
    system: str | None
    sampling: SamplingDefaults
    source: str
    """The URI it came from."""
    tool_format: str | None = None
    """How it writes tool calls, in its card's words (`prompt.formats`); `None`: found from its template."""
    reasoning_format: str | None = None
    """The same of its thinking."""
    embedding: EmbeddingRecipe | None = None
    """How an encoder makes a text's vector; `None` for a text model or a cross-encoder."""
    vision: VisionRecipe | None = None
    """How a model that looks at pictures takes them, and how its answers are read: its card's words over its files'."""
    weights: str = ""
    """64 hex digits: sha256 of the source file, or of the list of its files' digests; `digest` when left out.
    Models with the same share one loaded engine."""
    parent: str | None = None
    """The name or source a created model was made FROM."""
    template: str | None = None
    """Replaces the folder's chat template: Jinja, or Go's language."""
    parameters: dict[str, object] = field(default_factory=dict)
    """As a Modelfile spells them; `sampling` and `num_ctx` say the same in our words."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content), put before a conversation."""
    num_ctx: int | None = None
    """The context limit of requests that name none."""
    license_texts: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    """Other precisions that are here, by name."""

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", self.digest)

    @property
    def generates(self) -> bool:
        """Whether it makes text, and so needs KV blocks."""
        return "completion" in self.capabilities

    @property
    def folders(self) -> dict[str, Path]:
        """Of the model as installed (`""`) and of its variants, by name."""
        return {"": self.folder} | {variant.name: variant.folder for variant in self.variants}

    def in_folders(self, place: Callable[[Path], Path]) -> "InstalledModel":
        """The same with each folder where `place` has it."""
        variants = tuple(replace(each, folder=place(each.folder)) for each in self.variants)
        return replace(self, folder=place(self.folder), variants=variants)


class FileState(BaseModel):
    """How a file of the runnable folder looked when the model was installed."""

    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int
    mtime_ns: int | None = None
    """Only of folders used in place: ours may be copied to another disk."""
    variant: str = ""
    """Whose folder it lies in; `""`: the model's own."""


class Manifest(BaseModel):
    """The file's content. A folder inside the store is written relative to it, so that the store can be moved."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    model: InstalledModel
    revision: str | None = None
    """What the source called this content (a digest, a commit, an ETag); equal means nothing to fetch."""
    blobs: tuple[str, ...] = ()
    """Digests of the fetched files."""
    files: tuple[FileState, ...] = ()


class UnreadableManifest(Exception):
    """A manifest is damaged; it has been logged."""


@lru_cache(1024)
def _file(folder: Path, name: ModelName) -> Path:
    """Made once: a path works out its hash and its text when it is first asked for them."""
    return folder / f"{name.file_stem}.json"


class Manifests:
    """The folder `<root>/manifests`. Each file is parsed once for each of its states."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "manifests"
        self._known: dict[Path, tuple[tuple[int, int, int], Manifest | None]] = {}
        self._mutex = threading.Lock()

    def read(self, name: ModelName) -> Manifest | None:
        """The manifest of exactly this name; a damaged one is logged and counts as absent."""
        try:
            return self._read(self.path(name))
        except UnreadableManifest:
            return None

    def all(self, *, skip_unreadable: bool) -> Iterator[Manifest]:
        """Every manifest. Damaged ones are logged, then skipped or raised as `UnreadableManifest`."""
        for path in sorted(self.folder.glob("[!.]*.json")):
            try:
                manifest = self._read(path)
            except UnreadableManifest:
                if not skip_unreadable:
                    raise
                continue
            if manifest:
                yield manifest

    def write(self, manifest: Manifest) -> None:
        """Write it in one step, durably. Raises `OSError`."""

        def relative(folder: Path) -> Path:
            return folder.relative_to(self._root) if folder.is_relative_to(self._root) else folder

        stored = manifest.model_copy(update={"model": manifest.model.in_folders(relative)})
        path = self.path(ModelName.parse(manifest.model.name))
        write_atomically(path, stored.model_dump_json(indent=2).encode())

    def path(self, name: ModelName) -> Path:
        """Where the manifest of this name lies."""
        return _file(self.folder, name)

    def _read(self, path: Path) -> Manifest | None:
        try:
            stat = path.stat()
            state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            with self._mutex:
                known = self._known.get(path)
            if known is None or known[0] != state:
                known = (state, self._parse(path))
                with self._mutex:
                    self._known[path] = known
        except FileNotFoundError:
            return None
        if known[1] is None:
            raise UnreadableManifest(path)
        return known[1]

    def _parse(self, path: Path) -> Manifest | None:
        """The manifest, or `None` once a warning is logged. Raises `FileNotFoundError`."""
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
            name = ModelName.parse(manifest.model.name)
        except FileNotFoundError:
            raise
        except ValidationError as error:
            problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:2])
        except InvalidModelName as error:
            problem = f"model.name: {error.hint}"
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if name.file_stem == path.stem:
                model = manifest.model.in_folders(lambda folder: self._root / folder)
                return manifest.model_copy(update={"model": model})
            problem = f"it names the model {name}"
        logger.warning(
            "skipping the unreadable manifest %s (%s); delete that file and pull the model again", path, problem
        )
        return None
