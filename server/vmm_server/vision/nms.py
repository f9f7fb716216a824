"""Of many candidates, which are told: the strongest, and of those that overlap in one class the best.

Greedy suppression in the order of the scores, a block at a time: each of a block is compared at once with all of it and
with those that stay so far. It ends with as many as are asked for; candidates are bounded, so that a low threshold
costs milliseconds and not seconds.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import GenerationFailed
from vmm_server.vision.results import DetectionParams

MAX_CANDIDATES = 4096
"""That suppression looks at, in one picture: the best."""

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Overlap = Callable[[Floats, Floats], Floats]
"""Of boxes `[numbers, ...]` with others, as numpy broadcasts them."""

_BLOCK = 64
_TINY = np.finfo(np.float32).tiny


def strongest(scores: Floats, class_ids: Indices, params: DetectionParams) -> Indices:
    """Candidates of the wanted classes that reach the threshold, best first, equals in their order; the best
    `MAX_CANDIDATES`."""
    indices = np.flatnonzero(scores >= params.threshold)
    return indices[best_first(scores[indices], class_ids[indices], params)]


def best_first(scores: Floats, class_ids: Indices, params: DetectionParams) -> Indices:
    """The same of those that reach it."""
    order = np.argsort(-scores, kind="stable")
    if params.class_ids is not None:
        order = order[np.isin(class_ids[order], list(params.class_ids))]
    return order[:MAX_CANDIDATES]


def suppress(boxes: Floats, class_ids: Indices, params: DetectionParams, overlap: Overlap | None = None) -> Indices:
    """Which of `boxes`, best first, stay: the first `max_detections` that overlap with no better one of their class by
    more than `iou_threshold`. `overlap` is that of upright boxes `[n, 4]` (left, top, right, bottom) if not given."""
    columns = np.ascontiguousarray(boxes.T)  # what is computed with lies together
    kept: list[int] = []
    for start in range(0, len(boxes), _BLOCK):
        block = slice(start, start + _BLOCK)
        better = np.array([*kept, *range(len(boxes))[block]], np.int64)
        overlaps = (overlap or iou)(columns.take(better, 1)[..., None], columns[:, None, block])
        hides = (overlaps > params.iou_threshold) & (class_ids[better][:, None] == class_ids[block])
        num_before = len(kept)
        hidden = hides[:num_before].any(0)
        for index in range(hides.shape[1]):
            if not hidden[index]:
                kept.append(start + index)
                if len(kept) == params.max_detections:
                    return np.array(kept, np.int64)
                hidden |= hides[num_before + index]
    return np.array(kept, np.int64)


def iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of boxes `[4, ...]` (left, top, right, bottom), broadcast; 0 where both are empty."""
    common = _area(np.minimum(boxes[2:], others[2:]) - np.maximum(boxes[:2], others[:2]))
    union = _area(boxes[2:] - boxes[:2]) + _area(others[2:] - others[:2]) - common
    return np.asarray(common / np.maximum(union, _TINY), np.float32)


def _area(sides: Floats) -> Floats:
    """Of `[2, ...]`."""
    width, height = np.maximum(sides, np.float32(0))
    return np.asarray(width * height)


def probabilistic_iou(boxes: Floats, others: Floats) -> Floats:
    """Overlap of turned boxes `[5, ...]` (x and y of the middle, width, height, angle), broadcast: ProbIoU, 1 less the
    Hellinger distance of two boxes as Gaussians (Llerena et al. 2021, arXiv:2106.06072), by which models with turned
    boxes are trained and suppressed."""
    one, other = boxes.astype(np.float64), others.astype(np.float64)
    xx, yy, xy = (mine + its for mine, its in zip(_covariance(one), _covariance(other), strict=True))
    x, y = other[0] - one[0], other[1] - one[1]
    determinant = xx * yy - xy**2
    of_each = _determinant(one) * _determinant(other)
    tiny = np.finfo(np.float64).tiny
    distance = (xx * y**2 + yy * x**2 - 2 * xy * x * y) / np.maximum(determinant, tiny) / 4
    distance += np.log(np.maximum(determinant, tiny) / np.maximum(4 * np.sqrt(of_each), tiny)) / 2
    return np.asarray(1 - np.sqrt(1 - np.exp(-np.maximum(distance, 0))), np.float32)


def check_numbers(values: NDArray[np.float32]) -> None:
    """Raises `GenerationFailed` for what is no number, before anybody takes it for an answer."""
    if not np.isfinite(values).all():
        raise GenerationFailed(
            "the model's answer has NaN or infinite values",
            hint="try another picture; if none works, run it on the CPU, or pull the model again",
        )


def _covariance(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """xx, yy, xy of uniform boxes of that width, height and angle."""
    wide, high = boxes[2] ** 2 / 12, boxes[3] ** 2 / 12
    cos, sin = np.cos(boxes[4]), np.sin(boxes[4])
    return wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin


def _determinant(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    determinant: NDArray[np.float64] = (boxes[2] * boxes[3] / 12) ** 2
    return determinant
