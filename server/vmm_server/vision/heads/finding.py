"""From a recipe and what a detector gave for one picture → its `Head`.

Which head it is, and what its task adds to boxes and classes, was told when the model was imported
(`models/importers/vision_heads.py`) or by its card. What follows from the shapes is where its parts are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vmm_adapters.card import Activation, VisionRecipe
from vmm_adapters.errors import UnsupportedModel
from vmm_server.vision.heads.candidates import PLAIN, Extras, Head
from vmm_server.vision.heads.detr import Detr
from vmm_server.vision.heads.end_to_end import EndToEnd, SeparateEndToEnd
from vmm_server.vision.heads.yolo import YoloV5, YoloV8
from vmm_server.vision.heads.yolox import YoloX, grid, is_decoded

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Pixels from cell to cell of each grid; larger models have a fourth."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What there is to tell by."""

    outputs: Arrays
    """Of one picture, without the batch's dimension."""
    recipe: VisionRecipe
    width: int
    """Of the input."""
    height: int

    @property
    def num_labels(self) -> int | None:
        return None if self.recipe.labels is None else len(self.recipe.labels)

    def unknown(self, why: str) -> UnsupportedModel:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.outputs.items())
        return UnsupportedModel(
            f"how the detector's answer is read is not clear: {why}; it gives {shapes} a picture",
            hint="its card has to say vision.head (yolov5, yolov8, yolox, detr, end2end), vision.task (and "
            "keypoint_shape of a pose model) and the names of all classes in vision.labels; see model_cards/README.md",
        )


def find_head(outputs: Arrays, recipe: VisionRecipe, *, width: int, height: int) -> Head:
    """The head that fits `outputs` of one picture, `width` by `height` as the model takes it, and what `recipe` says.

    Raises `UnsupportedModel` when none does, or several do.
    """
    seen = _Seen(outputs, recipe, width, height)
    if outputs.keys() >= {"labels", "boxes", "scores"}:
        if seen.num_labels is None:
            raise seen.unknown("how many classes it has is not said")
        return SeparateEndToEnd(seen.num_labels)
    flat = {name: array for name, array in outputs.items() if array.ndim == 2}
    if recipe.head == "detr" and (pair := _detr_pair(flat)):
        return _detr(seen, *pair)
    if not flat:
        raise seen.unknown("no output is a list of boxes")
    return _single(seen, *next(iter(flat.items())))


def _detr_pair(flat: Arrays) -> tuple[str, str] | None:
    """Names of logits and boxes."""
    boxes = next((name for name, array in flat.items() if array.shape[1] == 4 and "box" in name.lower()), None)
    if boxes is None:
        return None
    for name, array in flat.items():
        if name != boxes and len(array) == len(flat[boxes]):
            return name, boxes
    return None


def _detr(seen: _Seen, logits: str, boxes: str) -> Detr:
    values = seen.outputs[logits][:, 4 if logits == boxes else 0 :]
    columns = values.shape[1]
    if seen.num_labels is None:
        raise seen.unknown(f"whether one of the {columns} classes stands for nothing is not said")
    activation: Activation = seen.recipe.activation or "sigmoid"
    if seen.recipe.activation is None and columns == seen.num_labels + 1:
        activation = "softmax"
    elif seen.recipe.activation is None and values.min() >= 0 and values.max() <= 1:
        activation = "none"
    if columns != seen.num_labels + (activation == "softmax"):
        raise seen.unknown(f"it has {columns} classes, and {seen.num_labels} names of classes")
    return Detr(logits, boxes, seen.num_labels, activation)


def _single(seen: _Seen, name: str, array: NDArray[Any]) -> Head:
    rows, columns = array.shape
    match seen.recipe.head:
        case "detr":
            return _detr(seen, name, name)
        case "end2end":
            return _end_to_end(seen, name, columns)
        case "yolox":
            return _yolox(seen, name, array)
        case "yolov5":
            return YoloV5(name, *_classes(seen, columns - 5))
        case "yolov8":
            grids = {len(grid(seen.width, seen.height, strides)) for strides in _STRIDES}
            is_flat = columns in grids or (rows not in grids and rows < columns)
            num_classes, extras = _classes(seen, (rows if is_flat else columns) - 4)
            return YoloV8(name, num_classes, extras, channels_first=is_flat)
    raise seen.unknown("its head is not said")


def _yolox(seen: _Seen, name: str, array: NDArray[Any]) -> YoloX:
    num_classes, extras = _classes(seen, array.shape[1] - 5)
    if extras.num:
        raise seen.unknown("a YOLOX gives boxes alone")
    for strides in _STRIDES:
        cells = grid(seen.width, seen.height, strides)
        if len(cells) == len(array):
            return YoloX(name, num_classes, None if is_decoded(array, cells) else cells)
    raise seen.unknown(f"YOLOX has one candidate a cell of {seen.width} by {seen.height} pixels")


def _end_to_end(seen: _Seen, name: str, columns: int) -> Head:
    extras = _extras(seen)
    if columns != 6 + extras.num:
        raise seen.unknown(f"a box, a score, a class and what its task adds are {6 + extras.num} numbers")
    if seen.num_labels is None:
        raise seen.unknown("how many classes it has is not said")
    return EndToEnd(name, seen.num_labels, extras)


def _classes(seen: _Seen, num: int) -> tuple[int, Extras]:
    """How many of the `num` numbers behind a box are classes, and what the others are."""
    extras = _extras(seen)
    num_classes = num - extras.num
    if num_classes < 1 or seen.num_labels not in (None, num_classes):
        names = "" if seen.num_labels is None else f", and {seen.num_labels} names of classes"
        raise seen.unknown(f"it has {num_classes} classes{names}")
    return num_classes, extras


def _extras(seen: _Seen) -> Extras:
    """What the model's task adds to a row."""
    match seen.recipe.task:
        case "segment":
            for name, array in seen.outputs.items():
                if array.ndim == 3:
                    return Extras(array.shape[0], prototypes=name)
            raise seen.unknown("no output has prototypes of masks")
        case "pose":
            num_points, point_size = seen.recipe.keypoint_shape or (0, 0)
            if num_points < 1 or point_size not in (2, 3):
                raise seen.unknown("how many keypoints it has is not said")
            return Extras(num_points * point_size, point_size=point_size)
        case "obb":
            return Extras(1, is_angle=True)
    return PLAIN
