"""Which head a detector has, told from its outputs, its metadata and the grids of cells that its picture has.

A YOLO looks at a picture in cells of 8, 16 and 32 pixels (and 64). YOLOX and YOLOv8 give one row a cell, YOLOv5 three;
YOLOv8 has its rows as columns. With the picture's size known, the numbers of rows tell them apart; where only one of
two readings is right and nothing says which, none is taken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from vmm_adapters.card import Head, VisionTask
from vmm_server.errors import ImportFailed
from vmm_server.models.importers.onnx_file import OnnxGraph, Port

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_TASKS: tuple[VisionTask, ...] = get_args(VisionTask)
_MAX_ROWS = 1000
"""Of an output from which overlapping boxes are gone already; exports have 300, or 100."""
_BOX = 4
_KEYPOINT_SHAPE = (17, 3)
"""COCO's persons."""


@dataclass(frozen=True, slots=True)
class FoundHead:
    """What is known of a detector's outputs."""

    head: Head
    task: VisionTask | None = None
    keypoint_shape: tuple[int, int] | None = None
    num_classes: int | None = None


def find_head(graph: OnnxGraph, height: int, width: int, num_labels: int | None) -> FoundHead | None:
    """The head of a graph that looks at pictures of this size; `num_labels` where names are known without it.

    `None` where it cannot be told. Raises `ImportFailed` when names and outputs do not fit.
    """
    names = {port.name for port in graph.outputs}
    if {"logits", "pred_boxes"} <= names:
        return FoundHead("detr", num_classes=num_labels)
    if {"labels", "boxes", "scores"} <= names:
        return FoundHead("end2end", num_classes=num_labels)
    first = graph.outputs[0]
    if len(first.shape) != 3:
        return None
    return _Outputs(graph, first, height, width, num_labels).find()


class _Outputs:
    def __init__(self, graph: OnnxGraph, first: Port, height: int, width: int, num_labels: int | None) -> None:
        self._graph = graph
        self._rows, self._columns = first.shape[1:]
        self._operator = graph.operators.get(first.name)
        self._grids = {
            sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides) for strides in _STRIDES
        }
        self._num_labels = num_labels
        self._protos = next((port for port in graph.outputs[1:] if len(port.shape) == 4), None)
        task = graph.metadata.get("task")
        self._task = task if task in _TASKS else None

    def find(self) -> FoundHead | None:
        rows, columns = self._rows, self._columns
        if self._is_end_to_end():
            return self._with_task("end2end", columns, fixed=_BOX + 2, by_class=False)
        if columns in self._grids or (columns is None and self._told_by_columns(rows)):
            return self._with_task("yolov8", rows, fixed=_BOX)
        if self._is_rt_detr():
            return FoundHead("detr", num_classes=self._num_labels)
        if rows in {3 * grid for grid in self._grids} or (rows is None and self._is_yolov5()):
            return self._with_objectness("yolov5", columns)
        if (rows is None or rows in self._grids) and self._operator == "Transpose":
            return self._with_objectness("yolox", columns)  # its last step; others join parts that are decoded
        return None

    def _is_end_to_end(self) -> bool:
        arguments = self._graph.literal("args")
        if self._graph.literal("end2end") is True or (isinstance(arguments, Mapping) and arguments.get("nms") is True):
            return True
        rows, columns = self._rows, self._columns
        if rows is None or columns is None or rows > _MAX_ROWS or rows in self._grids or columns in self._grids:
            return False
        extra = columns - _BOX - 2
        fits = extra == 0 if self._task in (None, "detect") else extra > 0
        return fits and rows > columns and rows not in {3 * grid for grid in self._grids}

    def _told_by_columns(self, rows: int | None) -> bool:
        """Whether, of a graph for pictures of any size, rows are what there is to a box."""
        if self._task is None and (rows is None or self._num_labels is None):
            return False
        if rows is None or self._num_labels is None:
            return self._rows is None or self._columns is None
        return rows >= _BOX + self._num_labels and (self._task is not None or rows == _BOX + self._num_labels)

    def _is_rt_detr(self) -> bool:
        """Ultralytics' export of it: boxes and classes side by side."""
        is_short = self._rows is not None and self._rows <= _MAX_ROWS
        is_wide = self._num_labels is not None and self._columns == _BOX + self._num_labels
        return is_short and is_wide and self._task == "detect"

    def _is_yolov5(self) -> bool:
        """Its exports have names and strides, and no task."""
        return self._task is None and "names" in self._graph.metadata and "stride" in self._graph.metadata

    def _with_objectness(self, head: Head, channels: int | None) -> FoundHead:
        masks = self._num_masks()
        num_classes = None if channels is None else channels - _BOX - 1 - masks
        self._check(num_classes)
        return FoundHead(head, "segment" if masks else self._task, None, num_classes)

    def _with_task(self, head: Head, channels: int | None, *, fixed: int, by_class: bool = True) -> FoundHead:
        """Of the numbers of a box: `fixed` ones, a score of each class if they come `by_class`, then the task's own."""
        task: VisionTask | None = "segment" if self._protos else self._task
        extra = None
        if channels is not None and (self._num_labels is not None or not by_class):
            extra = channels - fixed - (self._num_labels or 0 if by_class else 0)
            task = task or _task_of(extra)
        points = self._keypoints(extra) if task == "pose" else None
        if task == "pose" and points is None:
            return FoundHead(head, task, None, self._num_labels)
        size = {"segment": self._num_masks(), "obb": 1}.get(task or "", math.prod(points) if points else 0)
        num_classes = self._num_labels if not by_class or channels is None else channels - fixed - size
        if not by_class and extra is not None and extra != size:
            raise self._misfit(f"{channels} numbers a box, {fixed + size} are a {task or 'detect'} model's")
        self._check(num_classes)
        return FoundHead(head, task, points, num_classes)

    def _num_masks(self) -> int:
        return (self._protos.shape[1] or 32) if self._protos else 0

    def _keypoints(self, extra: int | None) -> tuple[int, int] | None:
        told = self._graph.literal("kpt_shape")
        if isinstance(told, list | tuple) and len(told) == 2 and all(type(size) is int and size > 0 for size in told):
            return told[0], told[1]
        if extra == math.prod(_KEYPOINT_SHAPE):
            return _KEYPOINT_SHAPE
        return None

    def _check(self, num_classes: int | None) -> None:
        if num_classes is not None and num_classes < 1:
            raise self._misfit("its output has no room for classes")
        if None not in (num_classes, self._num_labels) and num_classes != self._num_labels:
            raise self._misfit(f"it has {num_classes} classes and {self._num_labels} names")

    def _misfit(self, what: str) -> ImportFailed:
        return ImportFailed(f"{self._graph.path}: {what}", hint="export it again, or mend the names beside it")


def _task_of(extra: int) -> VisionTask | None:
    """What a box's numbers beside box and classes are; those of a pose model are COCO's persons."""
    if extra == 1:
        return "obb"
    return "pose" if extra == math.prod(_KEYPOINT_SHAPE) else None
