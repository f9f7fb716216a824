"""A picture → the numbers that a model takes, as its `ImageRecipe` says.

It is resized as Pillow does it, on bytes, as transformers' and torchvision's preprocessing of training did; what
follows is one multiplication and one subtraction a number. A `Resampler` does both at once, to the same bits.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from vmm_adapters.base import Resampler
from vmm_adapters.card import ImageRecipe
from vmm_adapters.types import Resize
from vmm_server.media.pixels import Pixels, image_of, rows_of, size_of
from vmm_server.vision.framing import Floats, Framing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_RESIZED = 1 << 24
"""Pixels of a picture that Pillow resizes whole before its middle is cut out; of a strip 30,000 wide and 1 high they
would be billions."""
_BLACK = 0
_KEPT_PLANS = 64


def prepare(
    image: Image.Image | Pixels, recipe: ImageRecipe, resampler: Resampler | None = None
) -> tuple[Floats, Framing]:
    """A picture (RGB, upright) → float32 `[3, recipe.height, recipe.width]`, and how to get back.

    Any size of picture will do, from one pixel on. `resampler`: does what it takes in Pillow's place.
    """
    plan = _planned(size_of(image), recipe)
    numbers = np.empty((3, recipe.height, recipe.width), np.float32)
    inside = numbers[:, plan.rows, plan.columns]
    if plan.around is not None:
        _surround(numbers, plan.rows, plan.columns, plan.around)
    if recipe.channels == "bgr":
        inside = inside[::-1]
    if resampler is not None and resampler.takes(plan.resize):
        resampler(rows_of(image), plan.resize, inside)
    else:
        _resample(image_of(image), plan.resize, inside)
    return numbers, plan.framing


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for all pictures of one size."""

    framing: Framing
    rows: slice
    """Of the input, that the picture takes."""
    columns: slice
    around: Floats | None
    """What is around it: `[3, 1, 1]`."""
    resize: Resize
    """Its factors are of red, green and blue, in whatever order the model takes them."""


@lru_cache(_KEPT_PLANS)
def _planned(size: tuple[int, int], recipe: ImageRecipe) -> _Plan:
    framing, full_size = _framed(size, recipe)
    left, top = framing.left, framing.top
    right, bottom = min(full_size[0], recipe.width - left), min(full_size[1], recipe.height - top)
    area = (max(0, -left), max(0, -top), right, bottom)
    rows, columns = slice(area[1] + top, bottom + top), slice(area[0] + left, right + left)
    factors = tuple(recipe.scale / std for std in recipe.std)
    shifts = tuple(mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True))
    around = None
    if (rows.stop - rows.start, columns.stop - columns.start) != (recipe.height, recipe.width):
        level = _BLACK if recipe.resize == "shortest" else recipe.pad_value
        around = np.float32(level) * _column(factors) - _column(shifts)
    if recipe.channels == "bgr":
        factors, shifts = factors[::-1], shifts[::-1]
    return _Plan(framing, rows, columns, around, Resize(size, full_size, area, recipe.interpolation, factors, shifts))


def _framed(size: tuple[int, int], recipe: ImageRecipe) -> tuple[Framing, tuple[int, int]]:
    """Where a picture of this size lies in the input, and the width and height that it has there.

    Of `shortest` the shorter side becomes `shortest_edge`, the longer one is cut down to a whole pixel, and the middle
    is cut out, with black around it where there is less (transformers' `resize` with `shortest_edge`, `center_crop`).
    """
    width, height = size
    full_width, full_height = recipe.width, recipe.height
    left = top = 0
    if recipe.resize == "shortest":
        edge, shorter = recipe.shortest_edge or min(recipe.height, recipe.width), min(width, height)
        full_width, full_height = edge * width // shorter, edge * height // shorter
        left, top = -((full_width - recipe.width) // 2), -((full_height - recipe.height) // 2)
    elif recipe.resize == "letterbox":
        scale = min(recipe.width / width, recipe.height / height)
        full_width, full_height = max(1, round(width * scale)), max(1, round(height * scale))
        if recipe.pad_place == "center":
            left, top = (recipe.width - full_width) // 2, (recipe.height - full_height) // 2
    framing = Framing(width, height, recipe.width, recipe.height, full_width / width, full_height / height, left, top)
    return framing, (full_width, full_height)


def _column(numbers: tuple[float, ...]) -> Floats:
    return np.array(numbers, np.float32)[:, None, None]


def _surround(numbers: Floats, rows: slice, columns: slice, colour: Floats) -> None:
    """Write `colour` (`[3, 1, 1]`) to what is not of the picture."""
    numbers[:, : rows.start] = colour
    numbers[:, rows.stop :] = colour
    numbers[:, rows, : columns.start] = colour
    numbers[:, rows, columns.stop :] = colour


def _resample(image: Image.Image, resize: Resize, out: Floats) -> None:
    """By Pillow."""
    (width, height), (full_width, full_height), (left, top, right, bottom) = resize.size, resize.full_size, resize.area
    filtered = _FILTERS[resize.interpolation]
    if full_width * full_height <= _MAX_RESIZED:
        whole = image if image.size == resize.full_size else image.resize(resize.full_size, filtered)
        part = whole if resize.area == (0, 0, *resize.full_size) else whole.crop(resize.area)
    else:  # what is cut away is not made; the same to a rounding
        per_x, per_y = width / full_width, height / full_height
        box = (left * per_x, top * per_y, right * per_x, bottom * per_y)
        part = image.resize((right - left, bottom - top), filtered, box=box)
    out[...] = np.asarray(part).transpose(2, 0, 1)
    out *= _column(resize.factors)
    out -= _column(resize.shifts)
