"""One SQLite file that is not lost: what every store of this server needs around its tables.

A thread of its own does all the work, several processes may share the file (WAL), and a file that SQLite cannot read
is set aside, never deleted. What was committed is there after the process is killed; after a power cut the last
moments may be missing, never half of a transaction.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from filelock import Timeout as LockTimeout

from vmm_server.errors import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_IDLE_LOG_BYTES = 16 * 1024 * 1024
"""Of the write-ahead log, once all of it is in the file."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies in a file."""

    name: str
    """In the words of errors: `the stored responses`."""
    schema: str
    """Statements that make the tables of a new file."""
    version: int
    """Of the schema; a file of another one, which `migrations` do not know, is set aside."""
    hint: str
    """What helps when the file cannot be used."""
    migrations: Mapping[int, str] = field(default_factory=dict)
    """Version → the statement that makes the next one of it."""


class Database:
    """See the module. Every method may raise `StoreError`."""

    def __init__(self, path: Path, contents: Contents, *, busy_s: float = 5.0) -> None:
        """`busy_s` is how long to wait for another process."""
        self._path = path
        self._contents = contents
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._executor = ThreadPoolExecutor(1, path.stem)

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do `work` in the file's thread, in the order of the calls; on a new file when this one turns out damaged."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._attempt, work)

    async def give_back(self) -> None:
        """Give space that is not used any more back to the disk."""
        script = "PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)"
        await self.run(lambda connection: connection.executescript(script))  # `execute` would free one page

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        try:
            self._executor.submit(self._disconnect)
        except RuntimeError:  # it was shut down before: the only error this call has
            return
        self._executor.shutdown()

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            try:
                return work(self._connect())
            except sqlite3.DatabaseError as error:
                if not _is_unreadable(error):
                    raise
                self._set_aside(error)
                return work(self._connect())
        except (sqlite3.Error, OSError, LockTimeout) as error:
            message = f"cannot use {self._contents.name} in {self._path}: {error}"
            raise StoreError(message, hint=self._contents.hint) from error

    def _connect(self) -> sqlite3.Connection:
        """The connection; a new one when another process has replaced the file."""
        if self._connection is not None and _inode(self._path) == self._inode:
            return self._connection
        self._disconnect()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._path.touch(mode=0o600)  # what users say is nobody else's; SQLite's other files take the mode over
            self._inode = _inode(self._path)
            connection = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None)
            try:
                _prepare(connection, self._contents)
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Give the file another name, unless another process has done so."""
        self._disconnect()
        with self._lock():
            if _inode(self._path) != self._inode:
                return
            aside = self._path.with_name(f"{self._path.name}.unreadable-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.replace(aside.with_name(aside.name + suffix))
        logger.warning(
            "%s cannot be read (%s): they are in %s now, and a new file begins", self._contents.name, error, aside
        )

    def _lock(self) -> FileLock:
        """Held while the file is made or moved: two processes must not do that at the same time."""
        return FileLock(f"{self._path}.lock", timeout=self._busy_s)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is written inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise


def _prepare(connection: sqlite3.Connection, contents: Contents) -> None:
    """Options of a new connection, and tables in a new file; those of an older one made into today's."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; an old one stays as it is
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_LOG_BYTES}")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = FAST")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {contents.schema} PRAGMA user_version = {contents.version}; COMMIT")
        version = contents.version
    while statement := contents.migrations.get(version):
        version += 1
        with transaction(connection):
            connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")
    if version != contents.version:
        raise sqlite3.DatabaseError(f"it has version {version}, this server reads version {contents.version}")


def _is_unreadable(error: sqlite3.DatabaseError) -> bool:
    """It is damaged, no database, or of another version; not: it is busy, or the disk is full."""
    code = getattr(error, "sqlite_errorcode", None)  # missing on the one that `_prepare` raises
    return code is None or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
