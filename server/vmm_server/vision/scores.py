"""What a model's numbers mean: probabilities of labels, and which classes a request wants."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmm_server.errors import InvalidRequest

Rows = NDArray[np.float32]

_MAX_TOLD = 100
"""Classes that an error lists: all of COCO's, the first ones of thousands."""


def class_ids(labels: Sequence[str], wanted: Sequence[str | int] | None) -> frozenset[int] | None:
    """The numbers of classes, by name or number; `None`: all. Raises `InvalidRequest` for one that is not there."""
    if wanted is None:
        return None
    found: set[int] = set()
    for index, name in enumerate(wanted):
        if isinstance(name, str):
            same = {number for number, label in enumerate(labels) if label.casefold() == name.strip().casefold()}
            number = int(name) if not same and name.strip().isascii() and name.strip().isdigit() else None
        else:
            same, number = set(), name
        if number is not None and (not labels or 0 <= number < len(labels)):
            same = {number}
        if not same:
            more = ", …" if len(labels) > _MAX_TOLD else ""
            raise InvalidRequest(
                f"classes[{index}]: {name!r} is no class of the model",
                param=f"classes[{index}]",
                hint=f"its {len(labels)} classes are {', '.join(labels[:_MAX_TOLD])}{more}",
            )
        found |= same
    return frozenset(found)


def softmax(logits: Rows) -> Rows:
    """Over the last axis."""
    powers: Rows = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(logits: Rows) -> Rows:
    """1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which does not overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)
