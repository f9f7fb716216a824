"""Models that look at pictures: a folder on disk → something warm that takes pictures."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmm_server.engine.batcher import Computed
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings
from vmm_server.vision.results import DetectionParams, Detections

Picture = NDArray[np.uint8]
"""RGB, upright: `[height, width, 3]`."""


@runtime_checkable
class ReadyDetector(Ready, Protocol):
    """A detector."""

    labels: tuple[str, ...]

    async def detect(self, pictures: Sequence[Picture], params: DetectionParams) -> Computed[Detections]:
        """One result a picture, in their order."""
        ...


@runtime_checkable
class ReadyClassifier(Ready, Protocol):
    """A classifier."""

    labels: tuple[str, ...]

    async def classify(self, pictures: Sequence[Picture]) -> Computed[NDArray[np.float32]]:
        """Probabilities `[classes]` of each picture."""
        ...


class ReadyClip(ReadyEncoder):
    """CLIP or SigLIP: a text encoder, and one of pictures beside it, in one space."""

    async def embed_pictures(self, pictures: Sequence[Picture]) -> Computed[NDArray[np.float32]]:
        """The vector of each, of length 1: float32 `[dim]`."""
        raise NotImplementedError


def load_detector(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyDetector:
    """Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError


def load_classifier(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyClassifier:
    """Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError


def load_clip(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyClip:
    """Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError
