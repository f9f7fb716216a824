"""Folders of models that look at pictures, used as they are: what their graphs and small files say of them.

One graph that classifies or detects is model.onnx, onnx/model.onnx or the only ONNX file there is (CLIP and SigLIP are
two: `clip_folder`). Beside it are transformers' config.json (`id2label`) and preprocessor_config.json, as exporters for
the hub write them; Ultralytics' exports say everything in the graph itself. What cannot be told is left open here: a
card's `[vision]` says it, or `check_vision` refuses the model.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vmm_adapters.card import Activation, ImageRecipe, VisionRecipe
from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers.encoder_folder import GRAPHS
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_file import OnnxGraph, Port, check_image_input, read_graph, with_external_data
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.preprocessor_config import FILES as PREPROCESSOR_FILES
from vmm_server.models.importers.preprocessor_config import MAX_SIDE, fit_image, read_image_recipe
from vmm_server.models.importers.vad import describe_vad, is_vad
from vmm_server.models.importers.vision_heads import FoundHead, find_head
from vmm_server.models.importers.vision_labels import read_labels

SEES = frozenset(("classification", "detection", "image-embedding"))
"""Capabilities of models that need a `VisionRecipe`."""
_YOLO_SIZE = 640
"""What all YOLOs are trained for whose graph takes any size and says none."""
_SOFTMAX_DETR = ("detr", "yolos", "table-transformer")
"""DETR's kin with a class for nothing."""
_LABELS = re.compile(r"(?i)([^/]*(labels|classes|names|coco|imagenet)[^/]*\.txt|[^/]+\.names)")
_EXTRA_INPUTS = {"pixel_mask", "orig_target_sizes"}
"""What DETR's kin may be told beside a picture."""


