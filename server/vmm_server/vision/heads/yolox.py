"""YOLOX: as YOLOv5, one candidate a cell; as exported, in units of the cell (Ge et al. 2021, arXiv:2107.08430;
`yolox/models/yolo_head.py`, `decode_outputs`)."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import Candidates, Floats, Outputs, edges, tell
from vmm_server.vision.heads.yolo import pick_certain
from vmm_server.vision.results import DetectionParams, Detections


@dataclass(frozen=True, slots=True)
class YoloX:
    """`Head` of `[cells, 5 + classes]`: x, y, width, height, whether there is anything, classes."""

    output: str
    num_classes: int
    cells: Floats | None = field(default=None, repr=False)
    """As `grid` makes them; `None`: the graph has done with them, boxes are in pixels."""

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        rows = outputs[self.output]
        return pick_certain(rows[:, 4], rows[:, 5 : 5 + self.num_classes], params)

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        rows = outputs[self.output]
        boxes = rows[found.rows, :4].astype(np.float32, copy=False)
        if self.cells is not None:
            place, stride = self.cells[found.rows, :2], self.cells[found.rows, 2:]
            with np.errstate(over="ignore"):  # what is too large for a number is refused for not being one
                boxes = np.concatenate([(boxes[:, :2] + place) * stride, np.exp(boxes[:, 2:]) * stride], axis=1)
        return tell(found, edges(boxes), params, framing)


def grid(width: int, height: int, strides: tuple[int, ...]) -> Floats:
    """`[cells, 3]`: column, row and stride of each, row by row, the finest grid first."""
    parts = []
    for stride in strides:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        parts.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=2).reshape(-1, 3))
    return np.concatenate(parts).astype(np.float32)


def is_decoded(rows: NDArray[np.float32], cells: Floats) -> bool:
    """Whether boxes of `rows [cells, …]` are in pixels: their middles then are near their cells, all over the picture;
    otherwise each is near 0."""
    middles, places, strides = rows[:, :2], cells[:, :2], cells[:, 2:]
    as_pixels = np.abs(middles / strides - places - 0.5)
    return bool(np.median(as_pixels) < np.median(np.abs(middles - 0.5)))
