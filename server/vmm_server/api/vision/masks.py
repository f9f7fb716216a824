"""Masks as COCO's compressed run lengths: small, and read by every tool of the field.

Pixels of the whole picture are taken column by column; the lengths of their runs, zeros first, are written as
differences to the length before the last, in characters of 6 bits (5 of the number, lowest first, and one that says
whether more follow). `pycocotools.mask.decode({"size": [height, width], "counts": counts})` makes the mask again.

Source: cocodataset/cocoapi, common/maskApi.c: `rleEncode`, `rleToString`.
"""

import numpy as np
from numpy.typing import NDArray


def run_lengths(mask: NDArray[np.bool_], left: int, top: int, width: int, height: int) -> list[int]:
    """Of a picture that is `width` by `height` and has `mask` (`[rows, columns]`) at `left`, `top`: zeros first."""
    mask = mask[: height - top, : width - left]
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    steps = np.diff(columns, axis=1)
    offset = (left + np.arange(mask.shape[1])) * height + top
    column, row = np.nonzero(steps == 1)
    starts = offset[column] + row
    column, row = np.nonzero(steps == -1)
    ends = offset[column] + row
    if len(starts):  # a run that reaches the bottom goes on at the top of the next column
        apart = starts[1:] != ends[:-1]
        starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [width * height]])
    lengths: list[int] = np.diff(edges).tolist()
    return lengths[:-1] if len(lengths) > 1 and not lengths[-1] else lengths


def compressed(lengths: list[int]) -> str:
    """Run lengths as COCO writes them."""
    written = bytearray()
    for index, length in enumerate(lengths):
        number = length - lengths[index - 2] if index > 2 else length
        more = True
        while more:
            bits = number & 0x1F
            number >>= 5
            more = number != -1 if bits & 0x10 else number != 0
            written.append((bits | 0x20 if more else bits) + 48)
    return written.decode("ascii")
