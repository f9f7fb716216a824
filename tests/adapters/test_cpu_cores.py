"""How many threads the CPU adapter takes: cores, not their threads; of those that the process may use."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from vmm_adapters.cpu.cores import num_threads
from vmm_adapters.probes.linux_cpu import read_processor

EIGHT_THREADS = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
"""Four cores of two threads each, numbered as Linux does."""
HYBRID = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4", 5: "5", 6: "6", 7: "7"}
"""Two cores of two threads, and four of one."""


def write_system(root: Path, siblings: Mapping[int, str], quota: str = "max 100000") -> None:
    for cpu, text in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    group = root / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(f"{quota}\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/box\n")


@pytest.mark.parametrize(
    ("siblings", "affinity", "quota", "expected"),
    [
        (EIGHT_THREADS, range(8), "max 100000", 4),
        (EIGHT_THREADS, range(4, 8), "max 100000", 4),
        (EIGHT_THREADS, (0, 4), "max 100000", 1),
        (EIGHT_THREADS, (0, 1, 4), "max 100000", 2),
        (EIGHT_THREADS, range(8), "200000 100000", 2),
        (EIGHT_THREADS, range(8), "50000 100000", 1),
        (HYBRID, range(8), "max 100000", 6),
        ({}, range(3), "max 100000", 3),
        ({}, range(3), "100000 100000", 1),
    ],
)
def test_threads_are_the_cores_that_may_be_used(
    siblings: Mapping[int, str], affinity: range | tuple[int, ...], quota: str, expected: int, tmp_path: Path
) -> None:
    write_system(tmp_path, siblings, quota)
    assert num_threads(read_processor(tmp_path, frozenset(affinity))) == expected


def test_this_machine_has_some() -> None:
    assert num_threads() >= 1
