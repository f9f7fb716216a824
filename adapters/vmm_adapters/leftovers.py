"""What processes that were killed left in a cache: folders under the names that unfinished ones have."""

import shutil
import time
from pathlib import Path

ABANDONED_AFTER_S = 86_400.0
"""Nothing that is still being written has been left alone for so long."""


def delete_abandoned(directory: Path, prefix: str) -> None:
    """Delete the folders whose names begin with `prefix` and that nobody has written to for a day.

    Other processes may finish theirs meanwhile: a folder that is gone, or cannot be deleted, is passed over.
    Raises `OSError` when `directory` cannot be read.
    """
    for path in directory.iterdir():
        if path.name.startswith(prefix) and _age_s(path) > ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
