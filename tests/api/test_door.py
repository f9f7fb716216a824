"""The end of a server: what came in is finished, nothing new comes in, and whoever is still there is told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.api.test_http import CHAT, GENERATE, Background
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from vmm_adapters.echo import Gate
from vmm_server.api.door import Door
from vmm_server.lifecycle import stop_serving

LONG = {"max_tokens": 400, "messages": [{"role": "user", "content": "x" * 400}]}


class Client:
    """The other side of one ASGI connection."""

    def __init__(self, kind: str = "http", method: str = "POST") -> None:
        self.scope = {"type": kind, "method": method, "path": "/v1/chat/completions", "headers": []}
        self.sent: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


def asked(door: Door, client: Client, app: Callable[..., Any] = answer) -> Any:
    return door(app, client.scope, None, client.send)


def test_an_open_door_changes_nothing() -> None:
    client = Client()
    asyncio.run(asked(Door(), client))
    assert (client.status, client.headers) == (200, {b"a": b"b"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_closed_door_refuses_and_ends_the_connection(method: str) -> None:
    async def test() -> None:
        door, client = Door(), Client(method=method)
        door.close()
        await asked(door, client)
        assert client.status == 503
        assert client.headers[b"connection"] == b"close"
        assert int(client.headers[b"retry-after"]) > 0
        assert await door.emptied(0)

    asyncio.run(test())


def test_whoever_only_looks_may_do_so_to_the_end() -> None:
    async def test() -> None:
        door, client = Door(), Client(method="GET")
        door.close()
        await asked(door, client)
        assert (client.status, client.headers) == (200, {b"a": b"b", b"connection": b"close"})

    asyncio.run(test())


def test_the_door_waits_for_what_came_in_and_ends_its_connection() -> None:
    async def test() -> None:
        door, client, held = Door(), Client(), asyncio.Event()

        async def wait(scope: Any, receive: Any, send: Any) -> None:
            await held.wait()
            await answer(scope, receive, send)

        running = asyncio.create_task(asked(door, client, wait))
        await asyncio.sleep(0)
        door.close()
        assert not await door.emptied(0)
        held.set()
        assert await door.emptied(10)
        await running
        assert (client.status, client.headers[b"connection"]) == (200, b"close")

    asyncio.run(test())


def test_sockets_that_are_open_are_closed_with_going_away() -> None:
    async def test() -> None:
        door, held = Door(), asyncio.Event()

        def route(*messages: str) -> Callable[..., Any]:
            async def socket(scope: Any, receive: Any, send: Any) -> None:
                for message in messages:
                    await send({"type": f"websocket.{message}"})
                await held.wait()
                await send({"type": "websocket.send", "text": "too late"})
                await send({"type": "websocket.close", "code": 1000})

            return socket

        opened, fresh, closed = Client("websocket"), Client("websocket"), Client("websocket")
        tasks = [
            asyncio.create_task(asked(door, opened, route("accept"))),
            asyncio.create_task(asked(door, fresh, route())),
            asyncio.create_task(asked(door, closed, route("accept", "close"))),
        ]
        await asyncio.sleep(0)
        await door.dismiss()
        await door.dismiss()
        assert [message["type"] for message in fresh.sent] == []
        assert [message["type"] for message in closed.sent] == ["websocket.accept", "websocket.close"]
        held.set()
        await asyncio.gather(*tasks)
        assert [(message["type"], message.get("code")) for message in opened.sent] == [
            ("websocket.accept", None),
            ("websocket.close", 1001),
        ]

    asyncio.run(test())


def test_a_socket_that_comes_late_is_refused() -> None:
    async def test() -> None:
        door, client = Door(), Client("websocket")
        door.close()
        await asked(door, client)
        assert (client.sent[0]["type"], client.status) == ("websocket.http.response.start", 503)

    asyncio.run(test())


def test_what_runs_is_finished_and_the_rest_is_told(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    running = Background(server, "/v1/chat/completions", CHAT | {"stream": True})
    gate.wait_entered()
    stopping = asyncio.run_coroutine_threadsafe(stop_serving(server.parts), server.loop)
    server.run(asyncio.sleep(0))
    ready = server.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/startup").status_code == 200
    assert server.client.get("/v1/models").headers["connection"] == "close"
    for path, body in (
        ("/api/generate", GENERATE),
        ("/api/copy", {"source": "echo", "destination": "second"}),
        ("/api/pull", {"model": "echo"}),
    ):
        refused = server.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]) == (503, "the server is shutting down")
        assert refused.headers["connection"] == "close"
    assert not stopping.done()
    gate.open()
    assert running.result().text.endswith("data: [DONE]\n\n")
    stopping.result(30)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/chat/completions", {"model": "echo", "stream": True, **LONG}, "error"),
        ("/api/chat", {"model": "echo", "messages": LONG["messages"]}, "error"),
        ("/v1/messages", {"model": "echo", "stream": True, **LONG}, "error"),
        ("/v1/responses", {"model": "echo", "stream": True, "input": "x" * 400}, "response.failed"),
    ],
)
def test_what_takes_too_long_gets_one_error_within_its_stream(
    start_server: Any, gate: Gate, path: str, body: dict[str, Any], told: str
) -> None:
    server = start_server({"shutdown_timeout_s": 0.0}, gate=gate)
    gate.release(2)

    async def stop() -> None:
        asyncio.get_running_loop().call_later(0.05, gate.open)  # the engine ends with the step under way
        await stop_serving(server.parts)

    with server.client.stream("POST", path, json=body) as response:
        received = response.iter_lines()
        said = [next(received)]
        server.run(stop())
        said += received
    assert response.status_code == 200
    lines = [line.removeprefix("data: ") for line in said if '"' in line]
    errors = [line for line in lines if "the server is shutting down" in line]
    assert len(errors) == 1
    assert told in errors[0]
    assert json.loads(errors[0])
    assert lines[-1] == errors[0]


def test_an_open_socket_is_told_that_the_server_goes(start_server: Any) -> None:
    server = start_server()
    url = f"ws://127.0.0.1:{server.port}/v1/vision/stream"
    with connect(url) as socket:
        server.run(stop_serving(server.parts))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
