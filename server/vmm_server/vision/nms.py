"""Of many candidates, which are told: the strongest, and of those that overlap in one class the best.

Greedy suppression in the order of the scores, class by class. A step compares one box with all that are left of its
class, and there are no more steps in a class than boxes are asked for; candidates are bounded, so that a low threshold
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
"""Of one box with each of others."""


def strongest(scores: Floats, class_ids: Indices, params: DetectionParams) -> Indices:
    """Candidates of the wanted classes that reach the threshold, best first, equals in their order; the best
    `MAX_CANDIDATES`."""
    wanted = scores >= params.threshold
    if params.class_ids is not None:
        wanted &= np.isin(class_ids, list(params.class_ids))
    indices = np.flatnonzero(wanted)
    return indices[np.argsort(-scores[indices], kind="stable")[:MAX_CANDIDATES]]


def suppress(boxes: Floats, class_ids: Indices, params: DetectionParams, overlap: Overlap | None = None) -> Indices:
    """Which of `boxes`, best first, stay: the first `max_detections` that overlap with no better one of their class by
    more than `iou_threshold`. `overlap` is that of upright boxes `[n, 4]` (left, top, right, bottom) if not given."""
    columns = np.ascontiguousarray(boxes.T)  # what is computed with lies together
    kept: list[int] = []
    for class_id in set(class_ids.tolist()):
        kept += _kept_of_class(np.flatnonzero(class_ids == class_id), columns, params, overlap or iou)
    return np.array(sorted(kept)[: params.max_detections], np.int64)


def _kept_of_class(left: Indices, columns: Floats, params: DetectionParams, overlap: Overlap) -> list[int]:
    kept: list[int] = []
    while len(left) and len(kept) < params.max_detections:
        first, left = left[0], left[1:]
        kept.append(int(first))
        if len(left):
            left = left[overlap(columns[:, first], columns[:, left].T) <= params.iou_threshold]
    return kept


def iou(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box (left, top, right, bottom) with each of `[n, 4]`; 0 where both are empty."""
    left, top, right, bottom = others.T
    width = np.minimum(box[2], right) - np.maximum(box[0], left)
    height = np.minimum(box[3], bottom) - np.maximum(box[1], top)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    own = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    union = own + np.maximum(right - left, 0) * np.maximum(bottom - top, 0) - common
    return np.asarray(common / np.maximum(union, np.finfo(np.float32).tiny), np.float32)


def probabilistic_iou(box: Floats, others: Floats) -> Floats:
    """Overlap of one turned box (x and y of its middle, width, height, angle) with each of `[n, 5]`: ProbIoU, 1 less
    the Hellinger distance of the two boxes as Gaussians (Llerena et al. 2021, arXiv:2106.06072), by which models with
    turned boxes are trained and suppressed."""
    xx, yy, xy = _covariance(box[None].astype(np.float64)) + _covariance(others.astype(np.float64))
    x, y = (others[:, :2] - box[:2]).astype(np.float64).T
    determinant = xx * yy - xy**2
    of_each = _determinant(box[None].astype(np.float64)) * _determinant(others.astype(np.float64))
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


def _covariance(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """xx, yy, xy `[3, n]` of uniform boxes of that width, height and angle."""
    wide, high = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return np.array([wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin])


def _determinant(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    determinant: NDArray[np.float64] = (boxes[:, 2] * boxes[:, 3] / 12) ** 2
    return determinant
