"""The file of stored responses: chains, bounds, damage, company."""

import asyncio
import functools
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vmm_server.errors import PreviousResponseNotFound, StoreError
from vmm_server.response_store import ResponseStore

ME = "key-1"


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "responses.db"


@asynccontextmanager
async def opened(path: Path, **limits: float) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(path, **({"max_bytes": 10**6} | limits))
    try:
        yield store
    finally:
        await store.aclose()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


def body(name: str, previous: str | None = None, **fields: object) -> dict[str, object]:
    return {"id": name, "previous_response_id": previous, "output": "replaced"} | fields


def item(name: str) -> dict[str, object]:
    return {"id": name, "text": f"é of {name}"}


async def put(store: ResponseStore, name: str, previous: str | None = None, size: int = 0, *, tenant: str = ME) -> bool:
    return await store.put(
        body(name, previous, filler="x" * size), tenant, given=[item(f"{name}.in")], output=[item(f"{name}.out")]
    )


def names(items: list[dict[str, object]] | None) -> list[object]:
    assert items is not None
    return [one["id"] for one in items]


async def kept(store: ResponseStore, *candidates: str) -> list[str]:
    return [name for name in candidates if await store.get(name, ME)]


@in_a_loop
async def test_a_response_comes_back_as_it_was_put(path: Path) -> None:
    async with opened(path) as store:
        assert await put(store, "a")
        assert await store.get("a", ME) == body("a", filler="") | {"output": [item("a.out")]}
        assert await store.get("b", ME) is None
        assert await store.output_items(["a.in", "a.out", "b.out"], ME) == {"a.out": item("a.out")}


