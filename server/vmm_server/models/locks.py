"""Locks that hold between threads and between processes, and are freed by the system when a process dies."""

import glob
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from vmm_server.errors import RequestCancelled

_POLL_S = 0.1
_MOMENT = "store.lock"
_KEPT = "keep-"


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

    def keep(self, names: Iterable[str]) -> Callable[[], None]:
        """Have `is_kept` true of these names, in every process, until what this returns is called, in any thread.

        As many as like may keep one. Raises `OSError`.
        """
        with self.moment(), ExitStack() as stack:
            for name in names:
                path = self._folder / f"{_KEPT}{name}-{uuid4().hex}.lock"
                lock = FileLock(path, thread_local=False)
                lock.acquire(timeout=0)
                stack.callback(path.unlink, missing_ok=True)
                stack.callback(lock.release)
            return stack.pop_all().close

    def is_kept(self, name: str) -> bool:
        """Whether somebody keeps it. Ask inside `moment()`."""
        return any(_is_held(path) for path in self._folder.glob(f"{_KEPT}{glob.escape(name)}-*.lock"))

    def sweep(self) -> None:
        """Delete the files of locks that nobody holds. Only inside `moment()`, and when `any_held()` is false."""
        for path in self._folder.glob("*.lock"):
            if path.name != _MOMENT and not (path.name.startswith(_KEPT) and _is_held(path)):
                path.unlink(missing_ok=True)

    def any_held(self) -> bool:
        """Whether a lock of `hold` is held. Ask inside `moment()`: then none is being taken."""
        paths = (path for path in self._folder.glob("*.lock") if not path.name.startswith((_MOMENT, _KEPT)))
        return any(map(_is_held, paths))

    def _try(self, lock: FileLock) -> bool:
        with self.moment():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        return True


def _is_held(path: Path) -> bool:
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False
