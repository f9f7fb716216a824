"""Responses kept for later: `previous_response_id`, `GET /v1/responses/{id}` and references to items.

One SQLite file. A response has its place in a chain (`previous_id`) and its own items, given ones first; a conversation
is the items of its chain, so nothing is stored twice. What was not used for longest goes when a bound is passed; using
a conversation uses every response in it. Responses belong to a tenant; to others they are not there.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmm_server.database import Contents, Database, transaction
from vmm_server.errors import PreviousResponseNotFound

Json = dict[str, object]
"""A JSON object; the store looks into none but for its `id`."""

MAX_RESPONSES = 100_000
"""Kept at most, however small they are."""
_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, previous_id TEXT, used INTEGER NOT NULL, num_bytes INTEGER NOT NULL, body BLOB NOT NULL,
    tenant TEXT NOT NULL DEFAULT ''
);
CREATE INDEX responses_by_use ON responses (used);
CREATE TABLE items (
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, is_output INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (response_id, position)
) WITHOUT ROWID;
CREATE INDEX items_by_id ON items (id);
CREATE TABLE totals (num INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER responses_more AFTER INSERT ON responses
BEGIN UPDATE totals SET num = num + 1, num_bytes = num_bytes + NEW.num_bytes; END;
CREATE TRIGGER responses_less AFTER DELETE ON responses
BEGIN UPDATE totals SET num = num - 1, num_bytes = num_bytes - OLD.num_bytes; END;
"""
_CONTENTS = Contents(
    "the stored responses",
    _SCHEMA,
    version=2,
    hint="see that the disk has room and the folder can be written to, or set response_store_size to 0",
    migrations={1: "ALTER TABLE responses ADD COLUMN tenant TEXT NOT NULL DEFAULT ''"},
)
_CHAIN = """
WITH RECURSIVE chain (id, previous_id, depth) AS (
    SELECT id, previous_id, 0 FROM responses WHERE id = :id AND tenant = :tenant
    UNION ALL
    SELECT one.id, one.previous_id, depth + 1 FROM responses AS one JOIN chain ON one.id = chain.previous_id
    WHERE one.tenant = :tenant
)
SELECT id, previous_id FROM chain ORDER BY depth DESC
"""
_OUTPUT_ITEM = """
SELECT items.body FROM items JOIN responses ON responses.id = response_id
WHERE items.id = ? AND is_output AND tenant = ? LIMIT 1
"""


