"""Locks that hold between threads and between processes, and are freed by the system when a process dies."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vmm_server.errors import RequestCancelled

_POLL_S = 0.1
_MOMENT = "store.lock"


class Locks:
    """Named locks, each a file in `folder`. None may be taken twice by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def moment(self) -> Iterator[None]:
        """The one lock around short changes of state: manifests, deletions, taking a lease."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / _MOMENT):
            yield

    @contextmanager
    def hold(self, name: str, cancelled: threading.Event, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock `name`, for as long as the work takes.

        `waiting` is called once if another holds it. Raises `RequestCancelled` when `cancelled` is set meanwhile.
        """
        lock = FileLock(self._folder / f"{name}.lock")
        while not self._try(lock):
            if waiting:
                waiting()
                waiting = None
            if cancelled.wait(_POLL_S):
                raise RequestCancelled
        try:
            yield
        finally:
            lock.release()

    def sweep(self) -> None:
        """Delete the files of locks that nobody holds. Only inside `moment()`, and when `any_held()` is false."""
        for path in self._folder.glob("*.lock"):
            if path.name != _MOMENT:
                path.unlink(missing_ok=True)

    def any_held(self) -> bool:
        """Whether a lock but `moment()` is held. Ask inside `moment()`: then none is being taken."""
        for path in self._folder.glob("*.lock"):
            if path.name == _MOMENT:
                continue
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                return True
        return False

    def _try(self, lock: FileLock) -> bool:
        with self.moment():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        return True
