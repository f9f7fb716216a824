"""The fixtures of tests/fixtures are what their page says, judged by themselves and then as the server reads them."""

import ast
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.random import RandomState
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from tests.fixtures.detector_graph import save
from tests.fixtures.shapes import COLOURS, KINDS, LOOKS, Shape, held_out, paint, portrait, scene

from vmm_adapters import catalog
from vmm_adapters.types import SessionOptions
from vmm_server.models.importers.vision_folder import import_onnx_file
from vmm_server.vision.heads.candidates import decode
from vmm_server.vision.heads.finding import find_head
from vmm_server.vision.preprocess import prepare
from vmm_server.vision.results import DetectionParams

from .average_precision import Boxes, iou, mean_average_precision

FIXTURES = Path(__file__).parents[1] / "fixtures"
NUM_PICTURES = 200


@pytest.fixture(scope="module")
def detector() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(FIXTURES / "detector.onnx", options, providers=["CPUExecutionProvider"])


def true_boxes(shapes: tuple[Shape, ...]) -> Boxes:
    corners = np.array([shape.box for shape in shapes], np.float32).reshape(-1, 4)
    return Boxes(corners, np.array([KINDS.index(shape.kind) for shape in shapes], np.int64))


def pixels(pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255


def decoded(raw: NDArray[np.float32], least_score: float = 0.05, most_overlap: float = 0.6) -> Boxes:
    """What one picture's `[4 + classes, anchors]` say: each anchor's best class, the lesser of two alike left out."""
    scores, labels = raw[4:].max(0), raw[4:].argmax(0)
    order = np.argsort(-scores, kind="stable")[: int((scores >= least_score).sum())]
    centres, sizes = raw[:2, order].T, raw[2:4, order].T
    corners, labels, scores = (
        np.concatenate([centres - sizes / 2, centres + sizes / 2], 1),
        labels[order],
        scores[order],
    )
    rivals = (iou(corners, corners) > most_overlap) & (labels[:, None] == labels)
    kept: list[int] = []
    for index in range(len(order)):
        if not rivals[index, kept].any():
            kept.append(index)
    return Boxes(corners[kept], labels[kept], scores[kept])


def test_a_picture_comes_of_its_seed_alone() -> None:
    """Or references that were stored would be of other pictures."""
    picture, shapes = scene(5, 120, 90)
    assert picture.shape == (90, 120, 3)
    assert (int(picture.sum(dtype=np.int64)), len(shapes)) == (5121445, 4)
    assert int(portrait(5, LOOKS[5]).sum(dtype=np.int64)) == 2044292
    assert len(held_out()) == 48


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_fills_its_box(kind: str) -> None:
    box = (13.3, 20.7, 62.1, 51.9)
    picture = paint(RandomState(0), [Shape(kind, "red", box)], 80, 70, is_grey=True)
    rows, columns = np.nonzero(np.abs(picture - np.array(COLOURS["red"])).max(-1) < 40)
    np.testing.assert_allclose((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), box, atol=2.5)


@pytest.mark.runtime
def test_the_detector_has_the_form_of_a_yolov8_export(detector: onnxruntime.InferenceSession) -> None:
    (images,), (output,) = detector.get_inputs(), detector.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, "height", "width"])
    assert (output.name, output.shape) == ("output0", ["batch", 10, "anchors"])
    metadata = detector.get_modelmeta().custom_metadata_map
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(KINDS))
    assert (metadata["task"], metadata["stride"], metadata["imgsz"]) == ("detect", "32", "[160, 160]")
    assert (FIXTURES / "detector.onnx").stat().st_size < 3e6


@pytest.mark.runtime
@pytest.mark.parametrize("size", [160, 224, 320])
def test_sizes_and_batches_may_differ(detector: onnxruntime.InferenceSession, size: int) -> None:
    batch = pixels([scene(seed, size, size)[0] for seed in range(3)])
    (together,) = detector.run(None, {"images": batch})
    assert together.shape == (3, 10, sum((size // stride) ** 2 for stride in (8, 16, 32)))
    for row, alone in enumerate(batch):
        np.testing.assert_allclose(detector.run(None, {"images": alone[None]})[0][0], together[row], atol=1e-3)


@pytest.mark.runtime
def test_openvino_says_the_same(detector: onnxruntime.InferenceSession) -> None:
    batch = pixels([scene(seed, 192, 192)[0] for seed in range(2)])
    session = catalog.load_session("openvino", FIXTURES / "detector.onnx", SessionOptions(num_threads=1))
    found = session.run({"images": batch})["output0"]
    session.close()
    np.testing.assert_allclose(found, detector.run(None, {"images": batch})[0], atol=2e-2)


@pytest.mark.runtime
@pytest.mark.parametrize(("size", "threshold", "least"), [(160, 0.5, 0.97), (160, 0.75, 0.94), (256, 0.5, 0.97)])
def test_the_detector_finds_shapes(
    detector: onnxruntime.InferenceSession, size: int, threshold: float, least: float
) -> None:
    """Of pictures that it never saw: the seeds of its training begin at a million."""
    found, truth = [], []
    for start, end in pairwise(range(0, NUM_PICTURES + 1, 20)):
        scenes = [scene(seed, size, size) for seed in range(start, end)]
        (raw,) = detector.run(None, {"images": pixels([picture for picture, _ in scenes])})
        found += [decoded(each) for each in raw]
        truth += [true_boxes(shapes) for _, shapes in scenes]
    assert mean_average_precision(found, truth, threshold) >= least


def test_the_detector_is_what_its_weights_make(tmp_path: Path) -> None:
    """The same weights give the same bytes: nobody edited the file."""
    committed = FIXTURES / "detector.onnx"
    kept = {each.name: numpy_helper.to_array(each) for each in onnx.load(committed).graph.initializer}
    weights = {name[:-5]: value.astype(np.float32) for name, value in kept.items() if name.endswith(".half")}
    save(weights, KINDS, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == committed.read_bytes()


@pytest.mark.runtime
@pytest.mark.parametrize(("width", "height", "least"), [(160, 160, 0.97), (640, 480, 0.9), (240, 160, 0.85)])
def test_the_server_finds_shapes_in_pictures_of_any_size(
    detector: onnxruntime.InferenceSession, tmp_path: Path, width: int, height: int, least: float
) -> None:
    """How, it reads from the file alone; boxes are in the pixels of the picture, not of its letterbox."""
    recipe = import_onnx_file(FIXTURES / "detector.onnx", tmp_path, lambda done, total: None).vision
    assert recipe is not None
    assert recipe.image is not None
    found, truth = [], []
    for seed in range(100):
        picture, shapes = scene(seed, width, height)
        numbers, framing = prepare(Image.fromarray(picture), recipe.image)
        outputs = {"output0": detector.run(None, {"images": numbers[None]})[0][0]}
        head = find_head(outputs, recipe, width=recipe.image.width, height=recipe.image.height)
        detections = decode(head, outputs, DetectionParams(threshold=0.05), framing)
        found.append(Boxes(detections.boxes, detections.class_ids, detections.scores))
        truth.append(true_boxes(shapes))
    assert mean_average_precision(found, truth) >= least
