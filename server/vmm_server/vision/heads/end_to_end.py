"""Graphs that choose and suppress by themselves: rows are answers."""

from dataclasses import dataclass

import numpy as np

from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import PLAIN, Candidates, Extras, Outputs, tell
from vmm_server.vision.nms import check_numbers, strongest
from vmm_server.vision.results import DetectionParams, Detections


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """`Head` of `[answers, 6 + extras]`: a box in the input's pixels, score, class id, extras (YOLOv10, YOLO26, exports
    with `nms=True`). Boxes are left, top, right, bottom; turned ones x and y of the middle, width, height."""

    output: str
    num_classes: int
    extras: Extras = PLAIN

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        rows = outputs[self.output].astype(np.float32, copy=False)
        check_numbers(rows[:, 4:6])
        class_ids = np.rint(rows[:, 5]).astype(np.int64)
        order = strongest(rows[:, 4], class_ids, params)
        return Candidates(order, rows[order, 4], class_ids[order])

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        picked = outputs[self.output][found.rows].astype(np.float32, copy=False)
        beside = picked[:, 6 : 6 + self.extras.num]
        boxes = np.concatenate([picked[:, :4], beside], axis=1) if self.extras.is_angle else picked[:, :4]
        prototypes = None if self.extras.prototypes is None else outputs[self.extras.prototypes]
        return tell(
            found,
            boxes,
            params,
            framing,
            extras=self.extras,
            values=beside if self.extras.num else None,
            prototypes=prototypes,
            suppressed=False,
        )


@dataclass(frozen=True, slots=True)
class SeparateEndToEnd:
    """`Head` of `labels [answers]`, `boxes [answers, 4]` (left, top, right, bottom) and `scores [answers]`: RT-DETR's
    own export and D-FINE's, which are told what size boxes are for (`orig_target_sizes`): the input's."""

    num_classes: int

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        scores = outputs["scores"].astype(np.float32, copy=False)
        check_numbers(scores)
        class_ids = outputs["labels"].astype(np.int64)
        order = strongest(scores, class_ids, params)
        return Candidates(order, scores[order], class_ids[order])

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        boxes = outputs["boxes"][found.rows].astype(np.float32, copy=False)
        return tell(found, boxes, params, framing, suppressed=False)
