"""HTTP as cheap as a client can have it: what is measured is the server, on cores that both share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Post = Callable[[bytes], Awaitable[bytes]]
"""Sends a request that `request` made; the answer, head and body."""


def request(port: int, path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A POST, whole."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    return f"{head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def form(fields: dict[str, str], name: str, content: bytes) -> tuple[bytes, str]:
    """A multipart form with one `file`, and its Content-Type."""
    boundary = "a-bench-has-no-secrets"
    parts = [f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    parts.append(f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content)
    body = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Post]:
    """One connection, for requests one after the other. Raises `RuntimeError` for an answer that is not 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)

    async def post(whole: bytes) -> bytes:
        writer.write(whole)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(body.decode())
        return head + body

    try:
        yield post
    finally:
        writer.close()
        await writer.wait_closed()
