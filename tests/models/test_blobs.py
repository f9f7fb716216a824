"""Files that clients upload."""

import asyncio
import errno
import hashlib
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vmm_server.errors import DigestMismatch, InvalidRequest, StoreError
from vmm_server.models.blobs import parse_digest, unfinished_name
from vmm_server.models.disk import store_errors
from vmm_server.models.store import ABANDONED_AFTER_S, STALE_AFTER_S, Store

CONTENT = bytes(range(256)) * 9000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def sent(content: bytes, piece: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), piece):
        yield content[start : start + piece]


def put(store: Store, content: bytes = CONTENT, digest: str = DIGEST) -> bool:
    return asyncio.run(store.put_blob(digest, sent(content)))


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.blobs_dir.iterdir())


@pytest.mark.parametrize("spelt", [DIGEST, f"sha256:{DIGEST}", f"sha256-{DIGEST.upper()}"])
def test_an_upload_is_kept_under_its_digest(store: Store, spelt: str) -> None:
    assert not store.has_blob(spelt)
    assert put(store, digest=spelt) is True
    assert store.has_blob(spelt)
    assert store.blob(DIGEST).read_bytes() == CONTENT
    assert left(store) == [f"sha256-{DIGEST}"]


def test_an_empty_file_is_a_file(store: Store) -> None:
    assert put(store, b"", hashlib.sha256(b"").hexdigest()) is True


def test_what_is_here_already_is_not_read(store: Store) -> None:
    put(store)

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("was read")
        yield b""

    assert asyncio.run(store.put_blob(DIGEST, unread())) is False


@pytest.mark.parametrize("content", [b"other", CONTENT[:-1], b""])
def test_other_bytes_leave_nothing(store: Store, content: bytes) -> None:
    with pytest.raises(
        DigestMismatch, match=f"expected sha256:{DIGEST}, got sha256:{hashlib.sha256(content).hexdigest()}"
    ):
        put(store, content)
    assert left(store) == []


@pytest.mark.parametrize(
    "text", ["", "sha256:", DIGEST[:-1], f"{DIGEST}0", f"md5:{DIGEST}", f"../{DIGEST}", f"{DIGEST}\n"]
)
def test_what_is_no_digest_is_refused(store: Store, text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid digest format"):
        put(store, digest=text)
    with pytest.raises(InvalidRequest) as caught:
        parse_digest(text, param="files.x")
    assert caught.value.param == "files.x"


def test_a_client_that_goes_away_leaves_nothing(store: Store) -> None:
    class Gone(Exception):
        pass

    async def breaks() -> AsyncIterator[bytes]:
        yield CONTENT
        raise Gone

    with pytest.raises(Gone):
        asyncio.run(store.put_blob(DIGEST, breaks()))
    assert left(store) == []


def test_a_cancelled_upload_leaves_nothing(store: Store) -> None:
    async def main() -> None:
        half = asyncio.Event()

        async def stalls() -> AsyncIterator[bytes]:
            yield CONTENT
            half.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put_blob(DIGEST, stalls()))
        await half.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert left(store) == []


def test_two_uploads_of_one_file_at_once(store: Store) -> None:
    async def main() -> None:
        other = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield CONTENT[:5]
            await other.wait()
            yield CONTENT[5:]

        first = asyncio.create_task(store.put_blob(DIGEST, slow()))
        assert await store.put_blob(DIGEST, sent(CONTENT)) is True
        other.set()
        assert await first is True

    asyncio.run(main())
    assert left(store) == [f"sha256-{DIGEST}"]
    assert store.blob(DIGEST).read_bytes() == CONTENT


def test_a_full_disk_is_said_and_leaves_nothing(store: Store) -> None:
    store.prepare()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))  # as a disk that fills up while it is written
    try:
        with pytest.raises(StoreError, match="cannot keep an upload"):
            put(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(store) == []
    with pytest.raises(StoreError, match="is full"), store_errors("keep an upload", store.root):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_upload_that_cannot_fit_is_refused_unread(tmp_path: Path) -> None:
    store = Store(tmp_path, free_bytes=lambda folder: 1000)

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("was read")
        yield b""

    with pytest.raises(StoreError, match="not enough disk space"):
        asyncio.run(store.put_blob(DIGEST, unread(), size_bytes=1001))


def test_what_no_model_is_made_of_goes_after_a_week(store: Store, backdate: Callable[[Path, float], None]) -> None:
    put(store)
    backdate(store.blob(DIGEST), STALE_AFTER_S - 60)
    store.collect()
    assert store.blob(DIGEST).exists()
    backdate(store.blob(DIGEST), STALE_AFTER_S + 60)
    store.collect()
    assert left(store) == []


def test_what_is_asked_for_stays_for_a_creation(store: Store) -> None:
    """A client that is told that a file is here does not send it."""
    put(store)
    store.release_blob(DIGEST)
    assert store.has_blob(DIGEST)
    store.collect()
    assert store.blob(DIGEST).exists()


def test_what_a_killed_upload_left_goes_after_a_day(store: Store, backdate: Callable[[Path, float], None]) -> None:
    store.prepare()
    left = store.blobs_dir / unfinished_name(DIGEST)
    left.write_bytes(CONTENT)
    backdate(left, ABANDONED_AFTER_S - 60)
    store.collect()
    assert left.exists()
    backdate(left, ABANDONED_AFTER_S + 60)
    store.collect()
    assert not left.exists()


def test_an_upload_under_way_is_kept_though_the_clock_has_jumped(
    store: Store, backdate: Callable[[Path, float], None]
) -> None:
    async def main() -> None:
        async def while_the_clock_jumps() -> AsyncIterator[bytes]:
            yield CONTENT
            (aside,) = store.blobs_dir.iterdir()
            backdate(aside, ABANDONED_AFTER_S + 60)
            store.collect()

        assert await store.put_blob(DIGEST, while_the_clock_jumps())

    asyncio.run(main())
    assert store.blob(DIGEST).read_bytes() == CONTENT
