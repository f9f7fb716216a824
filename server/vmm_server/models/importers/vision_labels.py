"""The names of a model's classes: from its metadata, its config.json, a list beside it, or a data set's own."""

from collections.abc import Sequence
from pathlib import Path

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_file import OnnxGraph

Labels = tuple[str, ...]
MAX_LABELS = 100_000
LIST_SUFFIXES = (".txt", ".names")
_MAX_LIST_BYTES = 4 * 1024**2
_LISTS = Path(__file__).parent / "labels"
_DATA_SETS = {80: "coco.txt", 1000: "imagenet.txt"}
"""By how many classes there are: nearly all public models with that many were trained on it."""


def read_labels(folder: Path, graph: OnnxGraph, num_classes: int | None) -> Labels | None:
    """What the folder says, else those of the data set that has as many classes; `None` where nothing is known.

    Raises `CorruptFile` for names that cannot be read.
    """
    found = _of_metadata(graph) or _of_config(folder / "config.json") or _of_list(folder, num_classes)
    return found or data_set_labels(num_classes)


def data_set_labels(num_classes: int | None) -> Labels | None:
    """Names of COCO's 80 classes or ImageNet's 1000, in the usual order."""
    name = _DATA_SETS.get(num_classes or 0)
    return None if name is None else tuple(_lines((_LISTS / name).read_text("utf-8")))


def _of_metadata(graph: OnnxGraph) -> Labels | None:
    names = graph.literal("names")
    if isinstance(names, dict):
        return _numbered(names, graph.path, "names")
    if isinstance(names, list | tuple) and names:
        return tuple(str(name) for name in names[:MAX_LABELS])
    return None


def _of_config(path: Path) -> Labels | None:
    config = read_json_object(path) if path.is_file() else {}
    labels = config.get("id2label", config.get("label_names"))
    if isinstance(labels, list) and labels:
        return tuple(str(name) for name in labels[:MAX_LABELS])
    if not isinstance(labels, dict) or not labels:
        return None
    named = _numbered(labels, path, "id2label")
    is_placeholder = all(name == f"LABEL_{number}" for number, name in enumerate(named))
    return None if is_placeholder else named


def _numbered(names: dict[object, object], path: Path, key: str) -> Labels:
    """Names by number; a number that is left out is its own name."""
    try:
        numbered = {int(str(number)): str(name) for number, name in names.items()}
    except ValueError as error:
        raise CorruptFile(
            f"{path}: {key} is no object of names by number", hint="mend it, or get another copy"
        ) from error
    if not numbered:
        return ()
    if min(numbered) < 0 or max(numbered) >= MAX_LABELS:
        raise CorruptFile(f"{path}: {key} has a number that is not from 0 to {MAX_LABELS - 1}")
    return tuple(numbered.get(number, str(number)) for number in range(max(numbered) + 1))


def _of_list(folder: Path, num_classes: int | None) -> Labels | None:
    """A text file beside the graph with as many lines as there are classes, if there is just one."""
    if num_classes is None:
        return None
    fitting = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in LIST_SUFFIXES and path.is_file() and path.stat().st_size <= _MAX_LIST_BYTES:
            lines = _lines(path.read_text("utf-8", "replace"))
            if len(lines) == num_classes:
                fitting.append(tuple(lines))
    return fitting[0] if len(fitting) == 1 else None


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
