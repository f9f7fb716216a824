"""Suppression does what its definition says, whatever the boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.errors import GenerationFailed
from vmm_server.vision.nms import MAX_CANDIDATES, check_numbers, iou, probabilistic_iou, strongest, suppress
from vmm_server.vision.results import DetectionParams

Floats = NDArray[np.float32]


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Floats, NDArray[np.int64]]:
    """Boxes of a small picture, so that they overlap, equals among them, some of them empty; and classes."""
    num = draw(st.integers(0, 30))
    corners = draw(st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=num, max_size=num))
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners], np.float32).reshape(-1, 4)
    return boxes, np.array(draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)), np.int64)


def area(box: Floats) -> float:
    return max(0.0, float(box[2] - box[0])) * max(0.0, float(box[3] - box[1]))


def overlap(one: Floats, other: Floats) -> float:
    common = area(np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])]))
    union = area(one) + area(other) - common
    return common / union if union else 0.0


def naive(boxes: Floats, class_ids: NDArray[np.int64], params: DetectionParams) -> list[int]:
    kept: list[int] = []
    for index, box in enumerate(boxes):
        rivals = [other for other in kept if class_ids[other] == class_ids[index]]
        if len(kept) < params.max_detections and all(
            overlap(boxes[other], box) <= params.iou_threshold for other in rivals
        ):
            kept.append(index)
    return kept


@given(candidates(), st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]), st.integers(1, 40))
def test_it_keeps_what_the_definition_keeps(
    found: tuple[Floats, NDArray[np.int64]], iou_threshold: float, max_detections: int
) -> None:
    params = DetectionParams(iou_threshold=iou_threshold, max_detections=max_detections)
    assert suppress(*found, params).tolist() == naive(*found, params)


@pytest.mark.parametrize("size", [5, 40, 200])
@pytest.mark.parametrize("max_detections", [30, 64, 65, 300])
def test_many_are_compared_with_all_that_stay(size: int, max_detections: int) -> None:
    """More than are looked at together."""
    random = np.random.default_rng(size)
    corners = random.integers(0, 400, (200, 2))
    boxes = np.concatenate([corners, corners + random.integers(1, size, (200, 2))], axis=1).astype(np.float32)
    class_ids = random.integers(0, 3, 200)
    params = DetectionParams(iou_threshold=0.2, max_detections=max_detections)
    assert suppress(boxes, class_ids, params).tolist() == naive(boxes, class_ids, params)


@given(candidates())
def test_iou_is_what_it_says(found: tuple[Floats, NDArray[np.int64]]) -> None:
    boxes, _ = found
    for box in boxes:
        np.testing.assert_allclose(iou(box[:, None], boxes.T), [overlap(box, other) for other in boxes], atol=1e-6)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), max_size=40),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.none() | st.frozensets(st.integers(0, 2)),
)
def test_the_strongest_come_first_and_equals_in_their_order(
    given_scores: list[float], threshold: float, wanted: frozenset[int] | None
) -> None:
    scores = np.array(given_scores, np.float32)
    class_ids = np.arange(len(scores)) % 3
    params = DetectionParams(threshold=threshold, class_ids=wanted)
    fitting = [
        index for index, score in enumerate(scores) if score >= threshold and (wanted is None or index % 3 in wanted)
    ]
    expected = sorted(fitting, key=lambda index: -scores[index])
    assert strongest(scores, class_ids, params).tolist() == expected


def test_no_more_candidates_than_can_be_compared_in_time() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.001, 1, 30_000).astype(np.float32)
    chosen = strongest(scores, np.zeros(30_000, np.int64), DetectionParams(threshold=0.001))
    assert len(chosen) == MAX_CANDIDATES
    assert scores[chosen].min() >= np.sort(scores)[-MAX_CANDIDATES]


@st.composite
def turned_boxes(draw: st.DrawFn) -> Floats:
    numbers = [st.floats(0, 50), st.floats(0, 50), st.floats(1, 40), st.floats(1, 40), st.floats(-3, 3)]
    return np.array(draw(st.lists(st.tuples(*numbers), min_size=1, max_size=8)), np.float32)


def covariance(box: Floats) -> NDArray[np.float64]:
    turn = np.array([[np.cos(box[4]), -np.sin(box[4])], [np.sin(box[4]), np.cos(box[4])]], np.float64)
    return np.asarray(turn @ np.diag([box[2] ** 2 / 12, box[3] ** 2 / 12]) @ turn.T)


def hellinger_overlap(one: Floats, other: Floats) -> float:
    """By matrices: Bhattacharyya's coefficient of two Gaussians."""
    mean = (covariance(one) + covariance(other)) / 2
    between = (one[:2] - other[:2]).astype(np.float64)
    spread = np.linalg.det(mean) / np.sqrt(np.linalg.det(covariance(one)) * np.linalg.det(covariance(other)))
    distance = between @ np.linalg.inv(mean) @ between / 8 + np.log(spread) / 2
    return 1 - float(np.sqrt(max(0.0, 1 - np.exp(-distance))))


@given(turned_boxes())
def test_turned_boxes_overlap_as_gaussians(boxes: Floats) -> None:
    for box in boxes:
        expected = [hellinger_overlap(box, other) for other in boxes]
        np.testing.assert_allclose(probabilistic_iou(box[:, None], boxes.T), expected, atol=2e-3)


def test_a_turned_box_covers_itself_turned_half_round() -> None:
    box = np.array([10, 10, 30, 4, 0.3], np.float32)
    others = np.array([[10, 10, 30, 4, 0.3 + np.pi], [10, 10, 4, 30, 0.3 + np.pi / 2], [10, 10, 4, 30, 0.3]])
    overlaps = probabilistic_iou(box[:, None], others.astype(np.float32).T)
    np.testing.assert_allclose(overlaps[:2], 1, atol=2e-3)
    assert overlaps[2] < 0.5


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_answer(wrong: float) -> None:
    check_numbers(np.zeros(3, np.float32))
    with pytest.raises(GenerationFailed, match="NaN or infinite"):
        check_numbers(np.array([0, wrong], np.float32))
