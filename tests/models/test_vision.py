"""Models that look at pictures, loaded on real runtimes: what they answer, and what is refused at once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import MakeSettings
from tests.fixtures.shapes import KINDS, held_out, portrait, scene
from tests.shown_pictures import shown
from tests.vision.average_precision import Boxes, mean_average_precision

from vmm_adapters.card import ImageRecipe, VisionRecipe
from vmm_adapters.types import EncoderInput
from vmm_server.errors import GenerationFailed, ModelLoadFailed
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.importers.clip import import_clip
from vmm_server.models.loading import load_model
from vmm_server.models.ready import Sampled
from vmm_server.models.router import NO_LOAD, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.models.vision import ReadyClassifier, ReadyClip, ReadyDetector
from vmm_server.settings import Settings
from vmm_server.vision.results import DetectionParams

from .fake_machine import model
from .tiny_pictures import DIM, VOCAB, save_classifier, save_text, weights

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MEDIA = ROOT / "tests" / "data" / "media"
YOLOX = ROOT.parent / "shared" / "assets" / "yolox-nano" / "yolox_nano.onnx"
COCO = YOLOX.with_name("coco.txt")
REFERENCE: dict[str, Any] = dict(np.load(FIXTURES / "clip_reference.npz"))
ADAPTERS = [Placement("onnxruntime", "CPU"), Placement("openvino", "CPU")]
SMALL = ImageRecipe(height=8, width=8)

pytestmark = pytest.mark.runtime


@pytest.fixture(params=ADAPTERS, ids=str)
def placement(request: pytest.FixtureRequest) -> Placement:
    found = request.param
    assert isinstance(found, Placement)
    return found


@pytest.fixture
def quick(settings: MakeSettings) -> Settings:
    return settings(num_threads=1)


def use(ready: Any, body: Callable[[Any], Awaitable[None]]) -> None:
    """Run `body` on a loaded model, which is what the pool and the metrics ask for, and close it."""
    assert isinstance(ready, Sampled)

    async def run() -> None:
        try:
            await body(ready)
            num_done = ready.stats.computed_size
            await ready.try_once()
            assert ready.stats.computed_size == num_done + 1
            assert ready.failure is None
            assert ready.memory_bytes > 0
            assert ready.load == NO_LOAD
        finally:
            await ready.aclose()
            await ready.aclose()

    asyncio.run(run())


def detector_in(folder: Path, **told: Any) -> InstalledModel:
    image = ImageRecipe(height=160, width=160, resize="letterbox")
    vision = VisionRecipe(**{"image": image, "head": "yolov8", "labels": KINDS} | told)
    return model("shapes", folder=folder, capabilities=("detection",), vision=vision, context_length=0)


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes((FIXTURES / "detector.onnx").read_bytes())
    return tmp_path


def test_a_detector_finds_shapes(shapes_folder: Path, placement: Placement, quick: Settings) -> None:
    """As it does when it is asked one picture at a time (tests/vision/test_fixtures.py), whatever their sizes."""
    ready = load_model(detector_in(shapes_folder), placement, 0, quick)
    assert isinstance(ready, ReadyDetector)
    scenes = [scene(seed, *((160, 160) if seed % 2 else (200, 150))) for seed in range(60)]

    async def body(ready: ReadyDetector) -> None:
        assert ready.labels == KINDS
        computed = await ready.detect(shown([picture for picture, _ in scenes]), DetectionParams(threshold=0.05))
        found = [Boxes(each.boxes, each.class_ids, each.scores) for each in computed.results]
        truth = [
            Boxes(
                np.array([shape.box for shape in shapes], np.float32).reshape(-1, 4),
                np.array([KINDS.index(shape.kind) for shape in shapes]),
            )
            for _, shapes in scenes
        ]
        assert mean_average_precision(found, truth) >= 0.93
        alone = (await ready.detect(shown([scenes[3][0]]), DetectionParams(threshold=0.05))).results[0]
        np.testing.assert_allclose(alone.boxes[:2], computed.results[3].boxes[:2], atol=0.1)
        few = DetectionParams(threshold=0.05, max_detections=1, class_ids=frozenset((0, 1)))
        assert all(
            len(each) <= 1 and set(each.class_ids) <= {0, 1}
            for each in (await ready.detect(shown([picture for picture, _ in scenes[:8]]), few)).results
        )
        for size in ((1, 1), (3, 500)):
            assert (await ready.detect(shown([np.zeros((*size, 3), np.uint8)]), DetectionParams())).results

    use(ready, body)


def test_a_detector_without_names_numbers_its_classes(shapes_folder: Path, quick: Settings) -> None:
    ready = load_model(detector_in(shapes_folder, labels=None), ADAPTERS[0], 0, quick)

    async def body(ready: ReadyDetector) -> None:
        assert ready.labels == tuple(f"class {number}" for number in range(len(KINDS)))

    use(ready, body)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"image": None}, "vision.image"),
        ({"head": None}, "vision.head"),
        ({"labels": (*KINDS, *KINDS)}, "vision.labels"),
    ],
)
def test_what_is_not_said_of_a_detector_is_named(
    shapes_folder: Path, placement: Placement, quick: Settings, told: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot load 'shapes:latest'") as caught:
        load_model(detector_in(shapes_folder, **told), placement, 0, quick)
    assert says in (caught.value.hint or "")


def test_a_folder_without_a_graph(tmp_path: Path, quick: Settings) -> None:
    with pytest.raises(ModelLoadFailed, match=r"no model\.onnx"):
        load_model(detector_in(tmp_path), ADAPTERS[0], 0, quick)


@pytest.mark.skipif(not YOLOX.is_file(), reason="needs yolox_nano.onnx in ../shared/assets")
@pytest.mark.parametrize(("name", "label", "least"), [("chelsea", "cat", 0.5), ("coffee", "cup", 0.8)])
def test_yolox_sees_photographs(placement: Placement, quick: Settings, name: str, label: str, least: float) -> None:
    image = ImageRecipe(height=416, width=416, resize="letterbox", scale=1, channels="bgr", pad_place="top-left")
    labels = tuple(line.strip() for line in COCO.read_text().splitlines() if line.strip())
    vision = VisionRecipe(image=image, head="yolox", labels=labels)
    installed = model("yolox", folder=YOLOX.parent, capabilities=("detection",), vision=vision, context_length=0)
    picture = np.asarray(Image.open(MEDIA / f"{name}.png").convert("RGB"))

    async def body(ready: ReadyDetector) -> None:
        best = (await ready.detect(shown([picture]), DetectionParams())).results[0]
        assert ready.labels[best.class_ids[0]] == label
        assert best.scores[0] > least
        width, height = best.boxes[0][2:] - best.boxes[0][:2]
        assert width * height > 0.2 * picture.shape[0] * picture.shape[1]

    use(load_model(installed, placement, 0, quick), body)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


def classifier_in(folder: Path, **told: Any) -> InstalledModel:
    vision = VisionRecipe(**{"image": SMALL, "labels": ("red", "green", "blue", "grey")} | told)
    return model("colours", folder=folder, capabilities=("classification",), vision=vision, context_length=0)


@pytest.mark.parametrize("has_softmax", [False, True])
def test_a_classifier_gives_probabilities(
    tmp_path: Path, placement: Placement, quick: Settings, has_softmax: bool
) -> None:
    """Whether its graph ends with logits or with them."""
    matrix = 3 * weights(1, 3, 4)
    save_classifier(tmp_path / "model.onnx", matrix, softmax=has_softmax)
    colours = np.random.default_rng(0).integers(0, 256, (20, 3), np.uint8)

    async def body(ready: ReadyClassifier) -> None:
        assert isinstance(ready, ReadyClassifier)
        assert ready.labels == ("red", "green", "blue", "grey")
        pictures = [np.broadcast_to(colour, (5, 7, 3)).copy() for colour in colours]
        for colour, row in zip(colours, (await ready.classify(shown(pictures))).results, strict=True):
            np.testing.assert_allclose(row, softmax(colour.astype(np.float32) / 255 @ matrix), atol=1e-4)

    use(load_model(classifier_in(tmp_path), placement, 0, quick), body)


def test_a_classifier_does_what_its_card_says(tmp_path: Path, quick: Settings) -> None:
    save_classifier(tmp_path / "model.onnx", np.eye(3, dtype=np.float32))
    told = {"labels": None, "activation": "sigmoid"}

    async def body(ready: ReadyClassifier) -> None:
        assert ready.labels == ("class 0", "class 1", "class 2")
        (row,) = (await ready.classify(shown([np.array([[[0, 255, 51]]], np.uint8)]))).results
        np.testing.assert_allclose(row, 1 / (1 + np.exp([0, -1, -0.2])), atol=1e-4)

    use(load_model(classifier_in(tmp_path, **told), ADAPTERS[0], 0, quick), body)


def test_a_classifier_with_other_names_than_classes(tmp_path: Path, quick: Settings) -> None:
    save_classifier(tmp_path / "model.onnx", weights(1, 3, 5))
    with pytest.raises(ModelLoadFailed, match="5 classes and 4 names") as caught:
        load_model(classifier_in(tmp_path), ADAPTERS[0], 0, quick)
    assert "vision.labels" in (caught.value.hint or "")


def test_what_is_no_number_is_an_error(tmp_path: Path, quick: Settings) -> None:
    save_classifier(tmp_path / "model.onnx", np.full((3, 4), np.nan, np.float32))

    async def body(ready: ReadyClassifier) -> None:
        with pytest.raises(GenerationFailed, match="NaN"):
            await ready.classify(shown([np.zeros((5, 5, 3), np.uint8)]))

    use(load_model(classifier_in(tmp_path), ADAPTERS[0], 0, quick), body)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> InstalledModel:
    """The one of tests/fixtures, as it is imported."""
    folder = tmp_path_factory.mktemp("clip")
    imported = import_clip(FIXTURES / "clip-small", folder)
    return model(
        "clip",
        folder=folder,
        capabilities=imported.capabilities,
        context_length=imported.context_length,
        embedding=imported.embedding,
        vision=imported.vision,
    )


def test_clip_says_what_transformers_says(clip: InstalledModel, placement: Placement, quick: Settings) -> None:
    looks = [look for look in held_out() if look.caption in set(REFERENCE["captions"])]
    seeds = [int(seed) for seed in REFERENCE["seeds"]]
    pictures = [portrait(seed, look) for seed, look in zip(seeds, looks, strict=True)]

    async def body(ready: ReadyClip) -> None:
        assert isinstance(ready, ReadyEncoder)
        assert isinstance(ready, ReadyClip)
        assert ready.recipe.normalize
        vectors = (await ready.embed_pictures(shown(pictures))).results
        np.testing.assert_allclose(np.stack(vectors), REFERENCE["portraits"], atol=1e-4)
        assert ready.dim == len(vectors[0])
        encoded = [EncoderInput(ready.tokenizer.encode(str(text)).ids) for text in REFERENCE["texts"]]
        rows = np.stack(await ready.batcher.call(encoded))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, REFERENCE["text_features"], atol=1e-4)

    use(load_model(clip, placement, 0, quick), body)


def test_clip_in_bf16_says_nearly_that(clip: InstalledModel, settings: MakeSettings) -> None:
    pictures = [portrait(seed, look) for seed, look in zip(range(8), held_out(), strict=False)]
    found = []
    for precision in ("f32", "bf16"):

        async def body(ready: ReadyClip) -> None:
            found.append(np.stack((await ready.embed_pictures(shown(pictures))).results))

        use(
            load_model(clip, Placement("openvino", "CPU"), 0, settings(num_threads=1, vision_precision=precision)), body
        )
    exact, quick = found
    assert (exact * quick).sum(axis=1).min() > 0.9995
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert np.array_equal(exact, quick) != has_bf16


def siglip_in(folder: Path, table: NDArray[np.float32], matrix: NDArray[np.float32]) -> InstalledModel:
    """Two graphs as exports of SigLIP are: no mask, `pooler_output`."""
    save_text(folder / "onnx" / "text_model.onnx", table, masked=False, output="pooler_output")
    save_classifier(folder / "onnx" / "vision_model.onnx", matrix, output="pooler_output")
    (folder / "tokenizer.json").write_bytes((FIXTURES / "clip-small" / "tokenizer.json").read_bytes())
    vision = VisionRecipe(image=SMALL, text_length=6, pad_token_id=1, logit_scale=10, logit_bias=-10)
    return model(
        "siglip", folder=folder, capabilities=("image-embedding", "embedding"), vision=vision, context_length=64
    )


def test_siglip_reads_its_padding(tmp_path: Path, placement: Placement, quick: Settings) -> None:
    table, matrix = weights(3, VOCAB, DIM), weights(4, 3, DIM)

    async def body(ready: ReadyClip) -> None:
        assert (ready.dim, ready.context_length) == (DIM, 6)
        rows = await ready.batcher.call([EncoderInput([5, 7, 2]), EncoderInput([4])])
        np.testing.assert_allclose(rows[0], table[[5, 7, 2, 1, 1, 1]].sum(0), atol=1e-4)
        np.testing.assert_allclose(rows[1], table[[4, 1, 1, 1, 1, 1]].sum(0), atol=1e-4)
        (vector,) = (await ready.embed_pictures(shown([np.full((3, 3, 3), 255, np.uint8)]))).results
        np.testing.assert_allclose(vector, matrix.sum(0) / np.linalg.norm(matrix.sum(0)), atol=1e-4)

    use(load_model(siglip_in(tmp_path, table, matrix), placement, 0, quick), body)


def test_texts_of_a_batch_do_not_see_its_padding(tmp_path: Path, placement: Placement, quick: Settings) -> None:
    table = weights(3, VOCAB, DIM)
    installed = siglip_in(tmp_path, table, weights(4, 3, DIM))
    save_text(tmp_path / "onnx" / "text_model.onnx", table)
    vision = VisionRecipe(image=SMALL, pad_token_id=1)

    async def body(ready: ReadyClip) -> None:
        ids = [[5, 7, 2, 9, 3, 3, 4, 8, 6, 10, 11], [4, 4, 5, 6, 7, 8, 9, 10, 11, 3]]
        rows = await ready.batcher.call([EncoderInput(each) for each in ids])
        for row, each in zip(rows, ids, strict=True):
            np.testing.assert_allclose(row, table[each].sum(0), atol=1e-4)

    use(load_model(replace(installed, vision=vision), placement, 0, quick), body)


def test_halves_of_two_models_are_refused(tmp_path: Path, quick: Settings) -> None:
    installed = siglip_in(tmp_path, weights(3, VOCAB, DIM), weights(4, 3, DIM + 1))
    with pytest.raises(ModelLoadFailed, match="texts have 5 numbers, those of pictures 6"):
        load_model(installed, ADAPTERS[0], 0, quick)
    (tmp_path / "onnx" / "text_model.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match=r"text_model\.onnx or vision_model\.onnx is missing"):
        load_model(installed, ADAPTERS[0], 0, quick)
