"""What placements were measured to do, kept between starts: one JSON file a model, beside what adapters compiled of it.

A file holds for one machine: its processors, drivers and packages are the machine's key. Where that has changed, or the
model's digest, the measurements are gone, and rules of thumb decide until there are new ones.
"""

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vmm_server.models.compiled import compiled_dir
from vmm_server.models.disk import store_errors, write_atomically
from vmm_server.models.router import Placement, Profile
from vmm_server.models.store import InstalledModel

logger = logging.getLogger(__name__)

_FILE = "profiles.json"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    placement: Placement
    profile: Profile


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    machine: str
    rows: tuple[_Row, ...]


class Profiles:
    """Reads each file once. For one thread."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._known: dict[tuple[str, str], dict[Placement, Profile]] = {}

    def of(self, model: InstalledModel, machine: str) -> dict[Placement, Profile]:
        """What was measured of a model on the machine with this key. The caller's to keep, not to change."""
        key = (model.weights, machine)
        if key not in self._known:
            self._known[key] = self._read(model, machine)
        return self._known[key]

    def keep(self, model: InstalledModel, machine: str, placement: Placement, profile: Profile) -> None:
        """Keep a measurement in the place of an earlier one. Raises `StoreError` when the disk will not have it."""
        known = self.of(model, machine) | {placement: profile}
        self._known[model.weights, machine] = known
        rows = tuple(_Row(placement=placement, profile=profile) for placement, profile in known.items())
        path = self._path(model)
        with store_errors("keep a measurement", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _File(machine=machine, rows=rows).model_dump_json(indent=1).encode())

    def _path(self, model: InstalledModel) -> Path:
        return compiled_dir(self._cache_dir, model) / _FILE

    def _read(self, model: InstalledModel, machine: str) -> dict[Placement, Profile]:
        path = self._path(model)
        try:
            found = _File.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            logger.warning("%s is not used: %s", path, error)
            return {}
        if found.machine != machine or found.version != 1:
            return {}
        return {row.placement: row.profile for row in found.rows}
