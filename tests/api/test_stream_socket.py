"""WebSocket `/v1/stream`: the events of routes, many requests at a time, bounded."""

import asyncio
import json
import os
import re
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.conftest import LiveServer, StartServer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vmm_adapters.echo import Gate
from vmm_server.api.stream_socket import MAX_CONCURRENT, Asked, Cancel, parse
from vmm_server.errors import InvalidRequest

WAIT_S = 20
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
A_LETTER = [{"role": "user", "content": "a"}]
"""One piece, whatever the pace: where the client lags behind, several pieces become one."""
ENDLESS = {"model": "echo", "prompt": "a", "max_tokens": 100_000, "ignore_eos": True}
PAGE = (Path(__file__).parents[2] / "docs" / "websocket.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


@contextmanager
def opened(server: Any, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream", proxy=None, **options) as socket:
        yield socket


def send(socket: ClientConnection, message: object) -> None:
    socket.send(json.dumps(message))


def received(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(timeout=WAIT_S))


def answer(socket: ClientConnection) -> tuple[list[Any], Any]:
    """The events of the one request under way, and its end."""
    events = []
    while (message := received(socket)).get("type") != "done":
        events.append(message)
    return events, message


def content(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def same(event: Any) -> Any:
    """Without what differs between two answers."""
    if isinstance(event, dict):
        return {
            name: same(part)
            for name, part in event.items()
            if name not in ("id", "created", "created_at", "completed_at", "item_id")
        }
    return [same(part) for part in event] if isinstance(event, list) else event


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", {"model": "echo", "messages": A_LETTER}),
        ("/v1/completions", {"model": "echo", "prompt": "a", "max_tokens": 1}),
        ("/v1/responses", {"model": "echo", "input": "a"}),
        ("/v1/messages", {"model": "echo", "messages": A_LETTER, "max_tokens": 50}),
    ],
)
def test_events_are_those_of_the_route(live_server: LiveServer, endpoint: str, body: dict[str, Any]) -> None:
    text = live_server.client.post(endpoint, json=body | {"stream": True}).text
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    shown = [json.loads(each) for each in data if each != "[DONE]"]
    with opened(live_server) as socket:
        send(socket, {"endpoint": endpoint, "body": body})
        events, done = answer(socket)
        assert same(events) == same(shown)
        assert (done["status"], done["headers"]["x-vmm-model"]) == (200, "echo:latest")
        assert done["headers"]["x-request-id"].startswith("req-")
        send(socket, {"endpoint": endpoint, "body": body, "id": "a"})
        events, done = answer(socket)
        assert {event["id"] for event in events} == {done["id"]} == {"a"}
        assert same([event["event"] for event in events]) == same(shown)


def test_a_body_alone_is_a_chat_and_one_without_a_stream_is_one_event(live_server: LiveServer) -> None:
    with opened(live_server) as socket:
        send(socket, CHAT)
        events, _ = answer(socket)
        assert {event["object"] for event in events} == {"chat.completion.chunk"}
        assert content(events) == "one two three"
        send(socket, CHAT | {"stream": False, "id": "whole"})
        events, done = answer(socket)
        (whole,) = events
        assert whole["event"]["choices"][0]["message"]["content"] == "one two three"
        assert done["id"] == "whole"


def test_errors_are_those_of_the_route_and_end_nothing_else(live_server: LiveServer) -> None:
    bodies = [{"model": "nobody", "messages": CHAT["messages"]}, {"model": "echo"}]
    with opened(live_server) as socket:
        for body in bodies:
            over_http = live_server.client.post("/v1/chat/completions", json=body)
            send(socket, body)
            events, done = answer(socket)
            assert (events, done["status"]) == ([over_http.json()], over_http.status_code)
            assert done["headers"]["x-should-retry"] == "false"
        send(socket, {"endpoint": "/v1/messages", "body": bodies[0] | {"max_tokens": 5}})
        (error,), done = answer(socket)
        assert (error["type"], done["status"]) == ("error", 404)
        send(socket, CHAT)
        assert content(answer(socket)[0]) == "one two three"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("nonsense", None),
        ("[]", None),
        ("{" * 100_000, None),
        (b"bytes", None),
        ('{"endpoint": "/v1/files", "body": {}}', "endpoint"),
        ('{"endpoint": "/v1/completions"}', "body"),
        ('{"body": 7}', "body"),
        ('{"id": 7}', "id"),
        ('{"id": ""}', "id"),
        ('{"cancel": 7}', "cancel"),
        ('{"timeout_ms": 0}', "timeout_ms"),
        ('{"timeout_ms": "1"}', "timeout_ms"),
    ],
)
def test_a_message_that_cannot_be_read_names_its_field(
    live_server: LiveServer, message: Any, param: str | None
) -> None:
    with opened(live_server) as socket:
        socket.send(message)
        (error,), done = answer(socket)
        headers = {"x-should-retry": "false"}
        assert (error["error"]["param"], done) == (param, {"type": "done", "status": 400, "headers": headers})
        send(socket, CHAT)
        assert content(answer(socket)[0]) == "one two three"


