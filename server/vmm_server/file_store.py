"""Files that clients upload and batches write: `/v1/files`.

The content of a file lies in a folder under its id, what is known of it in the database that batches share: the bound
on the disk space is one for both. Content is written beside, under another name, and takes its own only when all of it
is on the disk; its row is made after that and removed before it. So a row always has its content, and what a killed
process leaves behind is content without a row, which `sweep` removes.

Files belong to a tenant; to others they are not there.
"""

import asyncio
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO

from vmm_server.database import Database, transaction
from vmm_server.errors import FileNotFound, InvalidRequest, StoreError

FILES_SCHEMA = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, num_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER
);
"""
OUTPUT = "batch_output"
"""The purpose of what batches write."""
PIECE_BYTES = 1024 * 1024
"""Files are read in pieces of this size."""
PARTIAL = ".partial"
_LEFT_BEHIND_S = 3600.0
"""Content without a row that nobody has written to for so long is nobody's."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a file."""

    id: str
    tenant: str
    filename: str
    """The client's name for it: to be shown, never to be opened."""
    purpose: str
    num_bytes: int
    sha256: str
    created_at: int
    expires_at: int | None
    """Both in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is said of a file that is about to be stored."""

    tenant: str
    filename: str
    purpose: str
    expires_after_s: int | None = None
    id: str | None = None
    """The id that it has to have; one that is there is replaced. `None`: a new one."""


