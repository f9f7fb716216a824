"""What is known of an installed model beyond its manifest: what its files say, in the words of `/api/show`."""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from vmm_server.errors import ImportFailed
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.safetensors_config import read_text_config
from vmm_server.models.store import InstalledModel, Store

logger = logging.getLogger(__name__)

_LONG = 5
"""Elements of a list that is left out unless everything is asked for, as in Ollama."""
_MAX_GRAPH_BYTES = 64 * 1024**2
"""An ONNX graph whose weights lie beside it is far smaller."""
_MAX_KEPT = 64
_TOLD_ELSEWHERE = ("general.name", "tokenizer.chat_template")


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor of the file that a model was made of."""

    name: str
    type: str
    """`Q4_1`, `F16`; of an ONNX file `FLOAT`, `UINT8`."""
    shape: tuple[int, ...]
    """In the file's own order."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a model's files say."""

    template: str = ""
    """The folder's chat template."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """GGUF's keys, or a config.json's in the same words; empty for a model of another kind."""
    tensors: tuple[TensorFact, ...] = ()


class FactsReader:
    """Reads what models' files say. What is short is kept: a vocabulary takes long to read. For several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[tuple[Path, int, int], Mapping[str, object]] = {}
        self._mutex = threading.Lock()

    def read(self, model: InstalledModel, *, verbose: bool = False) -> FileFacts:
        """The facts; with long lists and the tensors if `verbose`. What cannot be read is logged and left out."""
        template = read_folder_template(model.folder)
        path = self._source_file(model)
        try:
            if path is None:
                return FileFacts(template, _config_metadata(model), _onnx_tensors(model.folder) if verbose else ())
            if not verbose:
                return FileFacts(template, self._metadata(path))
            with GGUFFile(path) as file:
                return FileFacts(template, _metadata_of(file), _gguf_tensors(file))
        except (ImportFailed, OSError, DecodeError) as error:
            logger.warning("what the file of %s says cannot be told: %s", model.name, error)
            return FileFacts(template)

    def _source_file(self, model: InstalledModel) -> Path | None:
        """The GGUF file that it was made of, if it is still there."""
        if model.format != "gguf":
            return None
        paths = [self._store.blob(model.weights)]
        if model.source.startswith("file:"):
            paths.append(Path(model.source.removeprefix("file:")))
        return next((path for path in paths if path.is_file()), None)

    def _metadata(self, path: Path) -> Mapping[str, object]:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        with self._mutex:
            if key in self._kept:
                return self._kept[key]
        with GGUFFile(path) as file:
            metadata = {name: _shortened(value) for name, value in _metadata_of(file).items()}
        with self._mutex:
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = metadata
        return metadata


def read_folder_template(folder: Path) -> str:
    """The text of a folder's own chat template, `""` without one: chat_template.jinja, else tokenizer_config.json's."""
    try:
        path = folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _config_metadata(model: InstalledModel) -> Mapping[str, object]:
    """What config.json says of a text model that came as safetensors."""
    if model.format != "safetensors" or not model.generates:
        return {}
    metadata = read_text_config(model.folder).metadata
    return {name: _shortened(value) for name, value in metadata.items()}


def _metadata_of(file: GGUFFile) -> dict[str, object]:
    counted = {"general.parameter_count": sum(tensor.num_elements for tensor in file.tensors.values())}
    return {name: value for name, value in file.metadata.items() if name not in _TOLD_ELSEWHERE} | counted


def _gguf_tensors(file: GGUFFile) -> tuple[TensorFact, ...]:
    return tuple(
        TensorFact(tensor.name, tensor.type.name, tuple(reversed(tensor.shape))) for tensor in file.tensors.values()
    )


def _shortened(value: object) -> object:
    return [] if isinstance(value, list) and len(value) > _LONG else value


def _onnx_tensors(folder: Path) -> tuple[TensorFact, ...]:
    """The weights of the graphs that lie in a folder, without reading weights that lie beside them."""
    return tuple(
        TensorFact(tensor.name, onnx.TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        for path in sorted(folder.glob("*.onnx"))
        if path.stat().st_size <= _MAX_GRAPH_BYTES
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
    )
