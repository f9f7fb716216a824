"""DETR and its kind: one row a query, boxes in parts of the input, nothing to suppress.

DETR has a class more than labels, for nothing, and a softmax over them (Carion et al. 2020, arXiv:2005.12872);
Deformable DETR, RT-DETR and those after them have a sigmoid for each class. Outputs are named and shaped as
transformers exports them (`logits`, `pred_boxes`), or come in one array as Ultralytics' RT-DETR.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.card import Activation
from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import Candidates, Floats, Outputs, edges, pick, tell
from vmm_server.vision.nms import check_numbers
from vmm_server.vision.results import DetectionParams, Detections
from vmm_server.vision.scores import sigmoid, softmax


@dataclass(frozen=True, slots=True)
class Detr:
    """`Head` of logits `[queries, classes]` (one more with `softmax`) and boxes `[queries, 4]`; both in one output
    `[queries, 4 + classes]` where the names are the same."""

    logits: str
    boxes: str
    num_classes: int
    activation: Activation

    def find(self, outputs: Outputs, params: DetectionParams) -> Candidates:
        """See `Head`."""
        values = outputs[self.logits][:, 4 if self.logits == self.boxes else 0 :]
        logits = values.astype(np.float32, copy=False)
        check_numbers(logits)
        scores = activated(logits, self.activation)[:, : self.num_classes]
        return pick(scores.max(1), scores, params)

    def tell(self, found: Candidates, outputs: Outputs, params: DetectionParams, framing: Framing) -> Detections:
        """See `Head`."""
        size = np.array([framing.input_width, framing.input_height] * 2, np.float32)
        boxes = outputs[self.boxes][found.rows, :4].astype(np.float32, copy=False) * size
        return tell(found, edges(boxes), params, framing, suppressed=False)


def activated(logits: NDArray[np.float32], activation: Activation) -> Floats:
    """Probabilities of `logits [n, classes]`."""
    if activation == "softmax":
        return softmax(logits)
    return sigmoid(logits) if activation == "sigmoid" else logits
