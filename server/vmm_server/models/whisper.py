"""A Whisper folder on disk → something warm that takes sound."""

from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings


def load_transcriber(model: InstalledModel, placement: Placement, settings: Settings) -> Ready:
    """Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError
