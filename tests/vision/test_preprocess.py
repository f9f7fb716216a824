"""Pictures become what models were trained on, and what is found comes back to where it was."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from vmm_adapters.base import Resampler
from vmm_adapters.card import ImageRecipe
from vmm_server.media.pixels import MAX_AT_ONCE, rows_of
from vmm_server.vision.framing import Framing
from vmm_server.vision.preprocess import prepare
from vmm_server.vision.results import crop_of

DATA = Path(__file__).parents[1] / "data"
CLIP = ImageRecipe(
    height=224,
    width=224,
    resize="shortest",
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
sides = st.integers(1, 300)


@st.composite
def recipes(draw: st.DrawFn) -> ImageRecipe:
    resize = draw(st.sampled_from(("stretch", "shortest", "letterbox")))
    edge = draw(st.none() | st.integers(16, 96)) if resize == "shortest" else None
    return ImageRecipe(
        height=draw(st.integers(16, 96)),
        width=draw(st.integers(16, 96)),
        resize=resize,
        shortest_edge=edge,
        pad_value=0,
        pad_place=draw(st.sampled_from(("center", "top-left"))),
    )


@st.composite
def any_recipes(draw: st.DrawFn) -> ImageRecipe:
    """With everything that they may say."""
    channels = st.tuples(*[st.floats(0.125, 1)] * 3)
    changes = {
        "interpolation": draw(st.sampled_from(("nearest", "bilinear", "bicubic", "lanczos"))),
        "channels": draw(st.sampled_from(("rgb", "bgr"))),
        "scale": draw(st.sampled_from((1.0, 1 / 255))),
        "mean": draw(channels | st.just((0.0, 0.0, 0.0))),
        "std": draw(channels),
        "pad_value": draw(st.integers(0, 255)),
    }
    return draw(recipes()).model_copy(update=changes)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8))


def picture_of(name: str) -> Image.Image:
    return Image.open(DATA / "media" / f"{name}.png").convert("RGB")


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
@pytest.mark.parametrize("form", ["", "-rotated", "-strip"])
def test_clip_gets_what_transformers_gives_it(name: str, form: str) -> None:
    """Every 16th number that `CLIPImageProcessorPil` of transformers 5.23 makes with the recipe above, of the picture,
    turned by 90 degrees and resized to 997 by 61."""
    image = picture_of(name)
    image = {"": image, "-rotated": image.rotate(90, expand=True), "-strip": image.resize((997, 61))}[form]
    numbers, _ = prepare(image, CLIP)
    expected = np.load(DATA / "vision" / "clip_pixels.npz")[name + form]
    np.testing.assert_allclose(numbers[:, 5::16, 5::16], expected, atol=1e-4)


def test_numbers_are_those_of_the_recipe() -> None:
    picture = Image.fromarray(np.array([[[255, 100, 0], [0, 50, 10]]], np.uint8))
    recipe = ImageRecipe(height=1, width=2, mean=(0.5, 0.25, 0), std=(0.5, 2, 4))
    numbers, _ = prepare(picture, recipe)
    np.testing.assert_allclose(numbers[:, 0, 0], [1, (100 / 255 - 0.25) / 2, 0], atol=1e-6)
    turned, _ = prepare(picture, ImageRecipe(height=1, width=2, scale=1, channels="bgr"))
    np.testing.assert_array_equal(turned[:, 0], [[0, 10], [100, 50], [255, 0]])


def test_padding_is_where_the_recipe_has_it() -> None:
    picture = Image.new("RGB", (40, 20), (200, 200, 200))
    in_the_middle, _ = prepare(picture, ImageRecipe(height=80, width=80, resize="letterbox", scale=1))
    assert set(np.unique(in_the_middle[:, :20])) == set(np.unique(in_the_middle[:, 60:])) == {114}
    assert set(np.unique(in_the_middle[:, 20:60])) == {200}
    on_top, _ = prepare(picture, ImageRecipe(height=80, width=80, resize="letterbox", scale=1, pad_place="top-left"))
    assert set(np.unique(on_top[:, 40:])) == {114}
    assert set(np.unique(on_top[:, :40])) == {200}


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_each_colour_has_its_own_mean_and_deviation_in_the_order_that_the_model_takes(channels: str) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    recipe = ImageRecipe(height=8, width=12, channels=channels, scale=1 / 255, mean=mean, std=std)
    image = noise(12, 8)
    pixels = np.asarray(image)[..., :: 1 if channels == "rgb" else -1]
    np.testing.assert_allclose(
        prepare(image, recipe)[0], ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=0, atol=1e-5
    )


@given(sides, sides, recipes())
def test_any_picture_becomes_what_the_model_takes(width: int, height: int, recipe: ImageRecipe) -> None:
    numbers, framing = prepare(Image.new("RGB", (width, height), "white"), recipe)
    assert numbers.shape == (3, recipe.height, recipe.width)
    assert numbers.dtype == np.float32
    assert numbers.flags.c_contiguous
    assert numbers.max() == pytest.approx(1)
    assert (framing.width, framing.height) == (width, height)


@given(sides, sides, any_recipes())
@example(640, 427, CLIP)
@example(640, 427, ImageRecipe(height=640, width=640, resize="letterbox"))
def test_a_resampler_makes_the_same_numbers(resampler: Resampler, width: int, height: int, recipe: ImageRecipe) -> None:
    image = noise(width, height)
    numbers, framing = prepare(image, recipe)
    pixels = np.array(image.convert("RGBX"))
    for same_numbers, same_framing in (
        prepare(image, recipe, resampler),
        prepare(pixels, recipe, resampler),
        prepare(pixels, recipe),
    ):
        np.testing.assert_array_equal(same_numbers, numbers)
        assert same_framing == framing


@pytest.mark.parametrize("size", [(2000, 1500), (1500, 2000), (30_000, 100)])
@pytest.mark.parametrize("recipe", [CLIP, ImageRecipe(height=320, width=320, resize="letterbox")])
def test_a_large_picture_is_resampled_in_pieces(
    resampler: Resampler, size: tuple[int, int], recipe: ImageRecipe
) -> None:
    assert size[0] * size[1] > MAX_AT_ONCE
    image = noise(*size)
    np.testing.assert_array_equal(prepare(image, recipe, resampler)[0], prepare(image, recipe)[0])


def test_pixels_keep_their_picture() -> None:
    rows = rows_of(noise(1200, 900))
    (pixels,) = rows(100, 300)
    del rows
    gc.collect()
    expected = np.asarray(noise(1200, 900))[100:300]
    np.testing.assert_array_equal(pixels[..., :3], expected)


LOOK = """
import numpy as np
from PIL import Image
from vmm_server.media.pixels import rows_of
expected = np.random.default_rng(1).integers(0, 256, (300, 200, 3), np.uint8)
image = Image.fromarray(expected)
try:
    image.__arrow_c_array__()
