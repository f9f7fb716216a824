"""Batches and their lines: what `/v1/batches` keeps.

A line has one row. It holds what is asked until it is done, and what came out from then on; both are one transaction
with the batch's counts. So however a process ends, every line has one result or none, and one that has none is
computed again. Lines go when their batch is over: by then its results are in files.
"""

import secrets
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from vmm_server.batch_lines import AskedLine, ResultLine, TokenUsage
from vmm_server.database import Contents, Database, transaction
from vmm_server.errors import BatchNotFound
from vmm_server.file_store import FILES_SCHEMA, no_room, place_of, used_bytes

LIVE = ("validating", "in_progress", "finalizing", "cancelling")
"""States of a batch that is not over."""
MAX_ENDED = 10_000
"""Batches that are over and still told of; the oldest go first."""

_SCHEMA = f"""
{FILES_SCHEMA}
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, status TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_file_id TEXT NOT NULL, completion_window TEXT NOT NULL, metadata BLOB,
    output_expires_after_s INTEGER, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    in_progress_at INTEGER, finalizing_at INTEGER, completed_at INTEGER, failed_at INTEGER, expired_at INTEGER,
    cancelling_at INTEGER, cancelled_at INTEGER, model TEXT, output_file_id TEXT, error_file_id TEXT, errors BLOB,
    num_lines INTEGER NOT NULL, num_completed INTEGER NOT NULL, num_failed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL, num_bytes INTEGER NOT NULL
);
CREATE INDEX batches_by_status ON batches (status);
CREATE TABLE lines (
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    number INTEGER NOT NULL, custom_id TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    starts INTEGER NOT NULL DEFAULT 0, content BLOB NOT NULL, PRIMARY KEY (batch_id, number)
);
CREATE INDEX lines_by_state ON lines (batch_id, state, starts DESC, number);
"""
_WAITING, _UNDER_WAY, _COMPLETED, _FAILED = range(4)
"""Of a line."""
_CONTENTS = Contents(
    "the batches and what is known of files",
    _SCHEMA,
    version=1,
    hint="see that the disk has room and the folder can be written to, or set file_store_size to 0",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch; times in seconds since 1970."""

    id: str
    tenant: str
    status: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: bytes | None
    """JSON."""
    output_expires_after_s: int | None
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    model: str | None = None
    """Of all lines, if it is the same."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: bytes | None = None
    """JSON: a list of `LineError`."""
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    num_bytes: int = 0
    """Of its lines and what came out of them, until it is over."""

    @property
    def is_live(self) -> bool:
        """Whether it is not over."""
        return self.status in LIVE

    @property
    def usage(self) -> TokenUsage:
        """Of all lines that are done."""
        return TokenUsage(self.input_tokens, self.cached_tokens, self.output_tokens, self.reasoning_tokens)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is to be computed."""

    number: int
    custom_id: str
    starts: int
    """How often it was begun, this time too: more than once where a process died meanwhile."""
    body: bytes


def open_database(path: Path, *, busy_s: float = 5.0) -> Database:
    """The file of batches and of what is known of stored files."""
    return Database(path, _CONTENTS, busy_s=busy_s)


class JobStore:
    """See the module. `max_bytes` bounds files and batches together. Every method may raise `StoreError`."""

    def __init__(self, database: Database, *, max_bytes: int) -> None:
        self._database = database
        self._max_bytes = max_bytes

    async def add(self, batch: Batch, *, max_live: int) -> bool:
        """A new batch; False when its tenant has `max_live` that are not over."""
        return await self._database.run(lambda connection: _add(connection, batch, max_live))

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        """A batch, of a tenant where one is given. Raises `BatchNotFound`."""
        batch = await self._database.run(lambda connection: _get(connection, batch_id))
        if batch is None or tenant not in (None, batch.tenant):
            raise BatchNotFound(batch_id)
        return batch

    async def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """A tenant's batches, the newest first, and whether more follow. Raises `InvalidRequest` naming `after`."""
        return await self._database.run(lambda connection: _page(connection, tenant, after, limit))

    async def live(self) -> list[Batch]:
        """All that are not over, the oldest first."""
        return await self._database.run(_live)

    async def move(self, batch_id: str, allowed: Collection[str], **changes: object) -> bool:
        """Change columns of a batch, if its status is one of `allowed`. One that is over then loses its lines."""
        is_moved = await self._database.run(lambda connection: _move(connection, batch_id, allowed, changes))
        if is_moved and changes.get("status") not in (None, *LIVE):
            await self._database.give_back()
        return is_moved

    async def add_lines(self, batch_id: str, lines: Sequence[AskedLine]) -> bool:
        """More lines of a batch; False when it is not in validation any more."""
        return await self._database.run(lambda connection: _add_lines(connection, batch_id, lines, self._max_bytes))

    async def drop_lines(self, batch_id: str) -> None:
        """All lines of a batch, before they are read anew."""
        await self._database.run(lambda connection: _drop_lines(connection, batch_id))

    async def begin_line(self, batch_id: str) -> Line | None:
        """The next line to compute; from now on it is under way. `None`: there is none, or the batch has moved on.

        Those that were under way when a process died come first.
        """
        return await self._database.run(lambda connection: _begin_line(connection, batch_id))

    async def put_back(self, batch_id: str) -> None:
        """A batch's lines under way, which were broken off in good order."""
        await self._database.run(lambda connection: _put_back(connection, batch_id))

    async def put_back_all(self) -> None:
        """Every line under way: no process is there any more that computes them."""
        await self._database.run(_put_back_all)

    async def finish_line(self, batch_id: str, number: int, result: ResultLine) -> None:
        """What came out of a line that is under way; nothing happens if it is not."""
        await self._database.run(lambda connection: _finish_line(connection, batch_id, number, result, self._max_bytes))

    async def results(self, batch_id: str, *, failed: bool, after: int, limit: int) -> list[tuple[int, bytes]]:
        """A page of results by line number: those that failed, or the others."""
        return await self._database.run(
            lambda connection: _results(connection, batch_id, _FAILED if failed else _COMPLETED, after, limit)
        )

    async def unfinished(self, batch_id: str, *, after: int, limit: int) -> list[tuple[int, str]]:
        """A page of lines that have no result: number and `custom_id`."""
        return await self._database.run(lambda connection: _unfinished(connection, batch_id, after, limit))


_NAMES = tuple(field.name for field in fields(Batch))
_COLUMNS = ", ".join(_NAMES)


def new_batch_id() -> str:
    """An id that nobody guesses."""
    return f"batch_{secrets.token_hex(16)}"


def _add(connection: sqlite3.Connection, batch: Batch, max_live: int) -> bool:
    marks = ", ".join("?" * len(_NAMES))
    with transaction(connection):
        (num_live,) = connection.execute(
            f"SELECT count(*) FROM batches WHERE tenant = ? AND status IN {LIVE}", (batch.tenant,)
        ).fetchone()
        if num_live >= max_live:
            return False
        connection.execute(f"INSERT INTO batches ({_COLUMNS}) VALUES ({marks})", astuple(batch))
        connection.execute(
            f"DELETE FROM batches WHERE status NOT IN {LIVE} AND number <= (SELECT number FROM batches"
            f" WHERE status NOT IN {LIVE} ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (MAX_ENDED,),
        )
    return True


def _get(connection: sqlite3.Connection, batch_id: str) -> Batch | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return None if row is None else Batch(*row)


def _page(connection: sqlite3.Connection, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
    start = place_of(connection, "batches", tenant, after, ascending=False)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM batches WHERE tenant = ? AND number < ? ORDER BY number DESC LIMIT ?",
        (tenant, start, limit + 1),
    ).fetchall()
    return [Batch(*row) for row in rows[:limit]], len(rows) > limit


def _live(connection: sqlite3.Connection) -> list[Batch]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM batches WHERE status IN {LIVE} ORDER BY number")
    return [Batch(*row) for row in rows]


def _move(connection: sqlite3.Connection, batch_id: str, allowed: Collection[str], changes: dict[str, object]) -> bool:
    ends = changes.get("status") not in (None, *LIVE)
    if ends:
        changes = changes | {"num_bytes": 0}
    with transaction(connection):
        row = connection.execute("SELECT status FROM batches WHERE id = ?", (batch_id,)).fetchone()
        if row is None or row[0] not in allowed:
            return False
        assignments = ", ".join(f"{name} = ?" for name in changes)
        connection.execute(f"UPDATE batches SET {assignments} WHERE id = ?", (*changes.values(), batch_id))
        if ends:
            connection.execute("DELETE FROM lines WHERE batch_id = ?", (batch_id,))
    return True


def _add_lines(connection: sqlite3.Connection, batch_id: str, lines: Sequence[AskedLine], max_bytes: int) -> bool:
    num_bytes = sum(len(line.body) for line in lines)
    with transaction(connection):
        row = connection.execute("SELECT status FROM batches WHERE id = ?", (batch_id,)).fetchone()
        if row is None or row[0] != "validating":
            return False
        _claim_bytes(connection, batch_id, num_bytes, max_bytes)
        connection.executemany(
            "INSERT INTO lines (batch_id, number, custom_id, content) VALUES (?, ?, ?, ?)",
            [(batch_id, line.number, line.custom_id, line.body) for line in lines],
        )
    return True


def _claim_bytes(connection: sqlite3.Connection, batch_id: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > 0 and used_bytes(connection) + num_bytes > max_bytes:
        raise no_room(max_bytes)
    connection.execute("UPDATE batches SET num_bytes = num_bytes + ? WHERE id = ?", (num_bytes, batch_id))


def _drop_lines(connection: sqlite3.Connection, batch_id: str) -> None:
    with transaction(connection):
        connection.execute("DELETE FROM lines WHERE batch_id = ?", (batch_id,))
        connection.execute("UPDATE batches SET num_bytes = 0 WHERE id = ?", (batch_id,))


def _begin_line(connection: sqlite3.Connection, batch_id: str) -> Line | None:
    with transaction(connection):
        row = connection.execute(
            "SELECT lines.number, custom_id, starts + 1, content FROM lines JOIN batches ON batches.id = batch_id"
            " WHERE batch_id = ? AND state = ? AND status = 'in_progress' ORDER BY starts DESC, lines.number LIMIT 1",
            (batch_id, _WAITING),
        ).fetchone()
        if row is None:
            return None
        line = Line(*row)
        connection.execute(
            "UPDATE lines SET state = ?, starts = ? WHERE batch_id = ? AND number = ?",
            (_UNDER_WAY, line.starts, batch_id, line.number),
        )
    return line


def _put_back(connection: sqlite3.Connection, batch_id: str) -> None:
    connection.execute(
        "UPDATE lines SET state = ?, starts = starts - 1 WHERE batch_id = ? AND state = ?",
        (_WAITING, batch_id, _UNDER_WAY),
    )


def _put_back_all(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE lines SET state = ? WHERE state = ?", (_WAITING, _UNDER_WAY))


def _finish_line(
    connection: sqlite3.Connection, batch_id: str, number: int, result: ResultLine, max_bytes: int
) -> None:
    with transaction(connection):
        row = connection.execute(
            "SELECT length(content) FROM lines WHERE batch_id = ? AND number = ? AND state = ?",
            (batch_id, number, _UNDER_WAY),
        ).fetchone()
        if row is None:
            return
        _claim_bytes(connection, batch_id, len(result.text) - row[0], max_bytes)
        connection.execute(
            "UPDATE lines SET state = ?, content = ? WHERE batch_id = ? AND number = ?",
            (_FAILED if result.is_error else _COMPLETED, result.text, batch_id, number),
        )
        usage = result.usage
        connection.execute(
            "UPDATE batches SET num_completed = num_completed + ?, num_failed = num_failed + ?,"
            " input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?,"
            " output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ? WHERE id = ?",
            (
                *(not result.is_error, result.is_error),
                *(usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens),
                batch_id,
            ),
        )


def _results(
    connection: sqlite3.Connection, batch_id: str, state: int, after: int, limit: int
) -> list[tuple[int, bytes]]:
    return connection.execute(
        "SELECT number, content FROM lines WHERE batch_id = ? AND state = ? AND number > ? ORDER BY number LIMIT ?",
        (batch_id, state, after, limit),
    ).fetchall()


def _unfinished(connection: sqlite3.Connection, batch_id: str, after: int, limit: int) -> list[tuple[int, str]]:
    return connection.execute(
        "SELECT number, custom_id FROM lines WHERE batch_id = ? AND state IN (?, ?) AND number > ?"
        " ORDER BY number LIMIT ?",
        (batch_id, _WAITING, _UNDER_WAY, after, limit),
    ).fetchall()
