"""What a plain model name means: one version of the model, or several of them, each for a share of the requests.

    <root>/releases.json    {"version": 1, "releases": {"smollm2:135m": {"smollm2:135m@v1": 90, "smollm2:135m@v2": 10}}}

The file is replaced whole, under the store's lock: every reader, in any process, has the old releases or the new ones.
A name may be one that no model is installed under: an alias that moves.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmm_server.errors import InvalidModelName, InvalidRequest, StoreError
from vmm_server.models.disk import write_atomically
from vmm_server.models.names import ModelName

logger = logging.getLogger(__name__)

FILE = "releases.json"
ALL = 100
"""Shares are of a hundred requests."""


@dataclass(frozen=True, slots=True)
class Release:
    """A plain name, and the models that answer to it."""

    name: ModelName
    shares: tuple[tuple[ModelName, int], ...]
    """Each model, and how many of a hundred requests it answers; above 0, `ALL` together."""

    @property
    def main(self) -> ModelName:
        """The model that most requests get; of equal ones the first."""
        return max(self.shares, key=lambda share: share[1])[0]

    def __str__(self) -> str:
        return f"{self.name} → {', '.join(f'{model} {share} %' for model, share in self.shares)}"


def check_shares(shares: Sequence[tuple[ModelName, int]]) -> None:
    """Raise `InvalidRequest` unless they are of different models, and are `ALL` together."""
    if len({model.key for model, _ in shares}) < len(shares):
        raise InvalidRequest("shares: a model is named twice", param="shares")
    total = sum(share for _, share in shares)
    if total != ALL or any(share < 1 for _, share in shares):
        raise InvalidRequest(
            f"shares: {', '.join(str(share) for _, share in shares) or 'none'} are {total} of a hundred requests; "
            f"each must be at least 1, and all together {ALL}",
            param="shares",
            hint="such as v1=90 v2=10, or one version alone",
        )


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    releases: Mapping[str, Annotated[Mapping[str, int], Field(min_length=1)]] = {}


class Releases:
    """The file, parsed once for each of its states. Safe to use from several threads; changes need the store's lock."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        self._known: tuple[tuple[int, int, int] | None, Mapping[str, Release]] = (None, {})
        self._is_good = False
        self._mutex = threading.Lock()

    def all(self) -> Mapping[str, Release]:
        """Every release, by the key of its name. A file that was damaged by hand changes nothing in a process that
        has read it before, which logs it; else `StoreError`."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            state = None
        else:
            state = stat.st_ino, stat.st_size, stat.st_mtime_ns
        with self._mutex:
            if not self._is_good or self._known[0] != state:
                self._known = state, self._parse(state is not None)
                self._is_good = True
            return self._known[1]

    def find(self, name: ModelName) -> Release | None:
        """The release of exactly this name."""
        return self.all().get(name.key)

    def naming(self, model: ModelName) -> Release | None:
        """A release that sends requests to this model."""
        of_it = (each for each in self.all().values() if model.key in (target.key for target, _ in each.shares))
        return next(of_it, None)

    def put(self, release: Release) -> None:
        """Have the name mean this from now on. Raises `OSError`."""
        self._write({**self.all(), release.name.key: release})

    def clear(self, name: ModelName) -> bool:
        """Have the name mean what is installed under it; False if there was no release of it. Raises `OSError`."""
        left = {key: each for key, each in self.all().items() if key != name.key}
        if len(left) == len(self.all()):
            return False
        self._write(left)
        return True

    def _write(self, releases: Mapping[str, Release]) -> None:
        shown = {str(each.name): {str(model): share for model, share in each.shares} for each in releases.values()}
        write_atomically(self.path, _File(releases=shown).model_dump_json(indent=2).encode())
        self.all()

    def _parse(self, is_there: bool) -> Mapping[str, Release]:
        if not is_there:
            return {}
        try:
            found = [_release(*each) for each in _File.model_validate_json(self.path.read_bytes()).releases.items()]
        except ValidationError as error:
            problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:2])
        except (InvalidRequest, InvalidModelName) as error:
            problem = f"{error.message} {error.hint}"
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            return {each.name.key: each for each in found}
        message = f"{self.path} cannot be read: {problem}"
        if not self._is_good:
            raise StoreError(message, hint="mend that file, or delete it and release again")
        logger.error("%s; the releases stay as they were", message)
        return self._known[1]


def _release(name: str, shares: Mapping[str, int]) -> Release:
    release = Release(ModelName.parse(name), tuple((ModelName.parse(each), share) for each, share in shares.items()))
    check_shares(release.shares)
    return release