def test_many_requests_go_on_at_a_time(live_server: LiveServer) -> None:
    with opened(live_server) as socket:
        for index in range(20):
            send(
                socket, {"id": str(index), "model": "echo", "messages": [{"role": "user", "content": f"I am {index}"}]}
            )
        said: dict[str, list[Any]] = {}
        done: set[str] = set()
        while len(done) < 20:
            message = received(socket)
            assert message["id"] not in done
            if message.get("type") == "done":
                done.add(message["id"])
            else:
                said.setdefault(message["id"], []).append(message["event"])
        assert {name: content(events) for name, events in said.items()} == {str(n): f"I am {n}" for n in range(20)}


def test_a_request_is_cancelled_and_the_others_go_on(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    with opened(server) as socket:
        send(socket, {"id": "a", "endpoint": "/v1/completions", "body": ENDLESS})
        send(socket, {"id": "b", **CHAT})
        gate.wait_entered()
        send(socket, {"cancel": "nobody"})
        send(socket, {"cancel": "a"})
        gate.open()
        ends = {}
        while len(ends) < 2:
            message = received(socket)
            if message.get("type") == "done":
                ends[message["id"]] = message["status"]
        assert ends == {"a": 499, "b": 200}
        send(socket, {"id": "a", **CHAT})
        assert answer(socket)[1]["status"] == 200


def test_a_request_that_is_cancelled_at_once_ends_too(live_server: LiveServer) -> None:
    with opened(live_server) as socket:
        for index in range(20):
            send(socket, {"id": str(index), "endpoint": "/v1/completions", "body": ENDLESS})
            send(socket, {"cancel": str(index)})
        ends = set()
        while len(ends) < 20:
            message = received(socket)
            if message.get("type") == "done":
                assert message["status"] == 499
                ends.add(message["id"])


def test_closing_the_connection_cancels_all(start_server: StartServer) -> None:
    server = start_server(context_length=10**6, num_blocks=4096)
    with opened(server) as socket:
        for name in "ab":
            send(socket, {"id": name, "endpoint": "/v1/completions", "body": ENDLESS})
        seen: set[str] = set()
        while len(seen) < 2:
            seen.add(received(socket)["id"])
    wait_until_idle(server)


def test_ids_are_in_use_once_and_requests_are_bounded(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    with opened(server) as socket:
        send(socket, {"id": "a", **CHAT})
        send(socket, {"id": "a", **CHAT})
        events, done = answer(socket)
        assert (events[0]["event"]["error"]["param"], done["status"]) == ("id", 400)
        send(socket, CHAT)
        send(socket, CHAT)
        assert answer(socket)[1]["status"] == 400
        for index in range(MAX_CONCURRENT - 1):
            send(socket, {"id": str(index), **CHAT})
        events, done = answer(socket)
        assert (done["id"], done["status"]) == (str(MAX_CONCURRENT - 2), 503)
        gate.open()


def test_an_answer_that_comes_too_late_is_an_error(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    with opened(server) as socket:
        send(socket, {"id": "a", "timeout_ms": 1, **CHAT})
        events, done = answer(socket)
        assert (events[-1]["event"]["error"]["code"], done["id"]) == ("deadline_exceeded", "a")


def test_each_message_is_a_request_of_its_key(start_server: StartServer) -> None:
    server = start_server()
    _, secret = server.parts.keys.create("alice", scopes=["inference"], requests_per_minute=3, max_concurrent=1)
    with pytest.raises(InvalidStatus) as refused, opened(server):
        pass
    assert refused.value.response.status_code == 401
    with opened(server, additional_headers={"authorization": f"Bearer {secret}"}) as socket:
        statuses = []
        for _ in range(4):
            send(socket, CHAT)
            events, done = answer(socket)
            statuses.append(done["status"])
        assert statuses == [200, 200, 200, 429]
        assert events[0]["error"]["code"] == "rate_limit_exceeded"
        assert server.parts.admission.stats.num_tokens
        server.parts.keys.revoke("alice")
        send(socket, CHAT)
        assert answer(socket)[1]["status"] == 401


def test_a_message_that_is_too_large_closes_the_connection(start_server: StartServer) -> None:
    server = start_server()
    server.uvicorn.config.ws_max_size = 1000
    with opened(server) as socket:
        send(socket, CHAT | {"user": "x" * 2000})
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=WAIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_a_client_that_does_not_read_holds_its_requests_up(start_server: StartServer) -> None:
    """What the socket's buffers hold is made, and no more: the engine does not run ahead for ever."""
    server = start_server(context_length=10**6, num_blocks=4096)
    server.listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 4096)  # what it accepts has the same
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", server.port))
    with opened(server, sock=raw, max_queue=1, close_timeout=0.1) as socket:
        for index in range(16):
            send(socket, {"id": str(index), "endpoint": "/v1/completions", "body": ENDLESS | {"logprobs": 5}})
        sizes = [0]
        while sizes[-1] < 60_000 or len(set(sizes[-10:])) > 1:
            server.run(asyncio.sleep(0.02))
            sizes.append(buffered(server))
        assert sizes[-1] < 200_000
    wait_until_idle(server)


def wait_until_idle(server: LiveServer) -> None:
    for _ in range(2000):
        if not (stats := server.stats()).num_running and not stats.num_waiting:
            return
        server.run(asyncio.sleep(0.005))
    pytest.fail(f"still running: {stats}")


def buffered(server: LiveServer) -> int:
    """Bytes that wait in the server for its clients."""
    return sum(each.transport.get_write_buffer_size() for each in server.uvicorn.server_state.connections)


def test_the_page_runs_as_it_stands(example_server: LiveServer, tmp_path: Path) -> None:
    example_server.client.post("/api/generate", json={"model": "smollm2:135m"}).raise_for_status()
    (code,) = [code for language, code in FENCED.findall(PAGE) if language == "python"]
    code = code.replace("localhost:11434", f"127.0.0.1:{example_server.port}")
    environment = os.environ | {"NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Why is the sky blue?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text() | st.dictionaries(st.sampled_from(["id", "endpoint", "body", "cancel", "timeout_ms", "x"]), JSON))
def test_any_message_is_read_or_refused(message: Any) -> None:
    try:
        found = parse(message if isinstance(message, str) else json.dumps(message))
    except InvalidRequest:
        return
    assert isinstance(found, Asked | Cancel)


@given(
    st.dictionaries(st.text().filter(lambda name: name not in ("id", "endpoint", "body", "cancel", "timeout_ms")), JSON)
)
def test_a_body_alone_and_one_in_an_envelope_are_the_same(body: dict[str, Any]) -> None:
    alone, inside = parse(json.dumps(body)), parse(json.dumps({"body": body}))
    assert alone == inside
    assert isinstance(alone, Asked)
    assert json.loads(alone.body) == {"stream": True} | body
