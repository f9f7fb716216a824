"""A runtime that fails, or takes its thread with it: one clear error for who was under way, and nothing for others."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import EchoLoader, LiveServer, echo_app
from tests.api.test_disconnect import Connection, assert_all_is_free, num_leases, wait_until

from vmm_adapters.echo import Gate
from vmm_adapters.errors import DeviceLost
from vmm_adapters.types import Batch
from vmm_server.engine import EngineOptions
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel

USER = [{"role": "user", "content": "hello"}]
ANTHROPIC = {"messages": USER, "max_tokens": 9}
DIALECTS = [
    ("/v1/chat/completions", {"messages": USER}, b'"error":{"message":'),
    ("/api/chat", {"messages": USER}, b'{"error":"'),
    ("/v1/messages", ANTHROPIC, b'"error":{"type":"api_error"'),
]


class Killed(BaseException):
    """Nothing that any code expects."""


@dataclass
class Bomb:
    """Lets steps through one by one, and raises what it is given in those that come then."""

    gate: Gate = field(default_factory=Gate)
    errors: list[BaseException] = field(default_factory=list)

    def __call__(self, batch: Batch) -> None:
        self.gate(batch)
        if self.errors:
            raise self.errors.pop(0)


@dataclass
class BombedLoader(EchoLoader):
    """`echo` runs with the bomb, `other` with a gate of its own."""

    bomb: Bomb = field(default_factory=Bomb)
    other: Gate = field(default_factory=Gate)

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Any:
        gate = self.other if model.name == "other:latest" else self.bomb
        return EchoLoader(gate, options=self.options)(model, placement, kv_cache_bytes)


@pytest.fixture
def loader() -> BombedLoader:
    return BombedLoader(options=EngineOptions(max_sequences=2))


@pytest.fixture
def server(tmp_path: Path, no_environment: None, loader: BombedLoader) -> Iterator[LiveServer]:
    server = LiveServer(echo_app(tmp_path, loader), loader)
    parts = server.parts
    parts.store.install(
        replace(parts.registry.resolve("echo"), name="other:latest", aliases=(), digest="0" * 64, weights="other")
    )
    server.start()
    try:
        yield server
    finally:
        loader.bomb.gate.open()
        loader.other.open()
        server.stop()


@pytest.fixture
def connect(server: LiveServer) -> Iterator[Callable[..., Connection]]:
    """Connections that are closed when the test ends."""
    with ExitStack() as stack:

        def make(path: str, body: dict[str, Any]) -> Connection:
            connection = Connection(server, path, body)
            stack.callback(connection.leave)
            return connection

        yield make


def running(server: LiveServer, name: str) -> Any:
    return next(each.ready.engine.stats for each in server.parts.pool.loaded() if each.model.name == name)


def to_the_end(connection: Connection) -> bytes:
    """All of an answer, head and body."""
    while not connection.received.endswith(b"0\r\n\r\n"):
        head, _, body = connection.received.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if length and len(body) == int(length[0].partition(b":")[2]):
            break
        more = connection._socket.recv(65536)
        if not more:
            break
        connection.received += more
    return connection.received


@pytest.mark.parametrize(("path", "body", "error_shape"), DIALECTS)
@pytest.mark.parametrize("error", [DeviceLost("it fell off the bus"), Killed("from outside"), SystemExit(1)], ids=repr)
def test_a_killed_engine_is_started_again(
    server: LiveServer,
    connect: Callable[..., Connection],
    loader: BombedLoader,
    error: BaseException,
    path: str,
    body: dict[str, Any],
    error_shape: bytes,
) -> None:
    gate = loader.bomb.gate
    beside = connect("/api/chat", {"model": "other", "messages": USER})
    loader.other.wait_entered()
    speaking = connect(path, body | {"stream": True})
    gate.wait_entered()
    gate.release(2)
    for _ in range(2):
        gate.wait_entered()
    silent = connect(path, body | {"stream": False})
    wait_until(server, lambda: running(server, "echo:latest").num_waiting == 1)
    gate.release(2)
    for _ in range(2):
        assert len(gate.wait_entered().chunks) == 2
    waiting = connect(path, body | {"stream": False})
    wait_until(server, lambda: running(server, "echo:latest").num_waiting == 1)

    loader.bomb.errors = [error]
    gate.open()
    loader.other.open()

    said = to_the_end(speaking)
    assert said.startswith(b"HTTP/1.1 200")
    assert said.count(error_shape) == 1, "one in-band error"
    assert said.rstrip().count(b"the device CPU failed") == 1, said
    refused = to_the_end(silent)
    assert refused.startswith(b"HTTP/1.1 500"), refused
    assert refused.count(error_shape) == 1
    assert b"hello" in to_the_end(waiting), "what had not begun goes to the model that is loaded anew"
    assert (
        "".join(
            json.loads(line)["message"]["content"] for line in to_the_end(beside).splitlines() if line.startswith(b"{")
        )
        == "hello"
    ), "the other model notices nothing"
    again = connect(path, body | {"stream": False})
    assert b"hello" in to_the_end(again)
    unloads = [line for line in server.client.get("/metrics").text.splitlines() if line.startswith("vmm_unloads_total")]
    assert [line for line in unloads if 'reason="failed"' in line and line.endswith(" 1.0")], unloads
    for connection in (beside, speaking, silent, waiting, again):
        connection.leave()
    wait_until(server, lambda: num_leases(server) == 0)


def test_one_failed_step_ends_its_requests_and_no_others(
    server: LiveServer, connect: Callable[..., Connection], loader: BombedLoader
) -> None:
    gate = loader.bomb.gate
    first = connect("/v1/chat/completions", {"messages": USER})
    gate.wait_entered()
    later = connect("/v1/chat/completions", {"messages": USER})
    wait_until(server, lambda: running(server, "echo:latest").num_waiting == 1)
    loader.bomb.errors = [RuntimeError("an unlucky step")]
    gate.open()
    assert to_the_end(first).startswith(b"HTTP/1.1 500")
    assert b"an unlucky step" in first.received
    assert b"hello" in to_the_end(later)
    for connection in (first, later):
        connection.leave()
    assert_all_is_free(server)
    assert 'reason="failed"' not in server.client.get("/metrics").text, "the model has stayed"
