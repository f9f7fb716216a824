"""An image as a request sends it → pixels. Blocks: for a thread.

Nothing is decoded before its size is known to be bearable: first the bytes, then the pixels that the file's header
promises. Nothing here fetches: that is `fetching`'s, for those who have it.
"""

import base64
import binascii
import io
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.media.jpeg import decode_jpeg, decode_plain_jpeg
from vmm_server.media.pixels import Pixels
from vmm_server.requests import GivenImage

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Of Pillow's decoders, those that pictures of the web need."""
_TURNS: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation (Exif 2.32, 4.6.4 A); 1 is upright."""
_DAMAGE = (*(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error),)
"""What Pillow raises for it."""
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_QUICK_BYTES = 1 << 20
"""Of a JPEG file; one of a million pixels has fewer, unless it is hardly compressed."""
_BLANKS = re.compile(r"[ \t\r\n]+")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the images of one request may be."""

    max_bytes: int = 20 * 1024**2
    """Of a file, compressed."""
    max_pixels: int = 50_000_000
    """Width by height of an image: what today's cameras make."""
    max_total_pixels: int = 100_000_000
    """Of all images together; 300 MB as arrays."""


LIMITS = ImageLimits()


def read_images(given: Sequence[GivenImage], limits: ImageLimits = LIMITS) -> tuple[NDArray[np.uint8], ...]:
    """All images of a request. Raises as `read_image` does."""
    images: list[NDArray[np.uint8]] = []
    left = limits.max_total_pixels
    for image in given:
        images.append(read_image(image, limits, left))
        left -= images[-1].shape[0] * images[-1].shape[1]
    return tuple(images)


def read_image(given: GivenImage, limits: ImageLimits = LIMITS, left: int | None = None) -> NDArray[np.uint8]:
    """Decode a file, a data URI, or bare base64, of a PNG, JPEG, WebP, GIF or BMP: RGB `[height, width, 3]`.

    Upright, as its EXIF data says; the first picture of several; on white where it is transparent. `left` pixels may
    still come of its request. Raises `InvalidRequest` naming the field and the limit, `UnsupportedParameter` for any
    other URL.
    """
    file = file_of(given, limits)
    count_pixels(file, given.param, limits, left)
    return np.asarray(decode(file, given.param, limits), np.uint8)


def is_url(given: GivenImage) -> bool:
    """Whether an image is somewhere else, and not sent."""
    return isinstance(given.data, str) and not _DATA_URI.match(given.data) and _URL.match(given.data) is not None


def file_of(given: GivenImage, limits: ImageLimits = LIMITS) -> IO[bytes]:
    """The bytes of an image that was sent. Raises as `read_image` does."""
    text, param = given.data, given.param
    if not isinstance(text, str):
        check_bytes(text.seek(0, io.SEEK_END), param, limits)
        text.seek(0)
        return text
    if found := _DATA_URI.match(text):
        text = text[found.end() :]
    elif _URL.match(text):
        raise UnsupportedParameter(
            f"{param}: images are not fetched from URLs", param=param, hint="send the image itself, as a data URI"
        )
    text = _BLANKS.sub("", text)
    check_bytes(len(text) * 3 // 4 - text[-2:].count("="), param, limits)
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"{param}: the image is not base64: {error}",
            param=param,
            hint="send a data URI, a URL or base64 of the file's bytes, not its path",
        ) from error


def check_bytes(size: int, param: str, limits: ImageLimits) -> None:
    """Raises `InvalidRequest` for a file that is too large."""
    if size > limits.max_bytes:
        raise InvalidRequest(f"{param}: an image of {size} bytes; the limit is {limits.max_bytes}", param=param)


def count_pixels(file: IO[bytes], param: str, limits: ImageLimits = LIMITS, left: int | None = None) -> int:
    """Of an image, as its header promises. Raises as `read_image` does."""
    with _opened(file, param, limits) as image:
        _check_size(*image.size, param, limits, limits.max_total_pixels if left is None else left)
        return image.width * image.height


def decode(file: IO[bytes], param: str, limits: ImageLimits = LIMITS) -> Image.Image:
    """The picture, RGB and upright, of a file that has been found to be bearable. Raises as `read_image` does."""
    with _opened(file, param, limits) as image:
        return _decoded(image, file)


def decode_quickly(file: IO[bytes], limits: ImageLimits, most: int) -> Pixels | None:
    """Those that `decode` gives for a file that has no more than `most`, and takes 10 ms at most for a million; `None`:
    for another, or a damaged one."""
    if file.seek(0, io.SEEK_END) > _QUICK_BYTES:
        return None
    file.seek(0)
    return decode_plain_jpeg(file.read(), min(most, limits.max_pixels, limits.max_total_pixels))


def decode_small(file: IO[bytes], param: str, limits: ImageLimits, most: int) -> Image.Image | int:
    """`count_pixels` of the one image of a request, and `decode` where there are `most`: the file is opened once. Of
    more, only how many."""
    with _opened(file, param, limits) as image:
        _check_size(*image.size, param, limits, limits.max_total_pixels)
        num_pixels = image.width * image.height
        return _decoded(image, file) if num_pixels <= most else num_pixels


@contextmanager
def _opened(file: IO[bytes], param: str, limits: ImageLimits) -> Iterator[Image.Image]:
    """Pillow's image, and its errors in our words."""
    try:
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise InvalidRequest(f"{param}: these bytes are no image of a known kind ({kinds})", param=param) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            f"{param}: the image has too many pixels; the limit is {limits.max_pixels} pixels", param=param
        ) from error
    except _DAMAGE as error:
        raise InvalidRequest(f"{param}: the image is damaged: {error}", param=param) from error


def _check_size(width: int, height: int, param: str, limits: ImageLimits, left: int) -> None:
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{param}: an image of {width} by {height}; the limit is {limits.max_pixels} pixels", param=param
        )
    if width * height > left:
        raise InvalidRequest(
            f"{param}: with this one, the images have more than {limits.max_total_pixels} pixels together", param=param
        )


def _decoded(image: Image.Image, file: IO[bytes]) -> Image.Image:
    picture = decode_jpeg(image, file)
    if picture is None:
        image.load()
        picture = _on_white(image)
    # as its EXIF data says; Pillow's `exif_transpose` also writes the rest of that data anew, which may be damaged
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return picture if turn is None else picture.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what shows through is white, as on a page."""
    if image.mode.startswith("I"):  # 16 bits of grey
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