class LateClock:
    """Seconds since 1970 for what expires: it may be late, never early.

    When the system's clock jumps ahead nothing expires for that, since time also has to pass on the monotonic clock;
    when it jumps back, things expire later. A new process believes the system's clock as it finds it.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        """Now."""
        return min(self._wall(), self._monotonic() + self._offset)


class FileStore:
    """See the module. `max_bytes` bounds what is kept; 0 keeps nothing. Methods may raise `StoreError`."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        max_bytes: int,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is what files expire by, `wall` what they are dated by."""
        self.is_enabled = max_bytes > 0
        self.folder = folder
        self._database = database
        self._max_bytes = max_bytes
        self._clock = clock or LateClock()
        self._wall = wall
        self._late = LateClock()  # what is being written is nobody's leftover, however the clock jumps
        self._arriving_bytes = 0

    async def put(self, new: NewFile, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Keep a file, whole or not at all.

        Raises `InvalidRequest` where no files are kept, `StoreError` when there is no room for it.
        """
        if not self.is_enabled:
            raise InvalidRequest("this server keeps no files (file_store_size is 0)")
        file_id = new.id or f"file-{secrets.token_hex(12)}"
        content, arrived = _Content(self.folder / file_id), 0
        try:
            kept_bytes = await self._database.run(used_bytes)
            await asyncio.to_thread(content.open)
            try:
                async for chunk in chunks:
                    self._arriving_bytes += len(chunk)
                    arrived += len(chunk)
                    if new.purpose != OUTPUT and kept_bytes + self._arriving_bytes > self._max_bytes:
                        raise no_room(self._max_bytes)
                    await asyncio.to_thread(content.write, chunk)
                await asyncio.to_thread(content.finish)
                return await self._register(new, file_id, content)
            except BaseException:
                await asyncio.to_thread(content.discard)
                raise
            finally:
                self._arriving_bytes -= arrived
        except OSError as error:
            hint = "see that the disk has room and the folder can be written to"
            raise StoreError(f"a file cannot be kept in {self.folder}: {error.strerror}", hint=hint) from error

    async def _register(self, new: NewFile, file_id: str, content: "_Content") -> StoredFile:
        created_at = int(self._wall())
        expires_at = None if new.expires_after_s is None else created_at + new.expires_after_s
        num_bytes, sha256 = content.num_bytes, content.digest.hexdigest()
        file = StoredFile(file_id, new.tenant, new.filename, new.purpose, num_bytes, sha256, created_at, expires_at)
        max_bytes = None if new.purpose == OUTPUT else self._max_bytes
        await self._database.run(lambda connection: _insert(connection, file, max_bytes))
        return file

    async def get(self, file_id: str, tenant: str, *, param: str = "file_id") -> StoredFile:
        """What is known of a tenant's file. Raises `FileNotFound`, with the field that named it."""
        file = await self._database.run(lambda connection: _get(connection, file_id))
        if file is None or file.tenant != tenant or self._is_over(file):
            raise FileNotFound(file_id, param=param)
        return file

    async def page(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, ascending: bool
    ) -> tuple[list[StoredFile], bool]:
        """A tenant's files by age, and whether more follow. Raises `InvalidRequest` for an `after` that is not here."""
        now = self._clock()
        return await self._database.run(
            lambda connection: _page(connection, tenant, now, purpose, after, limit, ascending)
        )

    async def delete(self, file_id: str, tenant: str) -> None:
        """Forget a file. Raises `FileNotFound`."""
        file = await self.get(file_id, tenant)
        await self._remove([file.id])

    async def open(self, file: StoredFile) -> IO[bytes]:
        """Its content, at the start; who asks closes it. It can be read to its end even if the file is deleted.

        Raises `FileNotFound` when it was deleted since.
        """
        try:
            return await asyncio.to_thread((self.folder / file.id).open, "rb")
        except FileNotFoundError as error:
            raise FileNotFound(file.id) from error
        except OSError as error:
            raise StoreError(f"{file.id} cannot be read: {error.strerror}") from error

    async def sweep(self) -> None:
        """Remove what has expired, and content that a killed process left behind; give the space back.

        Files may come and go meanwhile. Raises `StoreError` for content that cannot be deleted.
        """
        now = self._clock()
        await self._remove(await self._database.run(lambda connection: _expired(connection, now)))
        names = await asyncio.to_thread(self._old_names)
        known = await self._database.run(_ids)
        await asyncio.to_thread(self._unlink, [name for name in names if name not in known])
        await self._database.give_back()

    def _is_over(self, file: StoredFile) -> bool:
        return file.expires_at is not None and file.expires_at <= self._clock()

    async def _remove(self, file_ids: Sequence[str]) -> None:
        def forget(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM files WHERE id = ?", [(one,) for one in file_ids])

        if file_ids:
            await self._database.run(forget)
            await asyncio.to_thread(self._unlink, file_ids)

    def _old_names(self) -> list[str]:
        newest = self._late() - _LEFT_BEHIND_S
        try:
            return [path.name for path in self.folder.iterdir() if _was_written_before(newest, path)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be read: {error.strerror}") from error

    def _unlink(self, names: Sequence[str]) -> None:
        failure: OSError | None = None
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                failure = error
        if failure is not None:
            raise StoreError(f"{failure.filename} cannot be deleted: {failure.strerror}") from failure


class _Content:
    """A file in the making. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self.digest = hashlib.sha256()
        self._path = path
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        self._file: IO[bytes] | None = None
        self._is_named = False

    def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, chunk: bytes) -> None:
        if self._file is not None:
            self.num_bytes += len(chunk)
            self.digest.update(chunk)
            self._file.write(chunk)

    def finish(self) -> None:
        """All of it is on the disk, under its name."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self._path)
            self._is_named = True

    def discard(self) -> None:
        if self._file is not None:
            try:
                self._file.close()  # writes what it still holds, which may fail once more
            except OSError:
                self._file = None
        (self._path if self._is_named else self._partial).unlink(missing_ok=True)


def _was_written_before(newest: float, path: Path) -> bool:
    try:
        return path.stat().st_mtime < newest
    except FileNotFoundError:  # it has got its name, or was deleted, since the folder was read
        return False


async def pieces(content: IO[bytes]) -> AsyncIterator[bytes]:
    """What is left of an open file. Closes nothing."""
    while piece := await asyncio.to_thread(content.read, PIECE_BYTES):
        yield piece


def used_bytes(connection: sqlite3.Connection) -> int:
    """What files, and the lines of batches that are not over, take of the disk."""
    (files,) = connection.execute("SELECT coalesce(sum(num_bytes), 0) FROM files").fetchone()
    (batches,) = connection.execute("SELECT coalesce(sum(num_bytes), 0) FROM batches").fetchone()
    return int(files) + int(batches)


def no_room(max_bytes: int) -> StoreError:
    """Files and batches have all the space that they may have."""
    return StoreError(
        f"stored files and batches would take more than {max_bytes} bytes",
        hint="delete files that are not needed any more; the limit is the server's setting file_store_size",
    )


_COLUMNS = ", ".join(field.name for field in fields(StoredFile))


def _insert(connection: sqlite3.Connection, file: StoredFile, max_bytes: int | None) -> None:
    with transaction(connection):
        if max_bytes is not None and used_bytes(connection) + file.num_bytes > max_bytes:
            raise no_room(max_bytes)
        marks = ", ".join("?" * len(fields(StoredFile)))
        connection.execute(f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES ({marks})", astuple(file))


def _get(connection: sqlite3.Connection, file_id: str) -> StoredFile | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM files WHERE id = ?", (file_id,)).fetchone()
    return None if row is None else StoredFile(*row)


def _page(
    connection: sqlite3.Connection,
    tenant: str,
    now: float,
    purpose: str | None,
    after: str | None,
    limit: int,
    ascending: bool,
) -> tuple[list[StoredFile], bool]:
    start = place_of(connection, "files", tenant, after, ascending)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM files WHERE tenant = ? AND number {'>' if ascending else '<'} ?"
        " AND (expires_at IS NULL OR expires_at > ?) AND (? IS NULL OR purpose = ?)"
        f" ORDER BY number {'ASC' if ascending else 'DESC'} LIMIT ?",
        (tenant, start, now, purpose, purpose, limit + 1),
    ).fetchall()
    return [StoredFile(*row) for row in rows[:limit]], len(rows) > limit


def place_of(connection: sqlite3.Connection, table: str, tenant: str, after: str | None, ascending: bool) -> int:
    """The number that a page follows. Raises `InvalidRequest` where `after` names nothing of the tenant's."""
    if after is None:
        return 0 if ascending else 2**62
    row = connection.execute(f"SELECT number FROM {table} WHERE id = ? AND tenant = ?", (after, tenant)).fetchone()
    if row is None:
        raise InvalidRequest(f"after: there is no {after[:100]!r} here", param="after")
    return int(row[0])


def _expired(connection: sqlite3.Connection, now: float) -> list[str]:
    return [one for (one,) in connection.execute("SELECT id FROM files WHERE expires_at <= ?", (now,))]


def _ids(connection: sqlite3.Connection) -> set[str]:
    return {one for (one,) in connection.execute("SELECT id FROM files")}
