"""A picture's pixels: where Pillow keeps them, by the interface that it has for that (Arrow's C data interface), or
where it never had them."""

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters.base import Rows

MAX_AT_ONCE = 1 << 21
"""Pixels. Pillow keeps up to 16 MB in one piece, and only there can all of them be looked at."""
PIXEL_BYTES = 4
"""Red, green, blue, and one that does not count."""

Pixels = NDArray[np.uint8]
"""`[height, width, 4]`."""


def size_of(picture: Image.Image | Pixels) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def image_of(picture: Image.Image | Pixels) -> Image.Image:
    """For Pillow; pixels are copied."""
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture[..., :3])


def rows_of(picture: Image.Image | Pixels) -> Rows:
    """Of a picture, RGB. Nothing of a small one is copied, and of a larger one a piece at a time."""
    if isinstance(picture, Image.Image):
        return partial(_pieces, picture)
    return lambda first, end: iter([picture[first:end]])


def pixels_of(image: Image.Image) -> Pixels | None:
    """Those of a picture, RGB, to be written: `[height, width, 4]`. `None`: they are not in one piece."""
    width, height = image.size
    try:
        _, exported = image.__arrow_c_array__()
    except ValueError:  # it is too large, or PILLOW_BLOCK_SIZE is set to less
        return None
    pixels = _ArrowArray.from_address(_pointer(exported, b"arrow_array"))
    channels = _ArrowArray.from_address(pixels.children[0])
    return np.asarray(_Lent(image, channels.buffers[1], (height, width, PIXEL_BYTES)))


def _pieces(image: Image.Image, first: int, end: int) -> Iterator[Pixels]:
    width, height = image.size
    if width * height <= MAX_AT_ONCE:
        yield _pixels(image)[first:end]
        return
    num_rows = max(1, MAX_AT_ONCE // width)
    for top in range(first, end, num_rows):
        yield _pixels(image.crop((0, top, width, min(top + num_rows, end))))


def _pixels(image: Image.Image) -> Pixels:
    if (found := pixels_of(image)) is not None:
        return found
    width, height = image.size
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(height, width, PIXEL_BYTES)


class _Lent:
    """An image's memory, for as long as an array looks at it."""

    def __init__(self, image: Image.Image, address: int, shape: tuple[int, ...]) -> None:
        self._image = image
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": "|u1"}


class _ArrowArray(ctypes.Structure):
    """The beginning of `struct ArrowArray`. Pixels are lists of four bytes: the only child's second buffer."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    ]


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
