"""Stored files: whole or not at all, bounded, of one tenant, gone when they expire and not before."""

import asyncio
import functools
import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vmm_server.batch_store import open_database
from vmm_server.errors import FileNotFound, InvalidRequest, StoreError
from vmm_server.file_store import OUTPUT, FileStore, LateClock, NewFile, StoredFile, pieces


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 30))

    return run


@asynccontextmanager
async def opened(home: Path, *, max_bytes: int = 1000, now: list[float] | None = None) -> AsyncIterator[FileStore]:
    database = open_database(home / "batches.db")
    times = now or [1000.0]
    try:
        yield FileStore(database, home / "files", max_bytes=max_bytes, clock=lambda: times[0], wall=lambda: times[0])
    finally:
        await database.aclose()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(store: FileStore, content: bytes = b"abc", tenant: str = "", **fields: Any) -> StoredFile:
    return await store.put(NewFile(tenant, "a.jsonl", **({"purpose": "batch"} | fields)), chunks(content))


async def read(store: FileStore, file: StoredFile) -> bytes:
    with await store.open(file) as content:
        return b"".join([piece async for piece in pieces(content)])


def names(store: FileStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


@in_a_loop
async def test_a_file_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await store.put(NewFile("alice", "a.jsonl", "batch", 60), chunks(b"abc", b"", b"def"))
        assert await store.get(file.id, "alice") == file
        assert (file.num_bytes, file.created_at, file.expires_at) == (6, 1000, 1060)
        assert file.sha256 == hashlib.sha256(b"abcdef").hexdigest()
        assert await read(store, file) == b"abcdef"
        assert names(store) == [file.id]
        assert stat.S_IMODE((store.folder / file.id).stat().st_mode) == 0o600
    async with opened(tmp_path) as store:
        assert await read(store, await store.get(file.id, "alice")) == b"abcdef"


@in_a_loop
async def test_files_of_others_are_not_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await put(store, tenant="alice")
        for other in ("bob", ""):
            with pytest.raises(FileNotFound):
                await store.get(file.id, other)
            with pytest.raises(FileNotFound):
                await store.delete(file.id, other)
            page, _ = await store.page(other, purpose=None, after=None, limit=9, ascending=True)
            assert page == []
        assert await read(store, file) == b"abc"


@in_a_loop
async def test_a_deleted_file_is_gone_and_can_be_read_to_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await put(store)
        with await store.open(file) as content:
            await store.delete(file.id, "")
            assert content.read() == b"abc"
        with pytest.raises(FileNotFound):
            await store.get(file.id, "")
        with pytest.raises(FileNotFound):
            await store.open(file)
        assert names(store) == []


@in_a_loop
async def test_files_together_have_so_much_room(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=10) as store:
        file = await put(store, b"x" * 6)
        with pytest.raises(StoreError, match="more than 10 bytes"):
            await put(store, b"y" * 5)
        assert names(store) == [file.id]
        assert (await put(store, b"z" * 5, purpose=OUTPUT)).num_bytes == 5
        await store.delete(file.id, "")
        assert (await put(store, b"y" * 5)).num_bytes == 5


@in_a_loop
async def test_an_upload_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        while num_read < 1000:
            num_read += 1
            yield b"xxxx"

    async with opened(tmp_path, max_bytes=10) as store:
        with pytest.raises(StoreError):
            await store.put(NewFile("", "a", "batch"), endless())
        assert num_read == 3
        assert names(store) == []


@in_a_loop
async def test_uploads_at_the_same_time_do_not_pass_the_bound_together(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=10) as store:
        tries = await asyncio.gather(*(put(store, b"x" * 6) for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(one, StoredFile) for one in tries) <= 1
        assert len(names(store)) == sum(isinstance(one, StoredFile) for one in tries)
        assert (await put(store, b"x" * 4)).num_bytes == 4


@in_a_loop
async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ConnectionError

    async with opened(tmp_path) as store:
        with pytest.raises(StoreError):
            await store.put(NewFile("", "a", "batch"), broken())
        assert names(store) == []


@in_a_loop
async def test_a_store_without_room_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=0) as store:
        with pytest.raises(InvalidRequest, match="file_store_size is 0"):
            await put(store)


FULL = """
import asyncio, json, resource, signal, sys
from pathlib import Path
from tests.test_file_store import opened, names, put
from vmm_server.errors import StoreError

async def main(home):
    async with opened(home, max_bytes=10**9) as store:
        kept = await put(store, b"a" * 1000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            await put(store, b"b" * 1_000_000)
        except StoreError as error:
            print(json.dumps([error.message, names(store) == [kept.id]]))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = textwrap.dedent(FULL)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "server", root / "adapters")))}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, env=environment
    )
    message, is_clean = json.loads(done.stdout)
    assert "File too large" in message
    assert is_clean


@in_a_loop
async def test_files_expire(tmp_path: Path) -> None:
    now = [1000.0]
    async with opened(tmp_path, now=now) as store:
        short, long = await put(store, expires_after_s=60), await put(store, expires_after_s=600)
        ever = await put(store)
        now[0] += 60
        with pytest.raises(FileNotFound):
            await store.get(short.id, "")
        page, _ = await store.page("", purpose=None, after=None, limit=9, ascending=True)
        assert page == [long, ever]
        await store.sweep()
        assert names(store) == sorted([long.id, ever.id])


@in_a_loop
async def test_what_a_killed_process_left_behind_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await put(store)
        for name in ("file-1.partial", "file-2", "file-3.partial"):
            (store.folder / name).write_bytes(b"left")
        for name in ("file-1.partial", "file-2", file.id):
            os.utime(store.folder / name, (1, 1))
        await store.sweep()
        assert names(store) == sorted(["file-3.partial", file.id])


@in_a_loop
async def test_what_vanishes_or_cannot_be_deleted_is_no_reason_to_leave_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.folder.mkdir(parents=True)
        (store.folder / "gone").symlink_to("nowhere")  # listed, and not there when it is asked for its age
        (store.folder / "a folder").mkdir()
        for name in ("before", "later", "a folder"):
            (store.folder / name).touch()
            os.utime(store.folder / name, (1, 1))
        with pytest.raises(StoreError, match="a folder cannot be deleted"):
            await store.sweep()
        assert sorted(os.listdir(store.folder)) == ["a folder", "gone"]


@in_a_loop
async def test_pages_of_files(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        made = [await put(store, purpose=purpose) for purpose in ("batch", "user_data", "batch", "batch")]

        async def page(**asked: Any) -> tuple[list[StoredFile], bool]:
            return await store.page("", **({"purpose": None, "after": None, "limit": 9, "ascending": False} | asked))

        assert await page() == (made[::-1], False)
        assert await page(ascending=True, limit=4) == (made, False)
        assert await page(ascending=True, limit=3) == (made[:3], True)
        assert await page(ascending=True, after=made[1].id) == (made[2:], False)
        assert await page(after=made[1].id) == (made[:1], False)
        assert await page(purpose="user_data") == ([made[1]], False)
        with pytest.raises(InvalidRequest, match="after"):
            await page(after="file-nobody")


def test_a_clock_that_jumps_lets_nothing_expire_early() -> None:
    wall, monotonic = [1000.0], [5.0]
    clock = LateClock(lambda: wall[0], lambda: monotonic[0])
    assert clock() == 1000
    wall[0] += 86400
    assert clock() == 1000
    monotonic[0] += 60
    assert clock() == 1060
    wall[0] = 500
    assert clock() == 500