def find_vision_graph(folder: Path) -> Path | None:
    """The ONNX file of a model of one graph: model.onnx, onnx/model.onnx, or the only one in either place."""
    for name in GRAPHS:
        if (folder / name).is_file():
            return folder / name
    for place in (folder, folder / "onnx"):
        found = sorted(place.glob("*.onnx"))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def vision_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a repository (relative, with `/`), those that a classifier or detector needs, the graph last.

    Of several precisions the plain one is taken; empty when there is no such model, or several are.
    """
    if "tokenizer.json" in paths:
        return []
    graphs = [name for name in GRAPHS if name in paths][:1] or lone_graphs(paths)
    return small_files(paths) + with_external_data(graphs, paths) if len(graphs) == 1 else []


def lone_graphs(paths: Sequence[str]) -> list[str]:
    """ONNX files at the top, or without one there in `onnx`."""
    top = [path for path in paths if re.fullmatch(r"[^/]+\.onnx", path)]
    return top or [path for path in paths if re.fullmatch(r"onnx/[^/]+\.onnx", path)]


def small_files(paths: Sequence[str]) -> list[str]:
    """What may lie beside a graph and say something of it."""
    named = [name for name in ("config.json", *PREPROCESSOR_FILES) if name in paths]
    return named + [path for path in paths if _LABELS.fullmatch(path)]


def describe_vision(folder: Path) -> ImportedModel:
    """Read what a folder of a classifier or a detector holds.

    Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, each naming the file.
    """
    path = find_vision_graph(folder)
    if path is None:
        raise CorruptFile(f"{folder / GRAPHS[0]}: is missing", hint="fetch the whole folder")
    count, quantization = count_onnx_weights(path)
    graph = read_graph(path)
    image = check_image_input(graph)
    if others := {port.name for port in graph.inputs} - {image.name} - _EXTRA_INPUTS:
        hint = "export it without, as transformers or Ultralytics do"
        if "input_ids" in others:
            hint = "CLIP and SigLIP are read as two graphs, text_model.onnx and vision_model.onnx"
        raise UnsupportedArchitecture(f"{path}: takes {', '.join(sorted(others))} beside pictures", hint=hint)
    reader = _Reader(folder, graph, image)
    classifies = len(graph.outputs[0].shape) == 2 and not graph.output("pred_boxes", "boxes")
    recipe = reader.classifier() if classifies else reader.detector()
    return ImportedModel(
        family=reader.family or recipe.head or "unknown",
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=0,
        embedding_length=None,
        capabilities=("classification",) if classifies else ("detection",),
        has_chat_template=False,
        license=None,
        name=None,
        vision=recipe,
    )


def import_onnx_file(source: Path, folder: Path, progress: Callable[[int, int], None]) -> ImportedModel:
    """Put one ONNX file of a model that looks at pictures, or that finds speech, into the empty `folder`.

    `progress` gets (bytes written, bytes in all). Raises as `describe_vision` does, and `StoreError`.
    """
    graph = read_graph(source)
    if graph.has_external_data:
        raise ImportFailed(f"{source}: its weights lie in another file", hint="name the folder that both are in")
    hears = is_vad(graph)
    if not hears:
        check_image_input(graph)  # before it is copied, and under the name that it was given
    total = source.stat().st_size
    progress(0, total)
    try:
        shutil.copyfile(source, folder / GRAPHS[0])
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
        ) from error
    progress(total, total)
    return describe_vad(folder) if hears else describe_vision(folder)


def check_vision(source: str, capabilities: Sequence[str], vision: VisionRecipe | None) -> None:
    """Refuse a model that looks at pictures when neither its files nor its card say all that is needed.

    Raises `ImportFailed` naming what a card would have to say.
    """
    recipe = vision or VisionRecipe()
    missing = []
    if recipe.image is None:
        missing.append(
            "[vision.image]: height, width, and resize, scale, mean, std where they differ from the defaults"
        )
    if "detection" in capabilities and recipe.head is None:
        missing.append("[vision] head: how its outputs are read (yolov5, yolov8, yolox, detr or end2end)")
    if recipe.task == "pose" and recipe.keypoint_shape is None:
        missing.append("[vision] keypoint_shape: such as [17, 3]")
    if "image-embedding" not in capabilities and not recipe.labels:
        missing.append("[vision] labels: the names of its classes, or a labels.txt in its folder")
    if missing:
        raise ImportFailed(
            f"{source}: its files do not say how it is to be used",
            hint=f"write a model card that says {'; '.join(missing)} (see model_cards/README.md)",
        )


class _Reader:
    """What the small files say of one graph."""

    def __init__(self, folder: Path, graph: OnnxGraph, image: Port) -> None:
        self._folder = folder
        self._graph = graph
        self._image = image
        path = folder / "config.json"
        self._config = read_json_object(path) if path.is_file() else {}

    @property
    def family(self) -> str | None:
        told = self._config.get("model_type", self._config.get("architecture"))
        if isinstance(told, str) and told:
            return told
        words = self._graph.metadata.get("description", "").split()
        return words[1].lower()[:50] if len(words) > 1 and words[0] == "Ultralytics" else None

    def classifier(self) -> VisionRecipe:
        num_classes = self._graph.outputs[0].shape[1]
        labels = read_labels(self._folder, self._graph, num_classes)
        if labels and num_classes and len(labels) != num_classes:
            raise ImportFailed(
                f"{self._graph.path}: has {num_classes} classes and {len(labels)} names", hint="mend its id2label"
            )
        image = read_image_recipe(self._folder)
        if image is None and self._graph.metadata.get("task") == "classify":
            height, width = self._size()
            image = ImageRecipe(height=height, width=width, resize="shortest")
        return VisionRecipe(
            image=fit_image(image, self._image, self._graph.path), labels=labels, activation=self._activation()
        )

    def detector(self) -> VisionRecipe:
        height, width = self._size()
        names = read_labels(self._folder, self._graph, None)
        found = find_head(self._graph, height, width, len(names) if names else None)
        if found is None:
            image = fit_image(read_image_recipe(self._folder), self._image, self._graph.path)
            return VisionRecipe(image=image, labels=names)
        labels = names or read_labels(self._folder, self._graph, found.num_classes)
        recipe = VisionRecipe(
            image=self._detector_image(found, height, width),
            head=found.head,
            task=found.task,
            keypoint_shape=found.keypoint_shape,
            labels=labels,
        )
        if found.head != "detr":
            return recipe
        return recipe.model_copy(update={"activation": self._detr_activation(labels or ())})

    def _detr_activation(self, labels: Sequence[str]) -> Activation:
        """Told by whether there is a class for nothing; of Ultralytics' export, which joins boxes and classes, none."""
        logits = self._graph.output("logits")
        if logits is None:
            return "none"
        count = logits.shape[-1] if logits.shape else None
        if not labels or count is None:
            return "softmax" if self._config.get("model_type") in _SOFTMAX_DETR else "sigmoid"
        if count not in (len(labels), len(labels) + 1):
            raise ImportFailed(
                f"{self._graph.path}: has {count} classes and {len(labels)} names", hint="mend its id2label"
            )
        return "sigmoid" if count == len(labels) else "softmax"

    def _detector_image(self, found: FoundHead, height: int, width: int) -> ImageRecipe | None:
        if found.head == "detr" and not self._graph.output("logits"):
            return ImageRecipe(height=height, width=width)
        if found.head == "detr" or self._graph.output("scores"):
            return fit_image(read_image_recipe(self._folder), self._image, self._graph.path)
        if found.head == "yolox":
            return ImageRecipe(
                height=height, width=width, resize="letterbox", pad_place="top-left", channels="bgr", scale=1.0
            )
        return ImageRecipe(height=height, width=width, resize="letterbox")

    def _size(self) -> tuple[int, int]:
        """Height and width: the graph's own, else what its metadata say, else a YOLO's usual one."""
        height, width = self._image.shape[2:]
        told = self._graph.literal("imgsz")
        sides = [told, told] if isinstance(told, int) else told
        if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(_is_side(side) for side in sides):
            sides = [_YOLO_SIZE, _YOLO_SIZE]
        return height or int(str(sides[0])), width or int(str(sides[1]))

    def _activation(self) -> Activation:
        last = self._graph.operators.get(self._graph.outputs[0].name)
        if last in ("Softmax", "Sigmoid"):
            return "none"
        return "sigmoid" if self._config.get("problem_type") == "multi_label_classification" else "softmax"


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE
