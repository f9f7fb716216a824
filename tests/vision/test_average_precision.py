"""The yardstick itself: figures that are known by hand."""

import numpy as np
import pytest

from .average_precision import Boxes, iou, mean_average_precision

PLACES = np.array([[0, 0, 10, 10], [20, 0, 40, 10], [0, 30, 10, 50]], np.float32)
TRUTH = Boxes(PLACES, np.array([0, 0, 1]))


def found(corners: np.ndarray, labels: list[int], scores: list[float]) -> Boxes:
    return Boxes(corners, np.array(labels, np.int64), np.array(scores, np.float32))


def test_overlaps_are_shared_area_by_all_area() -> None:
    others = np.array([[0, 0, 10, 5], [5, 5, 15, 15], [50, 50, 60, 60]], np.float32)
    np.testing.assert_allclose(iou(PLACES[:1], others), [[0.5, 25 / 175, 0]])


def test_what_is_right_counts_in_full() -> None:
    assert mean_average_precision([found(PLACES, [0, 0, 1], [0.3, 0.9, 0.5])], [TRUTH]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (found(PLACES[:0], [], []), 0),
        (found(PLACES, [1, 1, 0], [0.9, 0.9, 0.9]), 0),
        (found(PLACES[[0, 2]], [0, 1], [0.9, 0.9]), (51 / 101 + 1) / 2),
        (found(PLACES[[0, 0, 1, 2]], [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.9]), ((51 + 50 * 2 / 3) / 101 + 1) / 2),
        (found(PLACES + np.array([0, 0, 0, 12], np.float32), [0, 0, 1], [0.9, 0.9, 0.9]), 0.5),
    ],
    ids=["nothing", "other classes", "one missing", "one twice", "too tall, but for one"],
)
def test_what_is_wrong_costs(answer: Boxes, expected: float) -> None:
    assert mean_average_precision([answer], [TRUTH]) == pytest.approx(expected)


def test_a_box_counts_in_its_own_picture_alone() -> None:
    nothing = found(PLACES[:0], [], [])
    everything = found(PLACES, [0, 0, 1], [0.9, 0.8, 0.7])
    none = Boxes(PLACES[:0], np.array([], np.int64))
    assert mean_average_precision([nothing, everything], [TRUTH, none]) == 0
    assert mean_average_precision([everything, nothing], [TRUTH, none]) == 1


def test_a_false_find_costs_less_behind_the_right_ones() -> None:
    places = np.concatenate([PLACES, PLACES[:1] + 100])
    before, after = (found(places, [0, 0, 1, 0], [0.8, 0.8, 0.8, score]) for score in (0.9, 0.1))
    assert mean_average_precision([after], [TRUTH]) == 1
    assert mean_average_precision([before], [TRUTH]) == pytest.approx((2 / 3 + 1) / 2)