@in_a_loop
async def test_a_conversation_is_the_items_of_its_chain_in_order(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
        await put(store, "b", "a")
        await put(store, "c", "b")
        await put(store, "fork", "a")
        assert names(await store.conversation("c", ME)) == ["a.in", "a.out", "b.in", "b.out", "c.in", "c.out"]
        assert names(await store.conversation("fork", ME)) == ["a.in", "a.out", "fork.in", "fork.out"]
        assert names(await store.given_items("c", ME)) == ["a.in", "a.out", "b.in", "b.out", "c.in"]
        assert await store.given_items("nobody", ME) is None


@in_a_loop
async def test_a_deleted_response_ends_the_chains_that_went_through_it(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
        await put(store, "b", "a")
        await put(store, "c", "b")
        assert await store.delete("b", ME)
        assert not await store.delete("b", ME)
        assert await store.output_items(["b.out"], ME) == {}
        with pytest.raises(PreviousResponseNotFound, match="'b'"):
            await store.conversation("c", ME)
        with pytest.raises(PreviousResponseNotFound, match="'b'"):
            await store.conversation("b", ME)
        assert names(await store.given_items("c", ME)) == ["c.in"]
        assert names(await store.conversation("a", ME)) == ["a.in", "a.out"]


@in_a_loop
async def test_what_was_not_used_for_longest_goes(path: Path) -> None:
    async with opened(path, max_responses=3) as store:
        await put(store, "a")
        await put(store, "b", "a")
        await put(store, "c")
        await store.conversation("b", ME)
        await put(store, "d")
        assert await kept(store, "a", "b", "c", "d") == ["a", "b", "d"]
        await put(store, "e")
        assert await kept(store, "a", "b", "d", "e") == ["b", "d", "e"]
        assert await store.output_items(["a.out"], ME) == {}


@in_a_loop
async def test_bytes_are_bounded(path: Path) -> None:
    async with opened(path, max_bytes=10_000) as store:
        for name in "abcdef":
            assert await put(store, name, size=3000)
        assert await kept(store, *"abcdef") == ["d", "e", "f"]
        assert not await put(store, "huge", size=10_000)
        assert await kept(store, *"def", "huge") == ["d", "e", "f"]


@in_a_loop
async def test_nothing_is_kept_when_it_is_off(path: Path) -> None:
    async with opened(path, max_bytes=0) as store:
        assert not store.is_enabled
        assert not await put(store, "a")
        assert await store.get("a", ME) is None
        assert await store.given_items("a", ME) is None
        assert not await store.delete("a", ME)
        with pytest.raises(PreviousResponseNotFound):
            await store.conversation("a", ME)
    assert not path.parent.exists()


@in_a_loop
async def test_a_response_is_not_there_for_another_tenant(path: Path) -> None:
    other = "key-2"
    async with opened(path) as store:
        await put(store, "a")
        assert await store.get("a", other) is None
        assert await store.given_items("a", other) is None
        assert await store.output_items(["a.out"], other) == {}
        assert not await store.delete("a", other)
        with pytest.raises(PreviousResponseNotFound):
            await store.conversation("a", other)
        await put(store, "theirs", "a", tenant=other)  # the chain ends where it becomes another's
        with pytest.raises(PreviousResponseNotFound) as caught:
            await store.conversation("theirs", other)
        assert "'a'" in caught.value.message
        assert names(await store.given_items("theirs", other)) == ["theirs.in"]
        assert names(await store.conversation("a", ME)) == ["a.in", "a.out"]


VERSION_1 = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, previous_id TEXT, used INTEGER NOT NULL, num_bytes INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX responses_by_use ON responses (used);
CREATE TABLE items (
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, is_output INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (response_id, position)
) WITHOUT ROWID;
CREATE TABLE totals (num INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (1, 30);
INSERT INTO responses VALUES ('old', NULL, 1, 30, '{"id": "old", "previous_response_id": null}');
INSERT INTO items VALUES ('old', 0, 1, 'old.out', '{"id": "old.out"}');
PRAGMA user_version = 1;
"""


@in_a_loop
async def test_responses_from_before_there_were_tenants_are_nobodys(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    async with opened(path) as store, opened(path) as beside:
        assert names(await store.conversation("old", "")) == ["old.out"]
        assert await store.get("old", ME) is None
        await put(beside, "new", "old", tenant="")
        assert names(await store.conversation("new", "")) == ["old.out", "new.in", "new.out"]
    assert not list(path.parent.glob("*.unreadable-*"))


@in_a_loop
async def test_responses_survive_a_restart_and_are_private(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
        assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.glob("responses.db*[!k]")} == {0o600}
    async with opened(path) as store:
        assert await kept(store, "a") == ["a"]


@in_a_loop
async def test_a_store_that_was_closed_stays_closed(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
        await store.aclose()
        await store.aclose()
        with pytest.raises(RuntimeError):
            await store.get("a", ME)


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to look at" * 100, b"SQLite format 3\0" * 99]
)
@in_a_loop
async def test_a_file_that_cannot_be_read_is_set_aside(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, content)
    async with opened(path) as store:
        assert await put(store, "a")
        assert await kept(store, "a") == ["a"]
    (aside,) = path.parent.glob("responses.db.unreadable-*")
    assert aside.read_bytes() == content
    (record,) = caplog.records
    assert aside.name in record.getMessage()


@in_a_loop
async def test_a_file_of_another_version_is_set_aside(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    async with opened(path) as store:
        assert await kept(store, "a") == []
        assert await put(store, "b")
    assert len(list(path.parent.glob("responses.db.unreadable-*"))) == 1


@in_a_loop
async def test_damage_under_a_running_server_costs_the_file_and_no_more(path: Path) -> None:
    async with opened(path) as store:
        for name in "abcdefgh":
            await put(store, name, size=20_000)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    async with opened(path) as store, opened(path) as other:
        assert await put(store, "new")
        assert await kept(other, "new") == ["new"]
        assert await put(other, "newer", "new")
        assert names(await store.conversation("newer", ME)) == ["new.in", "new.out", "newer.in", "newer.out"]
    assert len(list(path.parent.glob("responses.db.unreadable-*"))) == 1


@in_a_loop
async def test_a_file_that_is_gone_is_made_again(path: Path) -> None:
    async with opened(path) as store:
        await put(store, "a")
        for part in path.parent.glob("responses.db*"):
            part.unlink()
        assert await put(store, "b")
        assert await kept(store, "a", "b") == ["b"]


@in_a_loop
async def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with opened(tmp_path / "file" / "responses.db") as store:
        with pytest.raises(StoreError, match=r"responses\.db") as caught:
            await put(store, "a")
        assert caught.value.hint
        assert "response_store_size" in caught.value.hint


@in_a_loop
async def test_a_file_that_another_process_holds_is_a_store_error_and_stays(path: Path) -> None:
    async with opened(path, busy_s=0.05) as store:
        await put(store, "a")
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked"):
            await put(store, "b")
        connection.execute("ROLLBACK")
        connection.close()
        assert await put(store, "c")
        assert await kept(store, "a", "b", "c") == ["a", "c"]


WRITER = """
import asyncio, sys
from pathlib import Path
from vmm_server.response_store import ResponseStore

async def main(path, name):
    store = ResponseStore(Path(path), max_bytes=10**6)
    for number in range(25):
        previous = f"{name}{number - 1}" if number else None
        response = {"id": f"{name}{number}", "previous_response_id": previous, "output": []}
        await store.put(response, "key-1", given=[{"id": f"{name}{number}.in"}], output=[])
        assert len(await store.conversation(f"{name}{number}", "key-1")) == number + 1
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@in_a_loop
async def test_processes_share_a_file(path: Path) -> None:
    start = functools.partial(asyncio.create_subprocess_exec, sys.executable, "-c", WRITER, str(path))
    writers = [await start(name) for name in "abc"]
    assert [await writer.wait() for writer in writers] == [0, 0, 0]
    async with opened(path) as store:
        for name in "abc":
            assert len(await store.conversation(f"{name}24", ME)) == 25
