"""The small CLIP of tests/fixtures, imported by the server: its vectors are those of transformers, and they see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.fixtures.shapes import COLOURS, KINDS, LOOKS, PLACES, held_out, portrait, scene
from tokenizers import Tokenizer

from vmm_adapters.card import ImageRecipe
from vmm_server.models.importers.clip import import_clip
from vmm_server.vision.preprocess import prepare

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "clip-small"
NUM_EACH = 8
"""Pictures of every held-out look."""
REFERENCE: dict[str, Any] = dict(np.load(FIXTURES / "clip_reference.npz"))


class Clip:
    """The imported folder, run without batching."""

    def __init__(self, folder: Path) -> None:
        imported = import_clip(FOLDER, folder)
        assert imported.vision is not None
        assert imported.vision.image is not None
        assert imported.vision.logit_scale is not None
        self.recipe: ImageRecipe = imported.vision.image
        self.logit_scale: float = imported.vision.logit_scale
        self._text, self._vision = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in ("text_model.onnx", "vision_model.onnx")
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def pictures(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """`[pictures, 64]`, of length 1."""
        numbers = np.stack([prepare(Image.fromarray(picture), self.recipe)[0] for picture in pictures])
        return unit(self._vision.run(["image_embeds"], {"pixel_values": numbers})[0])

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[texts, 64]`, of length 1."""
        encoded = [self._tokenizer.encode(text).ids for text in texts]
        longest = max(map(len, encoded))
        mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded])
        ids = np.array([ids + [0] * (longest - len(ids)) for ids in encoded])
        return unit(self._text.run(["text_embeds"], {"input_ids": ids, "attention_mask": mask})[0])


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(tmp_path_factory.mktemp("clip"))


def reference_pictures() -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Portraits of every fifth held-out look, and scenes of 150 x 100 pixels, of the seeds that the reference names."""
    seeds = [int(seed) for seed in REFERENCE["seeds"]]
    looks = [look for look in held_out() if look.caption in set(REFERENCE["captions"])]
    portraits = [portrait(seed, look) for seed, look in zip(seeds, looks, strict=True)]
    return portraits, [scene(seed, 150, 100)[0] for seed in seeds]


def test_the_reference_is_of_these_pictures() -> None:
    portraits, scenes = reference_pictures()
    sums = [int(picture.sum(dtype=np.int64)) for picture in portraits + scenes]
    assert sums == REFERENCE["checksums"].tolist()


@pytest.mark.runtime
def test_vectors_are_those_of_transformers(clip: Clip) -> None:
    """Scenes are scaled and cut as well, which rounds to whole bytes: Pillow's bicubic filter in both."""
    portraits, scenes = reference_pictures()
    np.testing.assert_allclose(clip.pictures(portraits), REFERENCE["portraits"], atol=1e-4)
    np.testing.assert_allclose(clip.pictures(scenes), REFERENCE["scenes"], atol=1e-4)
    texts = [str(text) for text in REFERENCE["texts"]]
    np.testing.assert_allclose(clip.texts(texts), REFERENCE["text_features"], atol=1e-4)
    logits = clip.logit_scale * clip.pictures(portraits) @ clip.texts(texts).T
    np.testing.assert_allclose(logits, REFERENCE["logits"], atol=1e-3)


@pytest.mark.runtime
def test_it_names_what_it_never_saw(clip: Clip) -> None:
    """Pictures of combinations that were not in its training: each against all captions, and against single words."""
    looks = held_out() * NUM_EACH
    vectors = clip.pictures([portrait(seed, look) for seed, look in enumerate(looks)])

    def share(prompts: Sequence[str], wanted: Sequence[str]) -> float:
        best = (vectors @ clip.texts(prompts).T).argmax(1)
        return float(np.mean([prompts[index] == prompt for index, prompt in zip(best, wanted, strict=True)]))

    captions = [look.caption for look in LOOKS]
    assert share(captions, [look.caption for look in looks]) >= 0.85
    assert share([f"a {word} shape" for word in COLOURS], [f"a {look.colour} shape" for look in looks]) >= 0.98
    assert share([f"a {word}" for word in KINDS], [f"a {look.kind}" for look in looks]) >= 0.85
    places = [f"a shape in the {look.place}" for look in looks]
    assert share([f"a shape in the {word}" for word in PLACES], places) >= 0.98
