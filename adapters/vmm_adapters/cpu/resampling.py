"""Pillow's resizing of RGB pictures, by kernels of our own: 2 to 8 times as fast, and to the last bit the same.

What a user would expect: the numbers that the model was trained on, which Pillow made. Its worst case: a picture 30,000
pixels wide whose weights alone are megabytes; what is between the two passes has the rows of the picture that are
wanted and the columns of the input, as Pillow's own has.

The weights are those of Pillow 13's Resample.c (`precompute_coeffs`, `normalize_coeffs_8bpc`).
"""

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.base import Rows
from vmm_adapters.cpu.formats import COLUMNS, PICTURES, PIXEL_BYTES, PIXELS, ROWS, WEIGHT_BITS
from vmm_adapters.cpu.kernels import compile_kept, writable
from vmm_adapters.cpu.objects import BadObject, Code
from vmm_adapters.errors import runtime_errors
from vmm_adapters.types import Interpolation, Resize

_KEPT_WEIGHTS = 16
"""Pairs of sizes whose weights are remembered: 20 KB each for a photograph, 2 MB for a strip 30,000 wide."""


class Weights(NamedTuple):
    """What pixels of a line become some of the resized one's: the sum of `values[n] * pixels[firsts[n]:]`."""

    firsts: NDArray[np.int32]
    """`[n]`, rising."""
    values: NDArray[np.int32]
    """`[n, taps]`, with 22 binary places; 0 for pixels that do not count."""

    @property
    def num_taps(self) -> int:
        """Pixels of a sum."""
        num_taps: int = self.values.shape[1]
        return num_taps


class PictureKernels:
    """Both passes; see `codegen.pictures`. Calls give the interpreter's lock away."""

    def __init__(self, compiled: bytes) -> None:
        """Raises `BadObject` and `OSError`."""
        self._code = Code(compiled)
        self._rows = CFUNCTYPE(None, *[c_int64] * 9)(self._code.addresses[ROWS])
        self._columns = CFUNCTYPE(None, *[c_int64] * 13)(self._code.addresses[COLUMNS])

    def resample_rows(self, pixels: NDArray[np.uint8], across: Weights, out: NDArray[np.uint8]) -> None:
        """`[rows, width, 4]` → `[rows, columns, 4]`. The taps are whole fours, and no more than the width."""
        self._rows(
            *(pixels.ctypes.data, pixels.strides[0], len(pixels)),
            *(across.firsts.ctypes.data, across.values.ctypes.data, across.num_taps // PIXELS, len(across.firsts)),
            *(out.ctypes.data, out.strides[0]),
        )

    def resample_columns(
        self,
        pixels: NDArray[np.uint8],
        down: Weights,
        factors: NDArray[np.float32],
        shifts: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """`[height, columns, 4]` → `byte * factor - shift`, `[3, rows, columns]`. The columns are four or more."""
        first_plane, plane_bytes, row_bytes, _ = out.ctypes.data, *out.strides
        self._columns(
            *(pixels.ctypes.data, pixels.strides[0]),
            *(down.firsts.ctypes.data, down.values.ctypes.data, down.num_taps, len(down.firsts), pixels.shape[1]),
            *(factors.ctypes.data, shifts.ctypes.data),
            *(first_plane + colour * plane_bytes for colour in range(3)),
            row_bytes,
        )


class CPUResampler:
    """Implements `vmm_adapters.base.Resampler`."""

    def __init__(self, kernels: PictureKernels) -> None:
        self._kernels = kernels

    def takes(self, resize: Resize) -> bool:
        """See `Resampler`: not the two filters that are rarely asked for, nor what is narrower than four pixels, nor
        what Pillow, from 13 on, resizes along the columns first: each pass rounds, so that their order tells."""
        left, _, right, _ = resize.area
        (width, height), (full_width, full_height) = resize.size, resize.full_size
        is_columns_first = height - full_height > max(0, 2 * (width - full_width))
        if resize.interpolation not in _FILTERS or right - left < PIXELS or is_columns_first:
            return False
        across, _ = _weights_of(resize)
        return across.num_taps <= resize.size[0]

    def __call__(self, rows: Rows, resize: Resize, out: NDArray[np.float32]) -> None:
        """See `Resampler`."""
        left, _, right, _ = resize.area
        across, down = _weights_of(resize)
        top, end = int(down.firsts[0]), int(down.firsts[-1]) + down.num_taps
        narrow = np.empty((0, right - left, PIXEL_BYTES), np.uint8)
        done = 0
        for piece in rows(top, end):
            if len(piece) == end - top and resize.size[0] == resize.full_size[0]:
                narrow = piece[:, left:right]
                break
            if not done:
                narrow = np.empty((end - top, *narrow.shape[1:]), np.uint8)
            self._kernels.resample_rows(piece, across, narrow[done : done + len(piece)])
            done += len(piece)
        from_top = Weights(down.firsts - np.int32(top), down.values)
        factors, shifts = (np.array(each, np.float32) for each in (resize.factors, resize.shifts))
        self._kernels.resample_columns(narrow, from_top, factors, shifts, out)


def _weights_of(resize: Resize) -> tuple[Weights, Weights]:
    """Across and down."""
    left, top, right, bottom = resize.area
    (width, height), (full_width, full_height) = resize.size, resize.full_size
    across = weights(width, full_width, left, right, resize.interpolation, PIXELS)
    return across, weights(height, full_height, top, bottom, resize.interpolation, 1)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), np.zeros_like(x))


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981, with a = -1/2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0))


_FILTERS: dict[Interpolation, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""The filter, and how far it reaches."""


@lru_cache(_KEPT_WEIGHTS)
def weights(size: int, full_size: int, start: int, end: int, interpolation: Interpolation, unit: int) -> Weights:
    """Of pixels `start..end` of a line of `size` resized to `full_size`; as many taps for each, whole `unit`s.

    Where that is more than the line has, it cannot be used: some of what it reads would be outside.
    """
    filtered, reach = _FILTERS[interpolation]
    scale = size / full_size
    stretch = max(scale, 1.0)
    centers = (np.arange(start, end) + 0.5) * scale
    firsts = np.maximum((centers - reach * stretch + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + reach * stretch + 0.5).astype(np.int64), size)
    num_taps = -(-int((ends - firsts).max()) // unit) * unit
    moved = np.maximum(np.minimum(firsts, size - num_taps), 0)
    places = moved[:, None] + np.arange(num_taps)
    is_in = (firsts[:, None] <= places) & (places < ends[:, None])
    raw = np.where(is_in, filtered((places - centers[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    shares = raw / np.cumsum(raw, axis=1)[:, -1:]  # added up from the left, as there
    values = np.trunc(shares * (1 << WEIGHT_BITS) + np.where(shares < 0, -0.5, 0.5)).astype(np.int32)
    return Weights(moved.astype(np.int32), np.ascontiguousarray(values))


def load_resampler(cache_dir: Path | None) -> CPUResampler:
    """See `vmm_adapters.base.ResamplerFactory`."""
    with runtime_errors("loading the kernels of pictures", BadObject, OSError):
        (compiled,) = compile_kept(None, [PICTURES], writable(cache_dir))
        return CPUResampler(PictureKernels(compiled))
