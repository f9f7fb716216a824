"""Folders and files of classifiers and detectors, as they are."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.models.importers.onnx_graphs import IMAGE, Shapes, make_graph, write_graph

from vmm_adapters.card import ImageRecipe, VisionRecipe
from vmm_server.errors import CorruptFile, ImportFailed, StoreError, UnsupportedArchitecture
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.vision_folder import check_vision, import_onnx_file
from vmm_server.models.importers.vision_labels import data_set_labels

PREPROCESSOR = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ULTRALYTICS: dict[str, object] = {
    "description": "Ultralytics YOLOv8n model trained on coco.yaml",
    "stride": 32,
    "task": "detect",
    "imgsz": [320, 640],
    "names": {0: "cat", 1: 'it\'s a "dog"'},
}
V8: Shapes = {"output0": ["batch", 6, "anchors"]}


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def described(folder: Path) -> VisionRecipe:
    found = describe_folder(folder).vision
    assert found
    return found


# Classifiers


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A folder as exporters for the hub write it."""
    write(tmp_path, "config.json", {"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "cow"}})
    write(tmp_path, "preprocessor_config.json", PREPROCESSOR)
    write_graph(tmp_path / "onnx/model.onnx", make_graph({"logits": ["batch", 3]}))
    return tmp_path


def test_a_classifier_of_the_hub(classifier: Path) -> None:
    assert detect_format(classifier) == "onnx"
    model = describe_folder(classifier)
    assert (model.capabilities, model.family, model.context_length) == (("classification",), "vit", 0)
    assert model.vision
    assert model.vision.labels == ("cat", "dog", "cow")
    assert model.vision.activation == "softmax"
    assert model.vision.image == ImageRecipe(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    check_vision("x", model.capabilities, model.vision)


def test_what_a_classifiers_numbers_are(classifier: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    write(classifier, "config.json", config | {"problem_type": "multi_label_classification"})
    assert described(classifier).activation == "sigmoid"
    for operator in ("Softmax", "Sigmoid"):
        write_graph(classifier / "onnx/model.onnx", make_graph({"p": ["batch", 3]}, operator=operator))
        assert described(classifier).activation == "none"


def test_names_that_are_no_names_are_those_of_the_data_set(classifier: Path) -> None:
    write(classifier, "config.json", {"id2label": {str(index): f"LABEL_{index}" for index in range(1000)}})
    write_graph(classifier / "onnx/model.onnx", make_graph({"logits": ["batch", 1000]}))
    labels = described(classifier).labels
    assert labels
    assert (labels[0], labels[281], labels[999], len({*labels})) == ("tench", "tabby", "toilet tissue", 1000)
    write(classifier, "config.json", {})
    assert described(classifier).labels == labels
    write_graph(classifier / "onnx/model.onnx", make_graph({"logits": ["batch", 999]}))
    assert described(classifier).labels is None


def test_names_beside_the_graph(classifier: Path) -> None:
    (classifier / "config.json").unlink()
    (classifier / "LICENSE.txt").write_text("a\nb\nc\nd\n")
    (classifier / "labels.txt").write_text("eins\n\nzwei\n drei \n")
    assert described(classifier).labels == ("eins", "zwei", "drei")
    (classifier / "other.names").write_text("1\n2\n3\n")
    assert described(classifier).labels is None, "which of the two is not known"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"0": "cat"}, "3 classes and 1 names"),
        ({"x": "cat"}, "no object of names"),
        ({"1e9": "x"}, "no object of names"),
    ],
)
def test_names_that_do_not_fit_are_refused(classifier: Path, labels: object, words: str) -> None:
    write(classifier, "config.json", {"id2label": labels})
    with pytest.raises(ImportFailed, match=words):
        describe_folder(classifier)


def test_numbers_without_a_name_are_their_own(classifier: Path) -> None:
    write(classifier, "config.json", {"id2label": {"0": "cat", "2": "cow"}})
    assert described(classifier).labels == ("cat", "1", "cow")
    write(classifier, "config.json", {"id2label": {"0": "cat", "100000": "cow"}})
    with pytest.raises(CorruptFile, match="not from 0 to 99999"):
        describe_folder(classifier)


def test_ultralytics_classifiers_say_all_in_the_graph(tmp_path: Path) -> None:
    metadata = ULTRALYTICS | {"task": "classify", "imgsz": [224, 224]}
    write_graph(tmp_path / "yolo-cls.onnx", make_graph({"output0": ["b", 2]}, metadata=metadata, operator="Softmax"))
    model = describe_folder(tmp_path)
    assert (model.capabilities, model.family) == (("classification",), "yolov8n")
    assert model.vision
    assert model.vision.image == ImageRecipe(height=224, width=224, resize="shortest")
    assert (model.vision.activation, model.vision.labels) == ("none", ("cat", 'it\'s a "dog"'))


