"""Mean average precision as COCO counts it (pycocotools: greedy by score, 101 points of recall), for tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Boxes:
    """What is in a picture, or was found there."""

    corners: NDArray[np.float32]
    """x0, y0, x1, y1 in pixels: `[boxes, 4]`."""
    labels: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None
    """Of what was found."""


def iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every pair: `[boxes, others]`."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(each[:, 2:] - each[:, :2]).prod(-1) for each in (boxes, others)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared), np.float32)


def mean_average_precision(found: Sequence[Boxes], truth: Sequence[Boxes], threshold: float = 0.5) -> float:
    """The mean over all classes that the truth has. `threshold` is the least IoU of a hit."""
    classes = np.unique(np.concatenate([each.labels for each in truth]))
    return float(np.mean([_average_precision(found, truth, int(label), threshold) for label in classes]))


def _average_precision(found: Sequence[Boxes], truth: Sequence[Boxes], label: int, threshold: float) -> float:
    scores, hits = [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for mine, real in zip(found, truth, strict=True):
        assert mine.scores is not None
        of_label = np.flatnonzero(mine.labels == label)
        order = of_label[np.argsort(-mine.scores[of_label], kind="stable")]
        scores.append(mine.scores[order])
        hits.append(_hits(iou(mine.corners[order], real.corners[real.labels == label]), threshold))
    ranked = np.concatenate(hits)[np.argsort(-np.concatenate(scores), kind="stable")]
    num_true = sum(int((each.labels == label).sum()) for each in truth)
    recall = np.cumsum(ranked) / num_true
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    best_from = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(best_from[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())


def _hits(overlaps: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Which rows, best first, get a column that no row before took: the one that they overlap most."""
    free = overlaps.copy()
    hits = np.zeros(len(free), bool)
    for row in range(len(free)):
        column = int(free[row].argmax()) if free.shape[1] else -1
        if column >= 0 and free[row, column] >= threshold:
            hits[row] = True
            free[:, column] = -1
    return hits
