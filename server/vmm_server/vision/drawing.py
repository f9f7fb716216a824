"""What was found, drawn into its picture: masks, boxes, keypoints, and names above them; a colour for each class."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vmm_server.vision.results import Detections, crop_of

Colour = tuple[int, int, int]

_OPACITY = np.uint8(115)
"""Of a mask; 255 would hide what is behind it."""
_GOLDEN = 0.618034
"""Of the circle of hues, from class to class: any few that follow each other are far apart."""
_SEEN = 0.5
"""How visible a keypoint has to be."""
_LIMBS = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
"""Of a person with COCO's 17 keypoints (`skeleton` in its annotations)."""


def draw(image: Image.Image, found: Detections, labels: Sequence[str]) -> bytes:
    """A PNG file of the picture (RGB) with all of `found` in it, the best on top. It is drawn into."""
    order = range(len(found) - 1, -1, -1)
    if found.masks is not None:
        for index in order:
            left, top, _, _ = crop_of(found.boxes[index])
            veil = Image.fromarray(found.masks[index].astype(np.uint8) * _OPACITY)
            image.paste(colour_of(int(found.class_ids[index])), (left, top), veil)
    canvas = ImageDraw.Draw(image)
    shorter = min(image.size)
    width = max(1, round(shorter / 200))
    for index in order:
        _outline(canvas, found, index, width)
    font = ImageFont.load_default(max(10, min(64, shorter // 28)))
    for index in order:  # a name is worth more than the frame of another
        class_id = int(found.class_ids[index])
        name = labels[class_id] if class_id < len(labels) else f"class {class_id}"
        text = f"{name} {found.scores[index]:.2f}"
        _write(canvas, image.size, text, found.boxes[index], colour_of(class_id), font)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # a third of the time, a tenth larger
    return file.getvalue()


def colour_of(class_id: int) -> Colour:
    """Bright, and always the same one."""
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN) % 1, 0.85, 1 - 0.15 * (class_id % 3))
    return round(red * 255), round(green * 255), round(blue * 255)


def _outline(canvas: ImageDraw.ImageDraw, found: Detections, index: int, width: int) -> None:
    colour = colour_of(int(found.class_ids[index]))
    if found.corners is not None:
        points = [(float(x), float(y)) for x, y in found.corners[index]]
        canvas.line([*points, points[0], points[1]], colour, width, joint="curve")
    else:
        left, top, right, bottom = crop_of(found.boxes[index])
        canvas.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
    if found.keypoints is not None:
        _dots(canvas, found.keypoints[index], colour, width)


def _dots(canvas: ImageDraw.ImageDraw, points: NDArray[np.float32], colour: Colour, width: int) -> None:
    places = [(float(x), float(y)) for x, y, _ in points]
    seen = points[:, 2] >= _SEEN
    for start, end in _LIMBS if len(points) == 17 else ():
        if seen[start] and seen[end]:
            canvas.line([places[start], places[end]], colour, width)
    radius = max(1.0, width * 1.5)
    for (x, y), is_seen in zip(places, seen, strict=True):
        if is_seen:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")


def _write(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: NDArray[np.float32],
    colour: Colour,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """On a plate above the box; in it where there is no room above; nowhere in a picture that is too small."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    width, height = int(right - left) + 5, int(bottom - top) + 5
    if width > size[0] or height > size[1] // 2:
        return
    x = min(max(0, int(box[0])), size[0] - width)
    y = int(box[1]) - height if box[1] >= height else min(max(0, int(box[1])), size[1] - height)
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    luminance = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000  # ITU-R BT.601
    canvas.text((x + 2 - left, y + 2 - top), text, "black" if luminance > 128 else "white", font)
