"""How `pytest -n` shares the tests out: by file, what takes longest first."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByFile(LoadScopeScheduling):
    """The tests of a file share their fixtures, and so a worker; those of compat_tests share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return "compat_tests" if file.startswith("compat_tests/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # by the number of tests, which says little about their time
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker: compat_tests first, then files that run a real runtime, so that no worker ends long after others."""
    if not hasattr(config, "workerinput"):
        return
    real = {item.path for item in items if item.get_closest_marker("runtime")}
    items.sort(key=lambda item: (not item.nodeid.startswith("compat_tests/"), item.path not in real))
