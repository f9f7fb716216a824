"""What was found can be seen in its picture, and the rest of it is as it was."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vmm_server.vision.drawing import colour_of, draw
from vmm_server.vision.results import Detections

GREY = 128


def found(*boxes: tuple[float, float, float, float], **more: Any) -> Detections:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return Detections(corners, scores, np.arange(len(boxes)), (1, 1), **more)


def drawn(width: int, height: int, detections: Detections, labels: tuple[str, ...] = ("a", "b")) -> NDArray[np.int64]:
    picture = Image.new("RGB", (width, height), (GREY, GREY, GREY))
    with Image.open(io.BytesIO(draw(picture, detections, labels))) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (width, height), "RGB")
        return np.asarray(image).astype(np.int64)


def touched(pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    changed: NDArray[np.bool_] = (pixels != GREY).any(2)
    return changed


@pytest.mark.parametrize(("width", "height"), [(640, 480), (60, 80), (3000, 2000)])
def test_a_box_has_a_frame_of_its_colour(width: int, height: int) -> None:
    left, top, right, bottom = width // 4, height // 2, width * 3 // 4, height * 7 // 8
    pixels = drawn(width, height, found((left, top, right, bottom)))
    for y, x in ((top, right - 1), (bottom - 1, left), (bottom - 1, right - 1), (bottom - 1, (left + right) // 2)):
        assert tuple(pixels[y, x]) == colour_of(0)
    inner = max(1, round(min(width, height) / 200))
    assert not touched(pixels)[top + inner : bottom - inner, left + inner : right - inner].any()
    assert not touched(pixels)[bottom:].any()


def test_a_name_is_above_its_box_or_in_it() -> None:
    above = touched(drawn(400, 300, found((100, 100, 300, 200))))
    assert above[90:98, 102:130].mean() > 0.5
    inside = touched(drawn(400, 300, found((100, 0, 300, 200))))
    assert inside[3:10, 104:130].mean() > 0.5
    at_the_edge = touched(drawn(400, 300, found((396, 100, 400, 200)), ("a long name for a thing",)))
    assert at_the_edge[90:98, 390:].mean() > 0.5


def test_a_name_that_the_labels_lack_is_a_number() -> None:
    assert not np.array_equal(
        drawn(400, 300, found((100, 100, 300, 200)), ()), drawn(400, 300, found((100, 100, 300, 200)))
    )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (24, 24), (2, 300)])
def test_a_small_picture_has_frames_alone(width: int, height: int) -> None:
    changed = touched(drawn(width, height, found((0, 0, width, height))))
    frame = np.ones_like(changed)
    frame[1:-1, 1:-1] = False
    np.testing.assert_array_equal(changed, frame)


def test_a_mask_lets_its_picture_through() -> None:
    mask = np.zeros((100, 200), np.bool_)
    mask[20:60, 30:90] = True
    pixels = drawn(400, 300, found((100, 100, 300, 200), masks=(mask,)))
    expected = [GREY + (part - GREY) * 115 / 255 for part in colour_of(0)]
    np.testing.assert_allclose(pixels[140, 150], expected, atol=1.1)
    assert not touched(pixels)[165:195, 110:290].any()
    assert touched(pixels)[120:160, 130:190].all()


def test_keypoints_that_can_be_seen_are_dots() -> None:
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5], points[0, 6], points[0, 7] = (150, 150, 1), (250, 150, 1), (150, 180, 0.1)
    pixels = drawn(400, 300, found((100, 100, 300, 200), keypoints=points))
    assert tuple(pixels[150, 150]) == tuple(pixels[150, 250]) == colour_of(0)
    assert tuple(pixels[150, 200]) == colour_of(0)  # between the shoulders
    assert not touched(pixels)[165:195, 110:290].any()


def test_a_turned_box_has_its_own_frame() -> None:
    corners = np.array([[[200, 100], [300, 150], [200, 200], [100, 150]]], np.float32)
    pixels = drawn(400, 300, found((100, 100, 300, 200), corners=corners))
    assert tuple(pixels[125, 250]) == colour_of(0)
    assert not touched(pixels)[195:, 110:180].any()


def test_the_best_is_on_top() -> None:
    pixels = drawn(400, 300, found((100, 100, 300, 200), (100, 100, 300, 200)))
    assert tuple(pixels[199, 200]) == colour_of(0) != colour_of(1)


def test_colours_of_neighbours_differ() -> None:
    colours = np.array([colour_of(class_id) for class_id in range(40)])
    for step in (1, 2, 3):
        assert np.abs(colours[step:] - colours[:-step]).max(1).min() > 60
