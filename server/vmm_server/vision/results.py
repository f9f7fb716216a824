"""What models see in pictures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DetectionParams:
    """What of a detector's output is wanted."""

    threshold: float = 0.25
    """The least score."""
    iou_threshold: float = 0.45
    """Of two boxes of one class that overlap more, the better one stays. DETR's heads need none, and ignore it."""
    max_detections: int = 300
    """Of one picture, the best."""
    class_ids: frozenset[int] | None = None
    """`None`: all."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first, in the pixels of the picture as it was sent (upright)."""

    boxes: NDArray[np.float32]
    """`[n, 4]`: left, top, right, bottom, inside the picture."""
    scores: NDArray[np.float32]
    """`[n]`, 0 to 1."""
    class_ids: NDArray[np.int64]
    """`[n]`."""
    size: tuple[int, int]
    """Width and height of the picture."""
    masks: tuple[NDArray[np.bool_], ...] | None = None
    """Of a segmenting model: each in its box, `[height, width]` of `crop_of` it."""
    keypoints: NDArray[np.float32] | None = None
    """Of a pose model: `[n, points, 3]`: x, y and how visible it is, 0 to 1."""
    corners: NDArray[np.float32] | None = None
    """Of oriented boxes: `[n, 4, 2]`, clockwise; `boxes` are then those around them."""

    def __len__(self) -> int:
        return len(self.scores)


def crop_of(box: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the whole pixels that a box touches."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)