class ResponseStore:
    """See the module. `max_bytes` bounds what is kept; 0 keeps nothing, and then there is no file.

    Every method may raise `StoreError`.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_responses: int = MAX_RESPONSES, busy_s: float = 5.0) -> None:
        """`busy_s` is how long to wait for another process."""
        self.is_enabled = max_bytes > 0
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._database = Database(path, _CONTENTS, busy_s=busy_s)

    async def put(self, response: Json, tenant: str, *, given: Sequence[Json], output: Sequence[Json]) -> bool:
        """Keep a response, the items it was given and those it gave: `get` returns the latter as its `output`.

        False when nothing is kept here, or it alone is too large.
        """
        if not self.is_enabled:
            return False
        return await self._database.run(lambda connection: self._put(connection, response, tenant, given, output))

    async def get(self, response_id: str, tenant: str) -> Json | None:
        """A response as it was put."""
        return (
            await self._database.run(lambda connection: _get(connection, response_id, tenant))
            if self.is_enabled
            else None
        )

    async def delete(self, response_id: str, tenant: str) -> bool:
        """Forget a response with its items; false when it is not there. What came after it ends its chain there."""
        return self.is_enabled and await self._database.run(lambda connection: _delete(connection, response_id, tenant))

    async def conversation(self, response_id: str, tenant: str) -> list[Json]:
        """All items up to the end of a response, oldest first.

        Raises `PreviousResponseNotFound` naming the first response of the chain that is not there.
        """
        if not self.is_enabled:
            raise PreviousResponseNotFound(response_id)
        return await self._database.run(lambda connection: _conversation(connection, response_id, tenant))

    async def given_items(self, response_id: str, tenant: str) -> list[Json] | None:
        """The items a response answered, oldest first, with what is left of the chain before them."""
        return (
            await self._database.run(lambda connection: _given_items(connection, response_id, tenant))
            if self.is_enabled
            else None
        )

    async def output_items(self, item_ids: Sequence[str], tenant: str) -> dict[str, Json]:
        """Those of these items that are there, by id. Given ones may have ids that others can guess, so not they."""
        if not self.is_enabled or not item_ids:
            return {}
        return await self._database.run(lambda connection: _output_items(connection, item_ids, tenant))

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        await self._database.aclose()

    def _put(
        self, connection: sqlite3.Connection, response: Json, tenant: str, given: Sequence[Json], output: Sequence[Json]
    ) -> bool:
        response_id = response["id"]
        items = [
            (response_id, position, position >= len(given), item["id"], msgspec.json.encode(item))
            for position, item in enumerate([*given, *output])
        ]
        body = msgspec.json.encode(response | {"output": []})
        num_bytes = len(body) + sum(len(item[-1]) for item in items)
        if num_bytes > self._max_bytes:
            return False
        with transaction(connection):
            row = (response_id, response["previous_response_id"], _next_use(connection), num_bytes, body, tenant)
            connection.execute(
                "INSERT INTO responses (id, previous_id, used, num_bytes, body, tenant) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", items)
            while self._is_over_full(connection):
                connection.execute("DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY used LIMIT 1)")
        return True

    def _is_over_full(self, connection: sqlite3.Connection) -> bool:
        num, num_bytes = connection.execute("SELECT num, num_bytes FROM totals").fetchone()
        return bool(num > self._max_responses or num_bytes > self._max_bytes)


def _next_use(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(used), 0) FROM responses").fetchone()
    return int(last) + 1


def _get(connection: sqlite3.Connection, response_id: str, tenant: str) -> Json | None:
    row = connection.execute("SELECT body FROM responses WHERE id = ? AND tenant = ?", (response_id, tenant)).fetchone()
    if row is None:
        return None
    return _decode(row[0]) | {"output": _items_of(connection, response_id, given=False)}


def _delete(connection: sqlite3.Connection, response_id: str, tenant: str) -> bool:
    return connection.execute("DELETE FROM responses WHERE id = ? AND tenant = ?", (response_id, tenant)).rowcount > 0


def _conversation(connection: sqlite3.Connection, response_id: str, tenant: str) -> list[Json]:
    with transaction(connection):
        chain = connection.execute(_CHAIN, {"id": response_id, "tenant": tenant}).fetchall()
        missing = chain[0][1] if chain else response_id
        if missing is not None:
            raise PreviousResponseNotFound(missing)
        first = _next_use(connection)
        uses = [(use, one) for use, (one, _) in enumerate(chain, first)]
        connection.executemany("UPDATE responses SET used = ? WHERE id = ?", uses)
        return [item for one, _ in chain for item in _items_of(connection, one)]


def _given_items(connection: sqlite3.Connection, response_id: str, tenant: str) -> list[Json] | None:
    chain = [one for one, _ in connection.execute(_CHAIN, {"id": response_id, "tenant": tenant})]
    if not chain:
        return None
    before = [item for one in chain[:-1] for item in _items_of(connection, one)]
    return before + _items_of(connection, response_id, output=False)


def _items_of(
    connection: sqlite3.Connection, response_id: str, *, given: bool = True, output: bool = True
) -> list[Json]:
    rows = connection.execute(
        "SELECT body FROM items WHERE response_id = ? AND is_output BETWEEN ? AND ? ORDER BY position",
        (response_id, not given, output),
    )
    return [_decode(body) for (body,) in rows]


def _output_items(connection: sqlite3.Connection, item_ids: Sequence[str], tenant: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for item_id in item_ids:
        row = connection.execute(_OUTPUT_ITEM, (item_id, tenant)).fetchone()
        if row is not None:
            found[item_id] = _decode(row[0])
    return found


_decode = msgspec.json.Decoder(Json).decode