# Detectors


def test_ultralytics_detectors_say_all_in_the_graph(tmp_path: Path) -> None:
    write_graph(tmp_path / "best.onnx", make_graph(V8, metadata=ULTRALYTICS))
    model = describe_folder(tmp_path)
    assert (model.capabilities, model.family) == (("detection",), "yolov8n")
    assert model.vision
    assert (model.vision.head, model.vision.task, model.vision.labels) == ("yolov8", "detect", ("cat", 'it\'s a "dog"'))
    assert model.vision.image == ImageRecipe(height=320, width=640, resize="letterbox")
    check_vision("x", model.capabilities, model.vision)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("['a', 'b']", ("a", "b")), ('{"0": "a", "1": "b"}', ("a", "b")), ("__import__('os')", None), ("(" * 10**4, None)],
)
def test_names_in_metadata_are_literals_and_nothing_is_run(
    tmp_path: Path, names: str, expected: tuple[str, ...] | None
) -> None:
    outputs: Shapes = {"o": [1, 6, 2100]}
    inputs: Shapes = {"images": [1, 3, 320, 320]}
    write_graph(tmp_path / "m.onnx", make_graph(outputs, inputs, metadata={"task": "detect", "names": names}))
    assert described(tmp_path).labels == expected


def test_a_raw_yolox_needs_nothing_beside(tmp_path: Path) -> None:
    model = make_graph({"output": [1, 3549, 85]}, {"images": [1, 3, 416, 416]}, operator="Transpose")
    write_graph(tmp_path / "yolox.onnx", model)
    recipe = described(tmp_path)
    image = ImageRecipe(height=416, width=416, resize="letterbox", pad_place="top-left", channels="bgr", scale=1)
    assert (recipe.head, recipe.image, recipe.labels) == ("yolox", image, data_set_labels(80))
    (tmp_path / "coco.txt").write_text("\n".join(f"thing {index}" for index in range(80)))
    found = described(tmp_path).labels
    assert found
    assert found[79] == "thing 79"


@pytest.mark.parametrize(
    ("model_type", "classes", "expected"),
    [("rt_detr", 2, "sigmoid"), ("d_fine", 2, "sigmoid"), ("detr", 3, "softmax"), ("unheard-of", 3, "softmax")],
)
def test_detrs_are_told_by_their_outputs(tmp_path: Path, model_type: str, classes: int, expected: str) -> None:
    write(tmp_path, "config.json", {"model_type": model_type, "id2label": {"0": "cat", "1": "dog"}})
    write(tmp_path, "preprocessor_config.json", PREPROCESSOR)
    inputs: Shapes = {"pixel_values": ["b", 3, "h", "w"], "pixel_mask": ["b", 64, 64]}
    write_graph(tmp_path / "model.onnx", make_graph({"logits": ["b", 9, classes], "pred_boxes": ["b", 9, 4]}, inputs))
    recipe = described(tmp_path)
    assert (recipe.head, recipe.activation, recipe.labels) == ("detr", expected, ("cat", "dog"))
    assert recipe.image
    assert (recipe.image.resize, recipe.image.height) == ("stretch", 64)
    write_graph(tmp_path / "model.onnx", make_graph({"logits": ["b", 9, 9], "pred_boxes": ["b", 9, 4]}, inputs))
    with pytest.raises(ImportFailed, match="9 classes and 2 names"):
        describe_folder(tmp_path)