except ValueError:
    (pixels,) = rows_of(image)(0, 300)
    assert np.array_equal(pixels[..., :3], expected)
    print("the same")
"""


def test_pixels_that_are_not_in_one_piece() -> None:
    """As Pillow keeps them where it was told to use small blocks."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PILLOW_BLOCK_SIZE": "64k", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("the same\n", "")


@given(sides, sides, recipes(), st.data())
def test_a_box_that_is_drawn_comes_back(width: int, height: int, recipe: ImageRecipe, data: st.DataObject) -> None:
    """To a pixel of the picture, or of the model's input where that is the coarser one."""
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top:bottom, left:right] = 255
    numbers, framing = prepare(Image.fromarray(picture), recipe)
    assume(numbers[0].max() > 0.25)  # neither too thin to be seen, nor cut off
    is_box = numbers[0] > numbers[0].max() / 2
    rows, columns = np.flatnonzero(is_box.any(1)), np.flatnonzero(is_box.any(0))
    found = framing.boxes(np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32))[0]
    kept = framing.boxes(np.array([[0, 0, recipe.width, recipe.height]], np.float32))[0]
    expected = np.clip([left, top, right, bottom], np.tile(kept[:2], 2), np.tile(kept[2:], 2))
    pixel = np.maximum(1, 1 / np.array([framing.scale_x, framing.scale_y] * 2))
    assert np.all(np.abs(found - expected) <= pixel + 1e-3)


@given(sides, sides, recipes(), st.floats(0, 1), st.floats(0, 1))
def test_points_there_and_back(width: int, height: int, recipe: ImageRecipe, x: float, y: float) -> None:
    _, framing = prepare(Image.new("RGB", (width, height)), recipe)
    there = [x * width * framing.scale_x + framing.left, y * height * framing.scale_y + framing.top]
    np.testing.assert_allclose(framing.points(np.array([there])), [[x * width, y * height]], atol=1e-2)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
@pytest.mark.parametrize("resize", ["stretch", "shortest", "letterbox"])
def test_a_strip_takes_no_more_than_its_middle(
    size: tuple[int, int], resize: Literal["stretch", "shortest", "letterbox"]
) -> None:
    """Resized whole, its 30,000 pixels would be 20 GB."""
    width, height = size
    picture = np.tile(np.arange(max(size), dtype=np.uint16)[:, None] // 118, (1, 3)).astype(np.uint8)
    recipe = ImageRecipe(height=224, width=224, resize=resize, scale=1, pad_value=0)
    numbers, framing = prepare(Image.fromarray(picture.reshape(height, width, 3)), recipe)
    assert numbers.shape == (3, 224, 224)
    assert abs(numbers[0, 111:113, 111:113].max() - 127) <= 1
    np.testing.assert_allclose(
        framing.points(np.array([[112.0, 112.0]])), [[width / 2, height / 2]], rtol=2e-3, atol=0.6
    )


def ellipse(width: int, height: int, box: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = box
    y, x = np.mgrid[:height, :width] + 0.5
    return np.asarray(
        1 - ((2 * x - left - right) / (right - left)) ** 2 - ((2 * y - top - bottom) / (bottom - top)) ** 2
    )


@pytest.mark.parametrize(("width", "height"), [(640, 480), (101, 899), (517, 333), (2000, 1500)])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_a_mask_comes_back(width: int, height: int, resize: Literal["letterbox", "stretch"]) -> None:
    """Drawn as prototypes of a quarter of the input, where the framing puts it."""
    _, framing = prepare(Image.new("RGB", (width, height)), ImageRecipe(height=320, width=320, resize=resize))
    box = np.array([0.2 * width, 0.3 * height, 0.7 * width, 0.9 * height], np.float32)
    shift = np.array([framing.left, framing.top] * 2)
    placed = (box * np.array([framing.scale_x, framing.scale_y] * 2) + shift) / 4
    prototypes = np.stack([ellipse(80, 80, tuple(placed)), np.ones((80, 80))]).astype(np.float32)
    mask = framing.mask(np.array([2, 0], np.float32), prototypes, box)
    left, top, right, bottom = crop_of(box)
    expected = ellipse(width, height, tuple(box))[top:bottom, left:right] > 0
    assert mask.shape == expected.shape
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_a_mask_at_the_edge_of_its_picture() -> None:
    framing = Framing(3, 2, 32, 32, 32 / 3, 16.0)
    mask = framing.mask(np.ones(1, np.float32), np.ones((1, 8, 8), np.float32), np.array([2.5, 1.5, 3, 2], np.float32))
    assert mask.tolist() == [[True]]
