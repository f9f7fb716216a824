"""Heads without an end, over real connections."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from vmm_server.cli.heads import MAX_HEAD_BYTES, BoundedHeadProtocol

START = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = f"{size} bytes".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def exchanged(pieces: list[bytes]) -> bytes:
    """What comes back for these pieces, sent one after the other."""

    async def run() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=BoundedHeadProtocol, lifespan="off", log_config=None, access_log=False)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                return await reader.read(65536)
            except ConnectionError:
                return b"closed"
            finally:
                writer.close()
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize(
    "pieces",
    [
        [START, *(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200))],
        [START + b"x: ", *[b"y" * 10_000] * 20],
        [b"GET /" + b"a" * 70_000],
        [START + b"x: " + b"y" * MAX_HEAD_BYTES],
        [CHUNKED, b"1\r\nz\r\n0\r\n", *(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200))],
        [CHUNKED, b"1;", *[b"e" * 10_000] * 20],
    ],
    ids=["headers", "header", "path", "at once", "trailers", "extensions"],
)
def test_what_does_not_end_is_431_and_closed(pieces: list[bytes]) -> None:
    answer = exchanged(pieces)  # the connection may be reset before the client has read why
    assert answer == b"closed" or b"HTTP/1.1 431 " in answer


@pytest.mark.parametrize(
    ("pieces", "size"),
    [
        ([START + b"x: " + b"y" * 50_000 + b"\r\nContent-Length: 2\r\n\r\nok"], 2),
        ([START + b"Content-Length: 1000000\r\n\r\n", *[bytes(10_000)] * 100], 1_000_000),
        ([CHUNKED, *[b"186A0\r\n" + bytes(100_000) + b"\r\n"] * 10, b"0\r\n\r\n"], 1_000_000),
    ],
)
def test_what_ends_is_answered(pieces: list[bytes], size: int) -> None:
    answer = exchanged(pieces)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"%d bytes" % size)


def test_many_requests_on_one_connection_are_each_counted_anew() -> None:
    one = START + b"x: " + b"y" * 40_000 + b"\r\nContent-Length: 0\r\n\r\n"
    assert exchanged([one] * 5).startswith(b"HTTP/1.1 200 OK")
