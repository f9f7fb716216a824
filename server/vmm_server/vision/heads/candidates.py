"""What all heads share: which rows of an output are worth a look, and what is told of them in the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import InvalidRequest
from vmm_server.vision.framing import Framing
from vmm_server.vision.nms import best_first, check_numbers, probabilistic_iou, suppress
from vmm_server.vision.results import DetectionParams, Detections, crop_of

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Outputs = Mapping[str, NDArray[Any]]
"""Of one picture, by name: without the batch's dimension."""

MAX_MASK_PIXELS = 128 * 1024 * 1024
"""Of all masks of one picture together: a byte each."""


class Head(Protocol):
    """How the numbers that leave a detector are read."""

    @property
    def num_classes(self) -> int:
        """Class ids are below it."""
        ...

    def find(self, outputs: Outputs, params: DetectionParams) -> "Candidates":
        """What is worth a look; takes longer the more outputs there are. Raises `GenerationFailed` for what is no
        number."""
        ...

    def tell(self, found: "Candidates", outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """The answer; takes longer the more was found. Raises as `find` does, and `InvalidRequest` for more than can be
        told."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of an output, best first."""

    rows: Indices
    scores: Floats
    class_ids: Indices

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Extras:
    """What a row says beside a box and its classes: `num` numbers at its end."""

    num: int = 0
    prototypes: str | None = None
    """The output `[num, height, width]` of which they make a mask: its factors (YOLACT, arXiv:1904.02689)."""
    point_size: int = 0
    """Of keypoints: 3 for x, y and visibility, 2 for x and y."""
    is_angle: bool = False
    """Radians, clockwise as one sees it."""


PLAIN = Extras()
"""Boxes alone."""


def decode(head: Head, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
    """What a detector's numbers say. Raises as `Head.tell` does."""
    return head.tell(head.find(outputs, params), outputs, params, framing)


def pick(best: Floats, scores: Floats, params: DetectionParams) -> Candidates:
    """Those of `scores [n, classes]` (any memory order) that are wanted; `best [n]` is the highest of each row."""
    check_numbers(best)
    rows = np.flatnonzero(best >= params.threshold)
    of_rows, class_ids = best[rows], scores[rows].argmax(1)
    order = best_first(of_rows, class_ids, params)
    return Candidates(rows[order], of_rows[order], class_ids[order])


def edges(boxes: Floats) -> Floats:
    """`[n, 4]`: x and y of the middle, width, height → left, top, right, bottom."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def corners_of(turned: Floats) -> Floats:
    """`[n, 5]`: x and y of the middle, width, height, angle → corners `[n, 4, 2]`, clockwise from the top left one of
    the box before it was turned."""
    cos, sin = np.cos(turned[:, 4:]), np.sin(turned[:, 4:])
    along = turned[:, 2:3] / 2 * np.concatenate([cos, sin], axis=1)
    across = turned[:, 3:4] / 2 * np.concatenate([-sin, cos], axis=1)
    middle = turned[:, :2]
    return np.stack(
        [middle - along - across, middle + along - across, middle + along + across, middle - along + across], axis=1
    )


def tell(
    found: Candidates,
    boxes: Floats,
    params: DetectionParams,
    framing: Framing,
    *,
    extras: Extras = PLAIN,
    values: Floats | None = None,
    prototypes: Floats | None = None,
    suppressed: bool = True,
) -> Detections:
    """The answer. `boxes` of `found` in the input's pixels: left, top, right, bottom, or `[n, 5]` turned ones (x and
    y of the middle, width, height, angle). `values [n, extras.num]` are what `extras` speaks of. What lies outside of
    the picture is left out; `suppressed` says whether overlapping ones are too."""
    check_numbers(boxes)
    corners = corners_of(boxes) if boxes.shape[1] == 5 else None
    upright = boxes if corners is None else np.concatenate([corners.min(1), corners.max(1)], axis=1)
    in_picture = framing.boxes(upright)
    seen = np.flatnonzero((in_picture[:, 2:] > in_picture[:, :2]).all(1))
    if suppressed:
        overlap = None if corners is None else probabilistic_iou
        seen = seen[suppress(boxes[seen], found.class_ids[seen], params, overlap)]
    kept = seen[: params.max_detections]
    masks = keypoints = None
    if values is not None:
        check_numbers(values[kept])
    if values is not None and prototypes is not None:
        masks = _masks(values[kept], prototypes, in_picture[kept], framing)
    elif values is not None and extras.point_size:
        keypoints = _keypoints(values[kept], extras.point_size, framing)
    return Detections(
        boxes=in_picture[kept],
        scores=np.clip(found.scores[kept], 0, 1).astype(np.float32),
        class_ids=found.class_ids[kept],
        size=(framing.width, framing.height),
        masks=masks,
        keypoints=keypoints,
        corners=None if corners is None else framing.points(corners[kept]),
    )


def _masks(factors: Floats, prototypes: Floats, boxes: Floats, framing: Framing) -> tuple[NDArray[np.bool_], ...]:
    check_numbers(prototypes)
    crops = [crop_of(box) for box in boxes]
    num_pixels = sum((right - left) * (bottom - top) for left, top, right, bottom in crops)
    if num_pixels > MAX_MASK_PIXELS:
        raise InvalidRequest(
            f"max_detections: {len(boxes)} masks of this picture have {num_pixels} pixels together; the limit is "
            f"{MAX_MASK_PIXELS}",
            param="max_detections",
            hint="ask for fewer, raise the threshold, or send a smaller picture",
        )
    wide = prototypes.astype(np.float32, copy=False)
    return tuple(framing.mask(each, wide, box) for each, box in zip(factors, boxes, strict=True))


def _keypoints(values: Floats, point_size: int, framing: Framing) -> Floats:
    points = values.reshape(len(values), -1, point_size)
    seen = np.clip(points[..., 2:], 0, 1) if point_size == 3 else np.ones((*points.shape[:2], 1), np.float32)
    return np.concatenate([framing.points(points[..., :2]), seen], axis=2).astype(np.float32)
