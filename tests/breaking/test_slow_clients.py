"""Clients that do not read what they asked for, and those that ask for nothing: they cost little, and not for ever."""

import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.breaking.conftest import Running, Serve

NUM_SLOW = 50
NUM_IDLE = 2000
NUM_TOKENS = 60
MB = 10**6
LONG = {
    "model": "echo",
    "prompt": "x",
    "raw": True,
    "max_tokens": 3000,
    "options": {"num_predict": 3000},
    "stream": True,
}
"""About a megabyte as server-sent events."""
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ASKED = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
MAX_SLOW_BYTES = 1 * MB
"""What one that does not read may cost: uvicorn's 64 KiB, and what the answer is."""
MAX_IDLE_BYTES = 40_000
"""What a connection may cost on which nothing happens."""


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Whose sockets are closed when the test ends."""
    with ExitStack() as stack:
        yield stack


def deaf(port: int) -> socket.socket:
    """A connection with so little room that what is not read soon waits in the server."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def frame(text: bytes) -> bytes:
    """RFC 6455, 5.2: one masked message of text; the mask is zero."""
    assert 126 <= len(text) < 65536
    return b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text


def ask_and_be_deaf(running: Running, sockets: ExitStack) -> list[socket.socket]:
    """A third each: server-sent events, lines, messages of a WebSocket."""
    opened = []
    for number in range(NUM_SLOW):
        connection = sockets.enter_context(deaf(running.port))
        opened.append(connection)
        if number % 3 == 2:
            connection.sendall(UPGRADE)
            assert connection.recv(400).startswith(b"HTTP/1.1 101")
            asked = {"id": "1", "endpoint": "/v1/completions", "body": LONG}
            connection.sendall(frame(json.dumps(asked).encode()))
            continue
        body = json.dumps(LONG).encode()
        path = ("/v1/completions", "/api/generate")[number % 3]
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    return opened


def token_s(running: Running) -> float:
    """Seconds that a token takes of a stream that is read."""
    body = {"model": "echo", "prompt": "y", "stream": True, "max_tokens": NUM_TOKENS}
    started = time.perf_counter()
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.read().endswith(b"data: [DONE]\n\n")
    return (time.perf_counter() - started) / NUM_TOKENS


def num_ended(connections: list[socket.socket], seconds: float) -> int:
    """How many the server has ended, after so long at most. What had come before is read."""
    until, left = time.monotonic() + seconds, [*connections]
    while left and time.monotonic() < until:
        for connection in [*left]:
            connection.settimeout(0)
            try:
                if not connection.recv(1 << 16):
                    left.remove(connection)
            except BlockingIOError:
                continue
            except ConnectionError:
                left.remove(connection)
        time.sleep(0.1)
    return len(connections) - len(left)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems wait for such a client until it leaves")
def test_who_does_not_read_costs_little_and_not_for_ever(serve: Serve, sockets: ExitStack) -> None:
    running = serve(client_timeout_s="5")
    ask_and_be_deaf(running, sockets)  # once unmeasured: memory that any load takes
    sockets.close()
    running.settled()
    idle = statistics.median(token_s(running) for _ in range(3))
    before = running.settled()

    slow = ask_and_be_deaf(running, sockets)
    most, beside = before.resident_bytes, [token_s(running)]
    while (vitals := running.look()).active:
        most = max(most, vitals.resident_bytes)
        beside.append(token_s(running))
    assert most - before.resident_bytes < NUM_SLOW * MAX_SLOW_BYTES
    assert statistics.median(beside) < 10 * idle * NUM_SLOW / 5, "a step is shared with them, and no more than that"

    after = running.settled(lambda vitals: vitals.open_fds <= before.open_fds)
    assert num_ended(slow, 30) == NUM_SLOW
    assert after.tasks <= before.tasks
    running.ask()
    assert not running.errors()


def test_who_does_not_read_and_leaves_is_forgotten(serve: Serve, sockets: ExitStack) -> None:
    running = serve(client_timeout_s="0")
    token_s(running)
    before = running.settled()
    ask_and_be_deaf(running, sockets)
    while running.look().active < NUM_SLOW:
        time.sleep(0.05)
    sockets.close()
    after = running.settled(lambda vitals: vitals.open_fds <= before.open_fds)
    assert after.tasks <= before.tasks
    assert after.blocks_used == 0
    running.ask()
    assert not running.errors()


def test_idle_connections_cost_little_and_not_for_ever(serve: Serve, sockets: ExitStack) -> None:
    running = serve(client_timeout_s="12")
    token_s(running)
    before = running.settled()
    address = ("127.0.0.1", running.port)
    idle = [sockets.enter_context(socket.create_connection(address)) for _ in range(NUM_IDLE)]
    kinds = [
        b"",
        ASKED,
        b"POST /api/chat HTT",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ]
    for number, connection in enumerate(idle):
        connection.sendall(kinds[number % len(kinds)])
    running.ask()
    beside = running.look()
    while beside.open_fds < NUM_IDLE / 2 and (now := running.look()).open_fds > 50:
        beside = max(beside, now, key=lambda vitals: vitals.open_fds)
    assert beside.open_fds >= NUM_IDLE / 2, "those that asked nothing are there"
    assert beside.resident_bytes - before.resident_bytes < NUM_IDLE * MAX_IDLE_BYTES
    assert num_ended(idle, 60) == NUM_IDLE
    after = running.settled(lambda vitals: vitals.open_fds <= before.open_fds)
    assert after.tasks <= before.tasks
    running.ask()
    assert not running.errors()
