"""Files that clients upload: written aside, hashed as they come, and named by their content once it is as promised."""

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from pathlib import Path

from vmm_server.errors import DigestMismatch, InvalidRequest
from vmm_server.models.disk import store_errors

_DIGEST = re.compile(r"(?:sha256[:-])?([0-9a-f]{64})", re.IGNORECASE)
_UNFINISHED = re.compile(r"sha256-[0-9a-f]{64}\.[0-9a-f]{16}\.partial")
_PIECE_BYTES = 1 << 20
"""Written at a time: a thread for every chunk of a socket would cost more than the writing."""


def parse_digest(text: str, *, param: str = "digest") -> str:
    """The 64 hex digits of `sha256:<hex>` or `sha256-<hex>`. Raises `InvalidRequest` with Ollama's words."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise InvalidRequest("invalid digest format", param=param, hint="sha256: and 64 hexadecimal digits")
    return match[1].lower()


def is_unfinished(path: Path) -> bool:
    """Whether this is a file that `receive` writes, or was writing when its process died."""
    return _UNFINISHED.fullmatch(path.name) is not None


def unfinished_name(digest: str) -> str:
    """A new one, of a file that `receive` is to write."""
    return f"sha256-{digest}.{secrets.token_hex(8)}.partial"


async def receive(chunks: AsyncIterable[bytes], aside: Path, digest: str) -> None:
    """Write what comes to a new file, durably, for the caller to rename.

    Nothing is left when it raises: `DigestMismatch`, `StoreError`, or what `chunks` raises.
    """
    folder = aside.parent
    hasher = hashlib.sha256()
    with store_errors("keep an upload", folder):
        file = aside.open("xb")

    def append(piece: bytes) -> None:
        hasher.update(piece)
        with store_errors("keep an upload", folder):
            file.write(piece)

    def finish() -> None:
        if (actual := hasher.hexdigest()) != digest:
            raise DigestMismatch("the upload", expected=digest, actual=actual)
        with store_errors("keep an upload", folder):
            file.flush()
            os.fsync(file.fileno())

    def leave() -> None:
        with suppress(OSError):  # of what could not be written, which has been told
            file.close()
        if not kept:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    kept = False
    try:
        async for piece in _pieces(chunks):
            await asyncio.to_thread(append, piece)
        await asyncio.to_thread(finish)
        kept = True
    finally:
        leave()


async def _pieces(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, about `_PIECE_BYTES` at a time."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) >= _PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)
