"""What killed processes left in a cache is deleted; what others are at work on is not."""

import os
from pathlib import Path

from vmm_adapters.leftovers import delete_abandoned


def test_only_folders_that_were_left_alone_for_a_day_are_deleted(tmp_path: Path) -> None:
    for name in (".new-old", ".new-now", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (".new-old", "kept"):
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".new-a").symlink_to("nowhere")  # listed, and gone when it is asked for its age
    delete_abandoned(tmp_path, ".new-")
    assert sorted(os.listdir(tmp_path)) == [".new-a", ".new-now", "kept"]