def test_without_names_detrs_are_told_by_their_family(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", make_graph({"logits": ["b", 9, "c"], "pred_boxes": ["b", 9, 4]}))
    for model_type, expected in (("detr", "softmax"), ("rt_detr", "sigmoid")):
        write(tmp_path, "config.json", {"model_type": model_type})
        assert described(tmp_path).activation == expected


def test_a_graph_that_answers_by_itself(tmp_path: Path) -> None:
    inputs = {"images": [1, 3, 640, 640], "orig_target_sizes": [1, 2]}
    write_graph(tmp_path / "m.onnx", make_graph({"labels": [1, 9], "boxes": [1, 9, 4], "scores": [1, 9]}, inputs))
    write(tmp_path, "config.json", {"id2label": {"0": "cat"}})
    write(tmp_path, "preprocessor_config.json", {"size": {"height": 640, "width": 640}})
    recipe = described(tmp_path)
    assert (recipe.head, recipe.labels) == ("end2end", ("cat",))
    assert recipe.image == ImageRecipe(height=640, width=640)


# What is refused


@pytest.mark.parametrize(
    ("outputs", "inputs", "words"),
    [
        ({"o": [1, 6, 9]}, {"x": [1, 320, 320, 3]}, r"its input x is \[1, 320, 320, 3\], \[batch, 3, height, width\]"),
        ({"o": [1, 6, 9]}, {**IMAGE, "sizes": [1, 2]}, "takes sizes beside pictures"),
        ({"o": [1, 6, 9]}, {"input_values": [1, 9]}, "takes no pictures; its inputs are input_values"),
        ({"o": [1, 6, 9]}, {"x": [1, 3, 90000, 90000]}, "its input x is 1 x 90000 x 90000 pixels; the limit is"),
        ({"o": [1, 6, 9]}, {"x": [10**6, 3, "h", 640]}, "its input x is 1000000 x 1 x 640 pixels; the limit is"),
    ],
)
def test_graphs_that_cannot_be_fed_are_refused(tmp_path: Path, outputs: Shapes, inputs: Shapes, words: str) -> None:
    write_graph(tmp_path / "m.onnx", make_graph(outputs, inputs))
    with pytest.raises(UnsupportedArchitecture, match=words):
        describe_folder(tmp_path)


def test_half_precision_inputs_are_refused(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx", make_graph(V8, dtype=TensorProto.FLOAT16))
    with pytest.raises(UnsupportedArchitecture, match="its input images is FLOAT16"):
        describe_folder(tmp_path)


@pytest.mark.parametrize(
    ("capabilities", "recipe", "words"),
    [
        (("detection",), None, ["[vision.image]", "head", "labels"]),
        (("detection",), VisionRecipe(head="yolov8", labels=("a",)), ["[vision.image]"]),
        (
            ("detection",),
            VisionRecipe(image=ImageRecipe(height=8, width=8), head="yolov8", labels=("a",), task="pose"),
            ["keypoint_shape"],
        ),
        (("classification",), VisionRecipe(image=ImageRecipe(height=8, width=8)), ["labels"]),
        (("embedding", "image-embedding"), VisionRecipe(), ["[vision.image]"]),
    ],
)
def test_what_a_card_would_have_to_say_is_said(
    capabilities: tuple[str, ...], recipe: VisionRecipe | None, words: list[str]
) -> None:
    with pytest.raises(ImportFailed, match="its files do not say how it is to be used") as caught:
        check_vision("hf:org/repo", capabilities, recipe)
    assert all(word in str(caught.value.hint) for word in words)
    assert str(caught.value.hint).count("[vision") == len(words)


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x08\x07", b"not an ONNX file"])
def test_files_that_are_no_graph_are_refused(classifier: Path, content: bytes) -> None:
    (classifier / "onnx/model.onnx").write_bytes(content)
    with pytest.raises(CorruptFile, match="no readable ONNX file"):
        describe_folder(classifier)


def test_several_graphs_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_graph(tmp_path / name, make_graph(V8, metadata=ULTRALYTICS))
    with pytest.raises(ImportFailed, match="holds neither safetensors"):
        describe_folder(tmp_path)


# One file


def test_one_file_is_imported(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "best.onnx", make_graph(V8, metadata=ULTRALYTICS))
    assert detect_format(path) == "onnx-file"
    target = tmp_path / "target"
    target.mkdir()
    seen: list[tuple[int, int]] = []
    model = import_onnx_file(path, target, lambda done, total: seen.append((done, total)))
    assert model == describe_folder(target)
    assert (target / "model.onnx").read_bytes() == path.read_bytes()
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    (target / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        import_onnx_file(path, target / "file", lambda *_: None)


def test_one_file_that_takes_no_pictures_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    write_graph(tmp_path / "double.onnx", make_graph({"y": [1]}, {"x": [1]}))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(UnsupportedArchitecture, match=r"/double\.onnx: takes no pictures; its inputs are x"):
        import_onnx_file(tmp_path / "double.onnx", target, lambda *_: None)
    assert not list(target.iterdir())


def test_one_file_whose_weights_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    model = make_graph(V8, metadata=ULTRALYTICS)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2000, np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    with pytest.raises(ImportFailed, match="its weights lie in another file") as caught:
        import_onnx_file(tmp_path / "m.onnx", tmp_path / "target", lambda *_: None)
    assert "name the folder" in str(caught.value.hint)
    assert describe_folder(tmp_path).parameter_count == 2000
