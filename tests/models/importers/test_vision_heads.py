"""Heads of detectors are told apart by what their exports look like, and not guessed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.importers.onnx_graphs import Shapes, make_graph, write_graph

from vmm_server.errors import ImportFailed
from vmm_server.models.importers.onnx_file import OnnxGraph, Port, read_graph
from vmm_server.models.importers.vision_heads import FoundHead, find_head

NAMES = {index: f"thing {index}" for index in range(80)}
ULTRALYTICS: dict[str, object] = {"author": "Ultralytics", "stride": 32, "task": "detect", "names": NAMES}


def find(tmp_path: Path, outputs: Shapes, size: int = 640, labels: int | None = 80, **more: Any) -> FoundHead | None:
    return find_head(read_graph(write_graph(tmp_path / "m.onnx", make_graph(outputs, **more))), size, size, labels)


V8 = {"output0": [1, 84, 8400]}
V5 = {"output0": [1, 25200, 85]}
X = {"output": [1, 8400, 85]}
PROTOS = {"output1": [1, 32, 160, 160]}


@pytest.mark.parametrize(
    ("outputs", "labels", "metadata", "expected"),
    [
        (V8, 80, ULTRALYTICS, FoundHead("yolov8", "detect", None, 80)),
        (V8, 80, {}, FoundHead("yolov8", None, None, 80)),
        (V8, None, {}, FoundHead("yolov8", None, None, 80)),
        ({"o": [1, 22, 8400]}, 18, {}, FoundHead("yolov8", None, None, 18)),
        ({"o": ["b", 84, "n"]}, 80, ULTRALYTICS, FoundHead("yolov8", "detect", None, 80)),
        ({"o": ["b", "c", "n"]}, 80, ULTRALYTICS, FoundHead("yolov8", "detect", None, 80)),
        ({"o": ["b", 22, "n"]}, 18, {}, FoundHead("yolov8", None, None, 18)),
        ({"o": [1, 84, 8500]}, 80, {}, FoundHead("yolov8", None, None, 80)),
        ({"o": [1, 116, 8400]} | PROTOS, 80, {"task": "segment"}, FoundHead("yolov8", "segment", None, 80)),
        ({"o": [1, 116, 8400]} | PROTOS, 80, {}, FoundHead("yolov8", "segment", None, 80)),
        ({"o": [1, 56, 8400]}, 1, {"task": "pose", "kpt_shape": "[17, 3]"}, FoundHead("yolov8", "pose", (17, 3), 1)),
        ({"o": [1, 13, 8400]}, 1, {"task": "pose", "kpt_shape": "(4, 2)"}, FoundHead("yolov8", "pose", (4, 2), 1)),
        ({"o": [1, 56, 8400]}, 1, {}, FoundHead("yolov8", "pose", (17, 3), 1)),
        ({"o": [1, 56, 8400]}, 1, {"task": "pose", "kpt_shape": "[0]"}, FoundHead("yolov8", "pose", (17, 3), 1)),
        ({"o": [1, 14, 8400]}, 1, {"task": "pose"}, FoundHead("yolov8", "pose", None, 1)),
        ({"o": [1, 20, 8400]}, 15, {"task": "obb"}, FoundHead("yolov8", "obb", None, 15)),
        ({"o": [1, 20, 8400]}, 15, {}, FoundHead("yolov8", "obb", None, 15)),
        (V5, 80, {"stride": 32, "names": NAMES}, FoundHead("yolov5", None, None, 80)),
        (V5, None, {}, FoundHead("yolov5", None, None, 80)),
        ({"o": [1, 25500, 85]}, 80, {}, FoundHead("yolov5", None, None, 80)),
        ({"o": [1, 25200, 6]}, 1, {}, FoundHead("yolov5", None, None, 1)),
        ({"o": ["b", "n", 85]}, 80, {"stride": 32, "names": NAMES}, FoundHead("yolov5", None, None, 80)),
        ({"o": [1, 25200, 117]} | PROTOS, 80, {}, FoundHead("yolov5", "segment", None, 80)),
        ({"o": [1, 300, 6]}, 80, {}, FoundHead("end2end", None, None, 80)),
        ({"o": [1, 300, 6]}, 80, ULTRALYTICS | {"end2end": True}, FoundHead("end2end", "detect", None, 80)),
        ({"o": ["b", "n", 6]}, 80, ULTRALYTICS | {"args": "{'nms': True}"}, FoundHead("end2end", "detect", None, 80)),
        ({"o": [1, 300, 38]} | PROTOS, 80, {"task": "segment"}, FoundHead("end2end", "segment", None, 80)),
        ({"o": [1, 300, 57]}, 1, {"task": "pose", "kpt_shape": "[17, 3]"}, FoundHead("end2end", "pose", (17, 3), 1)),
        ({"o": [1, 300, 7]}, 15, {"task": "obb"}, FoundHead("end2end", "obb", None, 15)),
        ({"logits": [1, 300, 80], "pred_boxes": [1, 300, 4]}, 80, {}, FoundHead("detr", None, None, 80)),
        ({"labels": [1, 300], "boxes": [1, 300, 4], "scores": [1, 300]}, 80, {}, FoundHead("end2end", None, None, 80)),
        ({"o": [1, 300, 84]}, 80, ULTRALYTICS, FoundHead("detr", None, None, 80)),
    ],
)
def test_exports_are_told_apart(
    tmp_path: Path, outputs: Shapes, labels: int | None, metadata: dict[str, object], expected: FoundHead
) -> None:
    assert find(tmp_path, outputs, labels=labels, metadata=metadata) == expected


def test_yolox_is_told_by_its_last_step(tmp_path: Path) -> None:
    expected = FoundHead("yolox", None, None, 80)
    assert find(tmp_path, X, operator="Transpose") == expected
    assert find(tmp_path, {"output": ["b", "n", 85]}, operator="Transpose") == expected
    assert find(tmp_path, {"output": [1, 3549, 85]}, 416, None, operator="Transpose") == expected
    assert find(tmp_path, X, operator="Concat") is None, "decoded: YOLOv6's, or another's"
    assert find(tmp_path, X) is None


@pytest.mark.parametrize(
    ("outputs", "labels", "metadata"),
    [
        ({"o": [1, 8400, 84]}, 80, {}),
        ({"o": [1, 84, 8000]}, 80, {}),
        ({"o": ["b", "n", "c"]}, 80, {}),
        ({"o": ["b", "n", "c"]}, None, {}),
        ({"o": ["b", 85, "n"]}, 18, {}),
        ({"o": [1, 100, 5]}, 1, {}),
        ({"o": [1, 5]}, 1, {}),
        ({"last_hidden_state": [1, 197, 768]}, None, {}),
    ],
)
def test_what_is_not_clear_is_not_guessed(
    tmp_path: Path, outputs: Shapes, labels: int | None, metadata: dict[str, object]
) -> None:
    assert find(tmp_path, outputs, labels=labels, metadata=metadata) is None


@pytest.mark.parametrize(
    ("outputs", "labels", "metadata", "words"),
    [
        ({"o": [1, 84, 8400]}, 79, {"task": "detect"}, "80 classes and 79 names"),
        ({"o": [1, 25200, 85]}, 20, {}, "80 classes and 20 names"),
        ({"o": [1, 36, 8400]} | PROTOS, None, {}, "no room for classes"),
        ({"o": [1, 300, 9]}, 80, {"end2end": True}, "9 numbers a box, 6 are a detect model's"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    tmp_path: Path, outputs: Shapes, labels: int | None, metadata: dict[str, object], words: str
) -> None:
    with pytest.raises(ImportFailed, match=words):
        find(tmp_path, outputs, labels=labels, metadata=metadata)


sizes = st.none() | st.integers(1, 200) | st.sampled_from([300, 8400, 25200, 84, 85, 6])


@given(
    st.lists(st.lists(sizes, max_size=4), min_size=1, max_size=3),
    st.none() | st.integers(0, 200),
    st.dictionaries(st.sampled_from(["task", "names", "kpt_shape", "end2end", "args"]), st.text(max_size=20)),
    st.sampled_from(["Transpose", "Concat"]),
)
def test_whatever_a_graph_looks_like_it_is_told_or_left_or_refused(
    shapes: list[list[int | None]], labels: int | None, metadata: dict[str, str], operator: str
) -> None:
    outputs = tuple(Port(f"o{index}", 1, tuple(shape)) for index, shape in enumerate(shapes))
    graph = OnnxGraph(Path("m.onnx"), (), outputs, metadata, {"o0": operator}, has_external_data=False)
    try:
        found = find_head(graph, 640, 640, labels)
    except ImportFailed:
        return
    assert found is None or found.num_classes is None or found.num_classes >= 1 or labels == 0
