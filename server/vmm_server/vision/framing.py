"""Where a picture lies in a model's input, and the way back from there."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_server.vision.results import crop_of

Floats = NDArray[np.float32]
Number = TypeVar("Number", np.float32, np.float64)


@dataclass(frozen=True, slots=True)
class Framing:
    """A point `x, y` of the picture is at `x * scale_x + left, y * scale_y + top` of the model's input; both count
    from the top left corner of the top left pixel."""

    width: int
    """Of the picture."""
    height: int
    input_width: int
    """Of the model's input."""
    input_height: int
    scale_x: float
    scale_y: float
    left: int = 0
    """Of the picture in the input; less than 0 where the middle was cut out."""
    top: int = 0

    def points(self, points: NDArray[Number]) -> Floats:
        """`[..., 2]`, x and y, from the input to the picture. They may lie outside of it."""
        return ((points - [self.left, self.top]) / [self.scale_x, self.scale_y]).astype(np.float32)

    def boxes(self, boxes: NDArray[Number]) -> Floats:
        """`[n, 4]` (left, top, right, bottom) from the input to the picture, cut off at its edges."""
        corners = self.points(boxes.reshape(-1, 2, 2))
        return np.clip(corners, 0, np.array([self.width, self.height], np.float32)).reshape(-1, 4)

    def mask(self, coefficients: Floats, prototypes: Floats, box: Floats) -> NDArray[np.bool_]:
        """Where `coefficients [k]` times `prototypes [k, height, width]`, which cover the input, are above 0, in
        `crop_of(box)`, a box of the picture. They are drawn out bilinearly."""
        left, top, right, bottom = crop_of(box)
        num_rows, num_columns = prototypes.shape[1:]
        per_x, per_y = num_columns / self.input_width, num_rows / self.input_height
        x0, x1 = _inside(left, right, self.scale_x * per_x, self.left * per_x, num_columns)
        y0, y1 = _inside(top, bottom, self.scale_y * per_y, self.top * per_y, num_rows)
        # one more around it: that is what bilinear interpolation looks at
        first_x, first_y = max(0, int(x0) - 1), max(0, int(y0) - 1)
        near = prototypes[:, first_y : int(y1) + 2, first_x : int(x1) + 2]
        values = Image.fromarray(np.tensordot(coefficients, near, 1))
        region = (x0 - first_x, y0 - first_y, x1 - first_x, y1 - first_y)
        grown = values.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=region)
        return np.asarray(grown) > 0


def _inside(start: int, end: int, scale: float, offset: float, size: int) -> tuple[float, float]:
    """Pixels `start..end` of the picture in prototypes of `size`, not empty."""
    first = min(max(start * scale + offset, 0.0), size - 1e-3)
    return first, min(max(end * scale + offset, first + 1e-3), float(size))
