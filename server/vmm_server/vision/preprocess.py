"""A picture → the numbers that a model takes, as its `ImageRecipe` says.

It is resized by Pillow, on bytes, as transformers' and torchvision's preprocessing of training did; what follows is one
multiplication and one subtraction a number.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters.card import ImageRecipe
from vmm_server.vision.framing import Floats, Framing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_RESIZED = 1 << 24
"""Pixels of a picture that is resized whole before its middle is cut out; of a strip 30,000 wide and 1 high they would
be billions."""


def prepare(image: Image.Image, recipe: ImageRecipe) -> tuple[Floats, Framing]:
    """A picture (RGB, upright) → float32 `[3, recipe.height, recipe.width]`, and how to get back.

    Any size of picture will do, from one pixel on.
    """
    if recipe.resize == "shortest":
        return _cut_out(image, recipe)
    width, height = image.size
    inner_width, inner_height = recipe.width, recipe.height
    left = top = 0
    if recipe.resize == "letterbox":
        scale = min(recipe.width / width, recipe.height / height)
        inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
        if recipe.pad_place == "center":
            left, top = (recipe.width - inner_width) // 2, (recipe.height - inner_height) // 2
    pixels = np.asarray(_resized(image, inner_width, inner_height, recipe))
    framing = Framing(width, height, recipe.width, recipe.height, inner_width / width, inner_height / height, left, top)
    return _numbers(pixels, recipe, left, top), framing


def _cut_out(image: Image.Image, recipe: ImageRecipe) -> tuple[Floats, Framing]:
    """The shorter side to `shortest_edge`, the longer one cut down to a whole pixel, then the middle, on black where
    there is less of it (transformers' `resize` with `shortest_edge`, then `center_crop`)."""
    width, height = image.size
    edge = recipe.shortest_edge or min(recipe.height, recipe.width)
    shorter = min(width, height)
    full_width, full_height = edge * width // shorter, edge * height // shorter
    left, top = (full_width - recipe.width) // 2, (full_height - recipe.height) // 2
    area = (left, top, left + recipe.width, top + recipe.height)
    if full_width * full_height <= _MAX_RESIZED:
        middle = _resized(image, full_width, full_height, recipe).crop(area)
    else:  # what is cut away is not made; the same to a rounding
        x0, y0, x1, y1 = max(0, left), max(0, top), min(full_width, area[2]), min(full_height, area[3])
        per_x, per_y = width / full_width, height / full_height
        box = (x0 * per_x, y0 * per_y, x1 * per_x, y1 * per_y)
        part = image.resize((x1 - x0, y1 - y0), _FILTERS[recipe.interpolation], box=box)
        middle = Image.new("RGB", (recipe.width, recipe.height))
        middle.paste(part, (x0 - left, y0 - top))
    framing = Framing(width, height, recipe.width, recipe.height, full_width / width, full_height / height, -left, -top)
    return _numbers(np.asarray(middle), recipe, 0, 0), framing


def _resized(image: Image.Image, width: int, height: int, recipe: ImageRecipe) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), _FILTERS[recipe.interpolation])


def _numbers(pixels: NDArray[np.uint8], recipe: ImageRecipe, left: int, top: int) -> Floats:
    """`(pixel * scale - mean) / std` of an input in which `pixels` lie at `left, top` and padding around them."""
    height, width = pixels.shape[:2]
    numbers = np.empty((3, recipe.height, recipe.width), np.float32)
    if (height, width) != numbers.shape[1:]:
        numbers.fill(recipe.pad_value)
    inside = pixels if recipe.channels == "rgb" else pixels[..., ::-1]
    numbers[:, top : top + height, left : left + width] = inside.transpose(2, 0, 1)
    factors = [recipe.scale / std for std in recipe.std]
    if set(factors) != {1.0}:
        numbers *= np.array(factors, np.float32)[:, None, None]
    if any(recipe.mean):
        shifts = [mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
        numbers -= np.array(shifts, np.float32)[:, None, None]
    return numbers
