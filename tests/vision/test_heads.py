"""Each head reads back what is written as its exports write it, here by code of its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters.card import Head as HeadName
from vmm_adapters.card import ImageRecipe, VisionRecipe
from vmm_adapters.errors import UnsupportedModel
from vmm_server.errors import GenerationFailed, InvalidRequest
from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import corners_of, decode
from vmm_server.vision.heads.finding import find_head
from vmm_server.vision.preprocess import prepare
from vmm_server.vision.results import DetectionParams, Detections

SIZE = 128
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // stride) ** 2 for stride in STRIDES)
LABELS = ("cat", "dog", "cup")
PARAMS = DetectionParams()
Array = NDArray[np.float32]
Thing = tuple[tuple[float, float, float, float], int, float]
"""x and y of the middle, width, height in the input's pixels; class; score."""
Written = tuple[dict[str, Array], VisionRecipe]

THINGS: list[Thing] = [((30, 40, 20, 30), 1, 0.9), ((90, 80, 40, 24), 0, 0.75), ((70, 30, 10, 10), 2, 0.5)]


def recipe(head: HeadName, **told: Any) -> VisionRecipe:
    return VisionRecipe(head=head, labels=told.pop("labels", LABELS), **told)


def spread(things: list[Thing], num_rows: int, width: int) -> tuple[Array, list[int]]:
    """Rows of nothing, and where the things go among them."""
    rows = np.zeros((num_rows, width), np.float32)
    rows[:, :4] = (64, 64, 8, 8)
    return rows, [7 + 31 * index for index in range(len(things))]


def as_yolov8(things: list[Thing]) -> Written:
    rows, places = spread(things, CELLS, 4 + len(LABELS))
    for place, (box, class_id, score) in zip(places, things, strict=True):
        rows[place, :4] = box
        rows[place, 4 + class_id] = score
    return {"output0": rows.T.copy()}, recipe("yolov8")


def as_yolov8_by_rows(things: list[Thing]) -> Written:
    outputs, told = as_yolov8(things)
    return {"output0": outputs["output0"].T.copy()}, told


def as_yolov5(things: list[Thing]) -> Written:
    rows, places = spread(things, 3 * CELLS, 5 + len(LABELS))
    for place, (box, class_id, score) in zip(places, things, strict=True):
        rows[place, :5] = (*box, 0.95)
        rows[place, 5 + class_id] = score / 0.95
    return {"output0": rows}, recipe("yolov5")


