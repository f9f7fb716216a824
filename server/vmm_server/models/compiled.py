"""Compiled models that adapters keep between starts: one folder a model under `settings.cache_dir`, named by weights.

All of it can be made again, so it may be deleted at any time; what belongs to no installed model is.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from vmm_server.models.disk import delete_folder, store_errors
from vmm_server.models.store import InstalledModel

_DIGEST = re.compile(r"[0-9a-f]{64}")


def compiled_dir(cache_dir: Path, model: InstalledModel, variant: str = "") -> Path:
    """Where adapters may keep what they made of this model, or of a variant of it."""
    folder = cache_dir / model.weights
    found = next((each for each in model.variants if each.name == variant), None)
    return folder if found is None else folder / f"variant-{found.digest[:16]}"


def shared_compiled_dir(cache_dir: Path) -> Path:
    """Where adapters may keep what they compiled for this machine, whatever the model."""
    return cache_dir / "kernels"


def delete_compiled(cache_dir: Path, *, keep: Iterable[InstalledModel]) -> None:
    """Delete what no model in `keep` uses. Raises `StoreError`."""
    kept = {model.weights for model in keep}
    if not cache_dir.is_dir():
        return
    with store_errors("clean the cache", cache_dir):
        for folder in cache_dir.iterdir():
            if _DIGEST.fullmatch(folder.name) and folder.name not in kept:
                delete_folder(folder)
