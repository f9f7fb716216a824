"""A client that leaves frees what it held, wherever its request was; nothing runs for nobody."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from vmm_adapters.echo import Gate
from vmm_adapters.types import Batch
from vmm_server.engine import EngineOptions

USER = [{"role": "user", "content": "hello"}]
ROUTES = [
    ("/v1/chat/completions", {"messages": USER, "stream": True}),
    ("/v1/chat/completions", {"messages": USER, "stream": False}),
    ("/v1/completions", {"prompt": ["hello", "again"], "stream": True}),
    ("/v1/completions", {"prompt": ["hello", "again"], "stream": False}),
    ("/v1/responses", {"input": "hello", "stream": True}),
    ("/v1/responses", {"input": "hello", "stream": False}),
    ("/api/chat", {"messages": USER}),
    ("/api/generate", {"prompt": "hello", "stream": False}),
]


class Connection:
    """One request on a bare socket, so that it can be dropped at any byte."""

    def __init__(self, server: Any, path: str, body: dict[str, object]) -> None:
        content = json.dumps({"model": "echo"} | body).encode()
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket.sendall(head.encode() + content)
        self.received = b""

    def read_until(self, text: bytes) -> None:
        while text not in self.received:
            more = self._socket.recv(65536)
            assert more, self.received
            self.received += more

    def leave(self) -> None:
        self._socket.close()


Connect = Callable[..., Connection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections that are closed when the test ends."""
    with ExitStack() as stack:

        def make(server: Any, path: str, body: dict[str, Any]) -> Connection:
            connection = Connection(server, path, body)
            stack.callback(connection.leave)
            return connection

        yield make


class Recorder:
    """A gate that keeps the steps it saw."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.steps: list[Batch] = []

    def __call__(self, batch: Batch) -> None:
        self.steps.append(batch)
        self.gate(batch)


@pytest.fixture
def recorder(gate: Gate) -> Recorder:
    return Recorder(gate)


def wait_until(server: Any, condition: Callable[[], bool]) -> None:
    """Let the server's event loop turn until the condition holds."""

    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)

    server.run(asyncio.wait_for(turn(), 20))


def num_leases(server: Any) -> int:
    return sum(loaded.num_leases for loaded in server.parts.pool.loaded())


def assert_all_is_free(server: Any) -> None:
    wait_until(server, lambda: server.stats().num_running + server.stats().num_waiting == 0)
    stats = server.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert num_leases(server) == 0


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_leaving_in_prefill_frees_the_blocks_before_the_next_step(
    start_server: Any, connect: Connect, recorder: Recorder, path: str, body: dict[str, Any]
) -> None:
    server = start_server(gate=recorder, options=EngineOptions(max_batched_tokens=4))
    connection = connect(server, path, body)
    recorder.gate.wait_entered()
    assert server.stats().num_free_blocks < server.stats().num_blocks
    connection.leave()
    wait_until(server, lambda: num_leases(server) == 0)
    recorder.gate.open()
    assert_all_is_free(server)
    assert len(recorder.steps) == 1


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_leaving_in_decode_frees_the_blocks_before_the_next_step(
    start_server: Any, connect: Connect, recorder: Recorder, path: str, body: dict[str, Any]
) -> None:
    server = start_server(gate=recorder)
    connection = connect(server, path, body)
    recorder.gate.wait_entered()
    recorder.gate.release(2)
    while len(recorder.steps) < 3:
        recorder.gate.wait_entered()
    if body.get("stream", True):
        connection.read_until(b"e")
    connection.leave()
    wait_until(server, lambda: num_leases(server) == 0)
    recorder.gate.open()
    assert_all_is_free(server)
    assert len(recorder.steps) == 3


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_leaving_in_the_queue_means_never_running(
    start_server: Any, connect: Connect, recorder: Recorder, path: str, body: dict[str, Any]
) -> None:
    server = start_server(gate=recorder, options=EngineOptions(max_sequences=1, max_queue=4))
    first = connect(server, "/api/generate", {"prompt": "x"})
    recorder.gate.wait_entered()
    second = connect(server, path, body)
    wait_until(server, lambda: server.stats().num_waiting >= 1)
    second.leave()
    wait_until(server, lambda: num_leases(server) == 1)
    recorder.gate.open()
    first.read_until(b'"done":true')
    assert_all_is_free(server)
    assert all(len(step.chunks) == 1 for step in recorder.steps)
    assert len(recorder.steps) == 2  # "x" and the end


def test_a_client_that_stays_is_not_disturbed_by_one_that_leaves(
    start_server: Any, connect: Connect, recorder: Recorder
) -> None:
    server = start_server(gate=recorder)
    stays = connect(server, "/api/generate", {"prompt": "hello"})
    recorder.gate.wait_entered()
    leaves = connect(server, "/v1/chat/completions", {"messages": USER, "stream": True})
    wait_until(server, lambda: num_leases(server) == 2)
    leaves.leave()
    wait_until(server, lambda: num_leases(server) == 1)
    recorder.gate.open()
    stays.read_until(b'"done":true')
    pieces = [json.loads(line)["response"] for line in stays.received.splitlines() if line.startswith(b"{")]
    assert "".join(pieces) == "hello"
    assert_all_is_free(server)


def test_leaving_while_the_model_loads_leaves_no_lease(start_server: Any, connect: Connect, gate: Gate) -> None:
    server = start_server(load_gate=gate)
    connection = connect(server, "/v1/chat/completions", {"messages": USER})
    gate.wait_entered()
    connection.leave()
    other = connect(server, "/api/generate", {"prompt": "hello", "stream": False})
    gate.open()
    other.read_until(b'"done":true')
    assert_all_is_free(server)


def test_leaving_in_the_middle_of_the_body_is_no_failure_of_ours(
    live_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO", logger="vmm_server"),
        socket.create_connection(("127.0.0.1", live_server.port)) as half,
    ):
        half.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        half.shutdown(socket.SHUT_WR)
        assert half.recv(1) == b""
        wait_until(live_server, lambda: any("POST /api/chat 499" in line for line in caplog.messages))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
