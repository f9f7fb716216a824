"""Limits that Linux's control groups set, in both of their versions: containers and services run under them.

A limit of a group holds for those below it too, so all groups from the process's own up to the root are asked. Inside a
container the root is the container's own group, and the path in `/proc/self/cgroup` may lead nowhere: then the root
alone is asked. Files: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmm_adapters.probes.files import read_text


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The tightest one."""

    num_bytes: int
    free_bytes: int


def cpu_quota(root: Path) -> float | None:
    """How many CPUs' worth of time the process gets; `None`: no limit."""
    return min((quota for folder in _folders(root, "cpu") if (quota := _cpu_quota_of(folder))), default=None)


def memory_limit(root: Path) -> MemoryLimit | None:
    """`None`: no limit."""
    found = [limit for folder in _folders(root, "memory") if (limit := _memory_limit_of(folder))]
    if not found:
        return None
    return MemoryLimit(min(limit.num_bytes for limit in found), min(limit.free_bytes for limit in found))


def _cpu_quota_of(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _memory_limit_of(folder: Path) -> MemoryLimit | None:
    limit = _number(folder / "memory.max")
    used = _number(folder / "memory.current")
    cache = "inactive_file"
    if limit is None:
        limit = _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.usage_in_bytes")
        cache = "total_inactive_file"
    if limit is None:
        return None
    lines = (line.split() for line in read_text(folder / "memory.stat").splitlines())
    sizes = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    in_use = max(0, (used or 0) - sizes.get(cache, 0))  # what files were read into is given back when asked for
    return MemoryLimit(limit, max(0, limit - in_use))


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The process's group and those above it, in the hierarchy of version 2 and in the controller's of version 1."""
    mounts = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (mounts / controllers, mounts / controller) if controllers else (mounts, mounts / "unified"):
            folder = mount / path.lstrip("/")
            while folder.is_relative_to(mount):
                yield folder
                folder = folder.parent


def _number(path: Path) -> int | None:
    """`None`: no such file, or no limit. What version 1 writes for "no limit" is larger than any memory."""
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _words(path: Path) -> list[str]:
    return read_text(path).split()
