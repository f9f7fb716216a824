"""A folder of a model that speaks → something warm that takes text."""

from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings


def load_speaker(model: InstalledModel, placement: Placement, settings: Settings) -> Ready:
    """Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError
