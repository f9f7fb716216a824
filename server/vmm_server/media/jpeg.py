"""JPEG files, decoded right into a picture's memory. Pillow has libjpeg-turbo decode line by line, and sorts the bytes
of each; what comes out is the same, for both ask for the exact transform and the smooth upsampling."""

from importlib import import_module
from typing import IO

from PIL import Image

from vmm_server.media.pixels import pixels_of


def decode_jpeg(image: Image.Image, file: IO[bytes]) -> Image.Image | None:
    """The picture, RGB, of a file that Pillow has opened as `image`; `None` where Pillow has to decode it, or to say
    what is wrong with it."""
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    made = Image.new("RGB", image.size, None)
    if (pixels := pixels_of(made)) is None:
        return None
    file.seek(0)
    try:
        # the library takes memory when it is needed
        found = import_module("simplejpeg").decode_jpeg(file.read(), colorspace="RGBX", buffer=pixels)
    except ValueError:
        return None
    return made if found.shape == pixels.shape else None