def cells() -> list[tuple[int, int, int]]:
    return [
        (column, row, stride) for stride in STRIDES for row in range(SIZE // stride) for column in range(SIZE // stride)
    ]


def as_yolox(things: list[Thing]) -> Written:
    """In units of the cell in which a thing's middle is."""
    rows = np.zeros((CELLS, 5 + len(LABELS)), np.float32)
    rows[:, :2] = 0.5
    for (x, y, width, height), class_id, score in things:
        column, row, stride = next(cell for cell in cells() if (int(x // cell[2]), int(y // cell[2])) == cell[:2])
        place = cells().index((column, row, stride))
        rows[place, :5] = (x / stride - column, y / stride - row, np.log(width / stride), np.log(height / stride), 0.9)
        rows[place, 5 + class_id] = score / 0.9
    return {"output": rows}, recipe("yolox")


def as_decoded_yolox(things: list[Thing]) -> Written:
    rows = np.zeros((CELLS, 5 + len(LABELS)), np.float32)
    rows[:, :4] = [((column + 0.4) * stride, (row + 0.6) * stride, stride, stride) for column, row, stride in cells()]
    for place, (box, class_id, score) in enumerate(things):
        rows[100 * place, :5] = (*box, 0.9)
        rows[100 * place, 5 + class_id] = score / 0.9
    return {"output": rows}, recipe("yolox")


def as_end_to_end(things: list[Thing]) -> Written:
    rows = np.zeros((300, 6), np.float32)
    for place, ((x, y, width, height), class_id, score) in enumerate(things):
        rows[place] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2, score, class_id)
    return {"output0": rows}, recipe("end2end")


def as_detr(things: list[Thing]) -> Written:
    """A softmax over the classes and one more for nothing; boxes in parts of the input."""
    logits = np.tile(np.array([0, 0, 0, 9], np.float32), (100, 1))
    boxes = np.full((100, 4), 0.5, np.float32)
    for place, (box, class_id, score) in enumerate(things):
        powers = np.full(4, (1 - score) / 3)
        powers[class_id] = score
        logits[place] = np.log(powers) + 3
        boxes[place] = np.array(box) / SIZE
    return {"logits": logits, "pred_boxes": boxes}, recipe("detr")


def as_rt_detr(things: list[Thing]) -> Written:
    logits = np.full((300, 3), -8, np.float32)
    boxes = np.full((300, 4), 0.5, np.float32)
    for place, (box, class_id, score) in enumerate(things):
        logits[place, class_id] = np.log(score / (1 - score))
        boxes[place] = np.array(box) / SIZE
    return {"logits": logits, "pred_boxes": boxes}, recipe("detr", activation="sigmoid")


def as_rt_detr_of_ultralytics(things: list[Thing]) -> Written:
    rows = np.zeros((300, 7), np.float32)
    for place, (box, class_id, score) in enumerate(things):
        rows[place, :4] = np.array(box) / SIZE
        rows[place, 4 + class_id] = score
    return {"output0": rows}, recipe("detr")


def as_rt_detr_of_its_authors(things: list[Thing]) -> Written:
    outputs, told = as_end_to_end(things)
    rows = outputs["output0"]
    return {"labels": rows[:, 5].astype(np.int64), "boxes": rows[:, :4], "scores": rows[:, 4]}, told


WRITERS: list[Callable[[list[Thing]], Written]] = [
    as_yolov8,
    as_yolov8_by_rows,
    as_yolov5,
    as_yolox,
    as_decoded_yolox,
    as_end_to_end,
    as_detr,
    as_rt_detr,
    as_rt_detr_of_ultralytics,
    as_rt_detr_of_its_authors,
]
UNFRAMED = Framing(SIZE, SIZE, SIZE, SIZE, 1.0, 1.0)


def read(written: Written, params: DetectionParams = PARAMS, framing: Framing = UNFRAMED) -> Detections:
    outputs, told = written
    return decode(find_head(outputs, told, width=SIZE, height=SIZE), outputs, params, framing)


def edges(thing: Thing) -> list[float]:
    (x, y, width, height), _, _ = thing
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("write", WRITERS)
def test_what_was_written_is_read(write: Callable[[list[Thing]], Written]) -> None:
    found = read(write(THINGS))
    np.testing.assert_allclose(found.boxes, [edges(thing) for thing in THINGS], atol=1e-3)
    np.testing.assert_allclose(found.scores, [score for _, _, score in THINGS], atol=1e-4)
    assert found.class_ids.tolist() == [class_id for _, class_id, _ in THINGS]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert (found.masks, found.keypoints, found.corners) == (None, None, None)


@pytest.mark.parametrize("write", WRITERS)
def test_only_what_is_wanted_is_told(write: Callable[[list[Thing]], Written]) -> None:
    written = write(THINGS)
    assert read(written, replace(PARAMS, threshold=0.6)).class_ids.tolist() == [1, 0]
    assert read(written, replace(PARAMS, max_detections=1)).class_ids.tolist() == [1]
    assert read(written, replace(PARAMS, class_ids=frozenset((2, 0)))).class_ids.tolist() == [0, 2]
    assert len(read(written, replace(PARAMS, class_ids=frozenset()))) == 0
    assert len(read(write([]))) == 0


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_an_error(write: Callable[[list[Thing]], Written], wrong: float) -> None:
    outputs, told = write(THINGS)
    head = find_head(outputs, told, width=SIZE, height=SIZE)
    broken = {name: array if array.dtype == np.int64 else np.full_like(array, wrong) for name, array in outputs.items()}
    with pytest.raises(GenerationFailed):
        decode(head, broken, PARAMS, UNFRAMED)


@pytest.mark.parametrize("write", [as_yolov8, as_yolov5, as_yolox, as_decoded_yolox])
def test_of_two_of_one_class_the_better_one_is_told(write: Callable[[list[Thing]], Written]) -> None:
    first: Thing = ((32, 32, 30, 30), 1, 0.6)
    better: Thing = ((42, 34, 30, 30), 1, 0.8)
    other: Thing = ((52, 36, 30, 30), 2, 0.7)
    found = read(write([first, better, other]), DetectionParams(iou_threshold=0.3))
    assert found.class_ids.tolist() == [1, 2]
    np.testing.assert_allclose(found.boxes[0], edges(better), atol=1e-3)


@given(
    st.integers(10, 400),
    st.integers(10, 400),
    st.sampled_from(["stretch", "letterbox"]),
    st.tuples(*[st.floats(0.1, 0.4)] * 2, *[st.floats(0.1, 0.5)] * 2),
)
def test_boxes_are_told_in_the_pixels_of_the_picture(
    width: int, height: int, resize: Any, place: tuple[float, float, float, float]
) -> None:
    image = ImageRecipe(height=SIZE, width=SIZE, resize=resize)
    _, framing = prepare(Image.new("RGB", (width, height)), image)
    left, top = place[0] * width, place[1] * height
    box = np.array([left, top, left + place[2] * width, top + place[3] * height])
    scaled = box.reshape(2, 2) * [framing.scale_x, framing.scale_y] + [framing.left, framing.top]
    middle, size = scaled.mean(0), scaled[1] - scaled[0]
    thing: Thing = ((float(middle[0]), float(middle[1]), float(size[0]), float(size[1])), 1, 0.9)
    found = read(as_yolov8([thing]), framing=framing)
    np.testing.assert_allclose(found.boxes[0], box, atol=0.02)


def test_boxes_are_cut_off_at_the_edges_and_left_out_beyond_them() -> None:
    framing = Framing(128, 64, SIZE, SIZE, 1.0, 1.0, 0, 32)
    over: Thing = ((10, 40, 40, 40), 0, 0.9)
    padding: Thing = ((60, 16, 30, 20), 1, 0.8)
    found = read(as_yolov8([over, padding]), framing=framing)
    assert found.boxes.tolist() == [[0, 0, 30, 28]]


def with_extras(extra: Array, things: list[Thing]) -> Array:
    """YOLOv8's output with `extra [things, n]` behind the classes."""
    outputs, _ = as_yolov8(things)
    rows = np.zeros((extra.shape[1], CELLS), np.float32)
    rows[:, [7 + 31 * index for index in range(len(things))]] = extra.T
    return np.concatenate([outputs["output0"], rows])


@pytest.mark.parametrize("point_size", [2, 3])
def test_keypoints_come_with_their_boxes(point_size: int) -> None:
    points = np.random.default_rng(0).uniform(0, 1, (3, 4, point_size)).astype(np.float32)
    points[..., :2] *= SIZE
    outputs = {"output0": with_extras(points.reshape(3, -1), THINGS)}
    told = recipe("yolov8", task="pose", keypoint_shape=(4, point_size))
    found = read((outputs, told), framing=Framing(64, 128, SIZE, SIZE, 2.0, 1.0))
    assert found.keypoints is not None
    np.testing.assert_allclose(found.keypoints[..., :2], points[..., :2] / [2, 1], rtol=1e-5)
    np.testing.assert_allclose(found.keypoints[..., 2], points[..., 2] if point_size == 3 else 1, rtol=1e-5)


def test_masks_are_factors_of_prototypes() -> None:
    """The first prototype is all there is in the left half, the second one below 40."""
    prototypes = np.full((2, SIZE // 4, SIZE // 4), -1, np.float32)
    prototypes[0, :, : SIZE // 8] = 1
    prototypes[1, 10:] = 1
    factors = np.array([[5, 0], [0, 5], [0, -5]], np.float32)
    things = [
        ((64.0, 40.0, 40.0, 40.0), 1, 0.9),
        ((30.0, 40.0, 20.0, 40.0), 0, 0.8),
        ((90.0, 40.0, 20.0, 40.0), 0, 0.7),
    ]
    outputs = {"output0": with_extras(factors, things), "output1": prototypes}
    found = read((outputs, recipe("yolov8", task="segment")))
    assert found.masks is not None
    left, below, above = found.masks
    assert left.shape == (40, 40)
    assert left[:, :19].all()
    assert not left[:, 21:].any()
    assert not below[:19].any()
    assert below[21:].all()
    assert above[:19].all()
    assert not above[21:].any()


def test_masks_of_a_large_picture_are_bounded() -> None:
    prototypes = np.ones((1, 32, 32), np.float32)
    things: list[Thing] = [((64, 64, 128, 128), index, 0.9) for index in range(3)]
    outputs = {"output0": with_extras(np.ones((3, 1), np.float32), things), "output1": prototypes}
    with pytest.raises(InvalidRequest, match="max_detections: 3 masks") as caught:
        read((outputs, recipe("yolov8", task="segment")), framing=Framing(10_000, 10_000, SIZE, SIZE, 0.0128, 0.0128))
    assert caught.value.param == "max_detections"


def test_turned_boxes_have_corners() -> None:
    angles = np.array([[0.0], [np.pi / 2], [np.pi / 4]], np.float32)
    things: list[Thing] = [((30, 40, 20, 10), 1, 0.9), ((90, 80, 40, 24), 0, 0.75), ((70, 30, 10, 10), 2, 0.5)]
    found = read(({"output0": with_extras(angles, things)}, recipe("yolov8", task="obb")))
    assert found.corners is not None
    np.testing.assert_allclose(found.corners[0], [[20, 35], [40, 35], [40, 45], [20, 45]], atol=1e-4)
    np.testing.assert_allclose(found.corners[1], [[102, 60], [102, 100], [78, 100], [78, 60]], atol=1e-4)
    half = 5 * np.sqrt(2)
    np.testing.assert_allclose(found.boxes[2], [70 - half, 30 - half, 70 + half, 30 + half], atol=1e-4)


def test_turned_boxes_are_suppressed_by_how_they_lie() -> None:
    """Two thin boxes that cross have the same box around them, and are two things; two nearly alike are one."""
    things: list[Thing] = [((64, 64, 60, 6), 0, 0.9), ((64, 64, 60, 6), 0, 0.8), ((65, 64, 60, 6), 0, 0.7)]
    angles = np.array([[np.pi / 4], [-np.pi / 4], [np.pi / 4]], np.float32)
    found = read(({"output0": with_extras(angles, things)}, recipe("yolov8", task="obb")))
    np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=1e-6)


def test_turned_boxes_of_a_graph_that_suppresses_itself() -> None:
    rows = np.zeros((300, 7), np.float32)
    rows[0] = (60, 50, 40, 20, 0.8, 2, np.pi / 2)
    found = read(({"output0": rows}, recipe("end2end", task="obb")))
    np.testing.assert_allclose(found.boxes, [[50, 30, 70, 70]], atol=1e-4)
    assert found.class_ids.tolist() == [2]


def test_keypoints_of_a_graph_that_suppresses_itself() -> None:
    rows = np.zeros((300, 6 + 4), np.float32)
    rows[:2] = [(0, 0, 20, 20, 0.6, 0, 1, 2, 3, 4), (50, 30, 70, 70, 0.8, 2, 55, 40, 60, 50)]
    found = read(({"output0": rows}, recipe("end2end", task="pose", keypoint_shape=(2, 2))))
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[55, 40, 1], [60, 50, 1]], [[1, 2, 1], [3, 4, 1]]]


@pytest.mark.parametrize("write", [as_yolov5, as_end_to_end])
def test_masks_of_other_heads(write: Callable[[list[Thing]], Written]) -> None:
    outputs, told = write(THINGS)
    name, rows = next(iter(outputs.items()))
    factors = np.zeros((len(rows), 2), np.float32)
    factors[:, 0] = 1  # the first prototype alone
    prototypes = np.stack([np.ones((32, 32)), np.full((32, 32), -9)]).astype(np.float32)
    outputs = {name: np.concatenate([rows, factors], axis=1), "output1": prototypes}
    found = read((outputs, told.model_copy(update={"task": "segment"})))
    assert found.masks is not None
    assert [mask.all() for mask in found.masks] == [True] * 3
    assert [mask.shape for mask in found.masks] == [(30, 20), (24, 40), (10, 10)]


@given(st.floats(-3.2, 3.2), st.floats(1, 50), st.floats(1, 50))
def test_corners_go_round_clockwise(angle: float, width: float, height: float) -> None:
    corners = corners_of(np.array([[10, 20, width, height, angle]], np.float32))[0].astype(np.float64)
    following = np.roll(corners, -1, axis=0)
    twice_area = (corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum()
    assert twice_area == pytest.approx(2 * width * height, rel=1e-3)  # positive where y points down
    np.testing.assert_allclose(corners.mean(0), [10, 20], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((7, CELLS), {"head": None}),
        ((6, CELLS), {"head": "yolov8"}),
        ((8, CELLS), {"head": "yolov8"}),
        ((7, CELLS), {"head": "yolov8", "task": "obb"}),
        ((7, CELLS), {"head": "yolov8", "task": "segment"}),
        ((7 + 51, CELLS), {"head": "yolov8", "task": "pose"}),
        ((7 + 51, CELLS), {"head": "yolov8", "task": "pose", "keypoint_shape": (17, 4)}),
        ((4, CELLS), {"head": "yolov8", "labels": None}),
        ((CELLS + 1, 8), {"head": "yolox"}),
        ((CELLS, 9), {"head": "yolox"}),
        ((CELLS, 9), {"head": "yolox", "task": "obb"}),
        ((300, 5), {"head": "end2end"}),
        ((300, 7), {"head": "end2end"}),
        ((300, 6), {"head": "end2end", "labels": None}),
        ((100, 4 + 3 + 2), {"head": "detr"}),
        ((100, 4 + 3), {"head": "detr", "activation": "softmax"}),
        ((100, 4 + 3), {"head": "detr", "labels": None}),
    ],
)
def test_what_cannot_be_read_is_refused_and_what_a_card_has_to_say_named(
    shape: tuple[int, int], told: dict[str, Any]
) -> None:
    vision = VisionRecipe(**{"labels": LABELS} | told)
    with pytest.raises(UnsupportedModel, match=r"not clear: .*output0 \[\d+, \d+\]") as caught:
        find_head({"output0": np.zeros(shape, np.float32)}, vision, width=SIZE, height=SIZE)
    assert "vision.head" in (caught.value.hint or "")
    with pytest.raises(UnsupportedModel, match="no output is a list of boxes"):
        find_head({"grid": np.zeros((3, 4, 5), np.float32)}, vision, width=SIZE, height=SIZE)


def test_without_names_classes_are_counted() -> None:
    outputs, _ = as_yolov8(THINGS)
    assert find_head(outputs, VisionRecipe(head="yolov8"), width=SIZE, height=SIZE).num_classes == 3
    outputs["output1"] = np.zeros((2, 32, 32), np.float32)
    vision = VisionRecipe(head="yolov8", task="segment")
    assert find_head(outputs, vision, width=SIZE, height=SIZE).num_classes == 1


def test_a_small_picture_may_have_fewer_cells_than_classes() -> None:
    labels = tuple(f"thing {number}" for number in range(80))
    values = np.zeros((4 + len(labels), 16 + 4 + 1), np.float32)
    values[:4, 5], values[4 + 33, 5] = (16, 16, 8, 8), 0.9
    head = find_head({"output0": values}, recipe("yolov8", labels=labels), width=32, height=32)
    found = decode(head, {"output0": values}, PARAMS, Framing(32, 32, 32, 32, 1.0, 1.0))
    assert found.class_ids.tolist() == [33]
