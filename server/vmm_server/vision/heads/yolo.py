"""YOLOv5 and YOLOv8 (YOLO11, YOLOv9 too): one row a candidate, boxes already in the input's pixels.

YOLOv5: x, y, width, height, whether there is anything, the classes. YOLOv8: the same without the second. Behind the
classes come, in both, the factors of a mask, and in YOLOv8 keypoints or an angle. The formats are those of Ultralytics'
ONNX exports (`ultralytics/nn/modules/head.py`); YOLOv7's are YOLOv5's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import PLAIN, Candidates, Extras, Floats, Outputs, edges, pick, tell
from vmm_server.vision.nms import check_numbers
from vmm_server.vision.results import DetectionParams, Detections


@dataclass(frozen=True, slots=True)
class YoloV8:
    """`Head` of `[channels, candidates]`: 4 of a box, classes, extras."""

    output: str
    num_classes: int
    extras: Extras = PLAIN
    channels_first: bool = True

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        scores = self._rows(outputs)[:, 4 : 4 + self.num_classes]
        # by channels, which lie together: many times as fast as by rows
        best = scores.T.max(0).astype(np.float32, copy=False)
        return pick(best, scores, params)

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        return _told(found, self._rows(outputs), 4 + self.num_classes, self.extras, outputs, params, framing)

    def _rows(self, outputs: Outputs) -> Floats:
        values = outputs[self.output]
        return values.T if self.channels_first else values


@dataclass(frozen=True, slots=True)
class YoloV5:
    """`Head` of `[candidates, channels]`: 4 of a box, whether there is anything, classes, extras."""

    output: str
    num_classes: int
    extras: Extras = PLAIN

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        rows = outputs[self.output]
        return pick_certain(rows[:, 4], rows[:, 5 : 5 + self.num_classes], params)

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        rows = outputs[self.output]
        return _told(found, rows, 5 + self.num_classes, self.extras, outputs, params, framing)


def pick_certain(certainty: Floats, scores: Floats, params: DetectionParams) -> Candidates:
    """`pick` where a score is one's certainty that there is anything times its class's; neither is above 1."""
    check_numbers(certainty)
    likely = np.flatnonzero(certainty >= params.threshold)
    check_numbers(scores[likely])
    product = (scores[likely] * certainty[likely, None]).astype(np.float32, copy=False)
    found = pick(product.max(1), product, params)
    return Candidates(likely[found.rows], found.scores, found.class_ids)


def _told(
    found: Candidates,
    rows: NDArray[np.float32],
    start: int,
    extras: Extras,
    outputs: Outputs,
    params: DetectionParams,
    framing: Framing,
) -> Detections:
    picked = rows[found.rows].astype(np.float32, copy=False)
    beside = picked[:, start : start + extras.num]
    boxes = np.concatenate([picked[:, :4], beside], axis=1) if extras.is_angle else edges(picked[:, :4])
    prototypes = None if extras.prototypes is None else outputs[extras.prototypes]
    return tell(
        found, boxes, params, framing, extras=extras, values=beside if extras.num else None, prototypes=prototypes
    )
