"""JPEG files, decoded right into memory that is looked at. Pillow has libjpeg-turbo decode line by line, and sorts the
bytes of each; what comes out is the same, for both ask for the exact transform and the smooth upsampling."""

import struct
from importlib import import_module
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_server.media.pixels import PIXEL_BYTES, pixels_of

_START = b"\xff\xd8"
_BASELINE, _SCAN = 0xFFC0, 0xFFDA
_PASSED_OVER = {0xFFC4, 0xFFDB, 0xFFDD, 0xFFE0, 0xFFFE}
"""Tables, how often there are restarts, JFIF's own segment, comments."""
_BITS = 8
_COLOURS = 3


def decode_jpeg(image: Image.Image, file: IO[bytes]) -> Image.Image | None:
    """The picture, RGB, of a file that Pillow has opened as `image`; `None` where Pillow has to decode it, or to say
    what is wrong with it."""
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    made = Image.new("RGB", image.size, None)
    if (pixels := pixels_of(made)) is None:
        return None
    file.seek(0)
    return None if _decoded(file.read(), pixels) is None else made


def decode_plain_jpeg(file: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels, upright, `[height, width, 4]` as Pillow keeps them, of a whole file without anything to be careful
    about: one scan of three colours, so that its pixels bound the time that it takes, and no word of how it is turned.
    `None`: not such a file, or a damaged one."""
    size = _size_of_plain(file)
    if size is None or not 0 < size[0] * size[1] <= max_pixels:
        return None
    return _decoded(file, np.empty((size[1], size[0], PIXEL_BYTES), np.uint8))


def _size_of_plain(file: bytes) -> tuple[int, int] | None:
    """Width and height, from the segments before the first scan (ITU-T T.81, annex B.1 and B.2)."""
    if not file.startswith(_START):
        return None
    size, at = None, len(_START)
    try:
        while True:
            marker, length = struct.unpack_from(">HH", file, at)
            if marker == _BASELINE and size is None:
                num_bits, height, width, num_colours = struct.unpack_from(">BHHB", file, at + 4)
                if (num_bits, num_colours) != (_BITS, _COLOURS):
                    return None
                size = width, height
            elif marker == _SCAN:
                return size if file[at + 4] == _COLOURS else None
            elif marker not in _PASSED_OVER:
                return None
            at += 2 + length
    except (struct.error, IndexError):  # it ends before
        return None


def _decoded(file: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """`pixels`, written to."""
    try:
        # the library takes memory when it is needed
        found = import_module("simplejpeg").decode_jpeg(file, colorspace="RGBX", buffer=pixels)
    except ValueError:
        return None
    return pixels if found.shape == pixels.shape else None
