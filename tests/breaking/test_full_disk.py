"""Every writer on a disk that is full: it says so, leaves nothing half-written, and goes on when there is room."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.breaking.full_disk import NAMES

SCRIPT = Path(__file__).with_name("full_disk.py")
CACHES = {"machine": 1, "kernels": 1, "history": 0}
"""What works all the same, and how many lines in the log tell of it; of the history the terminal does."""
MAY_MOUNT = ("unshare", "--map-root-user", "--mount")


@cache
def can_mount() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return not subprocess.run([*MAY_MOUNT, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each writer."""
    if not can_mount():
        pytest.skip("needs a small file system of its own: Linux, and unshare --map-root-user --mount")
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    command = [*MAY_MOUNT, sys.executable, str(SCRIPT), str(folder / "disk")]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_told_and_nothing_is_half_written(tried: dict[str, Any], name: str) -> None:
    found = tried[name]
    assert found["first"] is None, "it works"
    if name in CACHES:
        assert found["full"] is None, "no request fails for it"
        assert len(found["told"]) == CACHES[name], found["told"]
    else:
        assert found["full"].startswith("StoreError: "), found["full"]
    assert found["left"] == []
    assert found["again"] is None, "it works again"
