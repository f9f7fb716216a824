"""RMSNorm nodes of a decoder's graph. All have one epsilon."""

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.graph_walk import ANY, Walk
from vmm_adapters.cpu.onnx_graph import MICROSOFT, Node, refusal

NORMS = ("SimplifiedLayerNormalization", "RMSNormalization")
SKIP_NORM = MICROSOFT + "SkipSimplifiedLayerNormalization"
"""Normalises a sum, which is its last output."""
SUM_OUTPUT = 3
_DEFAULT_EPSILON = {SKIP_NORM: 1e-12}


class NormReader:
    """Reads the weights of norms."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.epsilon: float | None = None
        """Of the norms met so far."""

    def weight(self, node: Node, size: int) -> NDArray[np.float32]:
        """The weight `[size]` of a norm. Raises `UnsupportedModel`."""
        is_skip = node.operator == SKIP_NORM
        self._walk.check_attributes(
            node, {"epsilon": ANY} if is_skip else {"epsilon": ANY, "axis": -1, "stash_type": 1}
        )
        if is_skip and node.input(3):
            raise refusal(node, "a bias is not supported")
        self.check_epsilon(node, node.number("epsilon", _DEFAULT_EPSILON.get(node.operator, 1e-5)))
        return self._walk.vector(node.input(2 if is_skip else 1), node, "the weight", size)

    def check_epsilon(self, node: Node, epsilon: float) -> None:
        """Refuse a node whose epsilon is not that of the norms before it."""
        if self.epsilon is None:
            self.epsilon = epsilon
        if epsilon != self.epsilon:
            raise refusal(node, f"its epsilon is {epsilon:g}, that of the other norms is {self.epsilon:g}")
