"""`/api/vmm/events`: live figures over a WebSocket, and the page that shows them."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.conftest import LiveServer, StartServer
from tests.api.test_http import Background
from tests.api.test_metrics import CHAT
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from vmm_adapters.echo import Gate
from vmm_adapters.errors import OutOfMemory
from vmm_adapters.types import Batch
from vmm_server.api.gate import KEY_PROTOCOL
from vmm_server.api.vmm.dashboard import PAGE, policy
from vmm_server.api.vmm.events import MAX_INTERVAL_S, MIN_INTERVAL_S, interval_of
from vmm_server.errors import InvalidRequest, ModelLoadFailed
from vmm_server.lifecycle import stop_serving
from vmm_server.metrics import live

WAIT_S = 30.0
DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().partition("## Live figures")[2]
PLACE = {"model": "echo:latest", "backend": "echo", "device": "CPU", "variant": ""}
QUANTILES = [f"{name}_p{part}_s" for name in ("time_to_first_token", "inter_token", "queue") for part in (50, 95)]
GAUGES = ["running", "waiting", "kv_blocks", "kv_blocks_used", "memory_bytes"]
RATES = [
    *("tokens_per_second", "prompt_tokens_per_second", "cached_tokens_per_second", "inputs_per_second"),
    "preemptions_per_second",
]
OF_ALL = ["http_requests_active", "http_requests_per_second", "requests_per_second", "errors_per_second"]


@pytest.fixture
def server(start_server: StartServer) -> LiveServer:
    return start_server()


@contextmanager
def listening(server: LiveServer, interval: object = None, **options: Any) -> Iterator[ClientConnection]:
    query = "" if interval is None else f"?interval={interval}"
    with connect(f"ws://127.0.0.1:{server.port}/api/vmm/events{query}", proxy=None, **options) as socket:
        yield socket


def received(socket: ClientConnection, kind: str = "figures") -> Any:
    """The next message of a kind."""
    while True:
        told = json.loads(socket.recv(timeout=WAIT_S))
        if told["type"] == kind:
            return told


def closed(socket: ClientConnection) -> int:
    """How it ends, whatever is told before that."""
    with suppress(ConnectionClosed):
        for _ in socket:
            pass
    assert socket.close_code is not None
    return socket.close_code


def num_listeners(server: LiveServer) -> int:
    async def count() -> int:
        return server.parts.live_figures.num_listeners

    return server.run(count())


def chat(server: LiveServer, **changes: Any) -> None:
    server.client.post("/v1/chat/completions", json=CHAT | changes).raise_for_status()


def test_the_first_message_has_everything(server: LiveServer) -> None:
    chat(server)
    with listening(server) as socket:
        told = received(socket)
    assert list(told) == [
        *("type", "time", "status", "reason", "version", "uptime_s"),
        *("interval_s", "models", "total", "process"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])
    assert (told["status"], told["reason"], told["interval_s"]) == ("ok", None, None)
    (model,) = told["models"]
    assert list(model) == [*PLACE, *GAUGES, *RATES, "batch_size", *QUANTILES]
    assert {name: model[name] for name in PLACE} == PLACE
    assert (model["running"], model["waiting"], model["kv_blocks"], model["kv_blocks_used"]) == (0, 0, 64, 0)
    assert [model[name] for name in [*RATES, "batch_size", *QUANTILES]] == [None] * 12
    assert list(told["total"]) == [*GAUGES, *RATES, *QUANTILES, *OF_ALL]
    assert told["total"]["http_requests_active"] == 1  # this one
    assert list(told["process"]) == ["memory_bytes", "threads", "tasks"]


def test_the_next_one_has_what_happened_since(server: LiveServer) -> None:
    chat(server)
    with listening(server, MIN_INTERVAL_S) as socket:
        received(socket)
        chat(server)
        answer = server.client.post("/v1/chat/completions", json={"model": "nobody", "messages": []})
        assert answer.status_code >= 400
        told = [received(socket)]
        while not told[-1]["total"]["errors_per_second"]:
            told.append(received(socket))
        drawn = sum(each["models"][0]["tokens_per_second"] * each["interval_s"] for each in told)
        assert drawn == pytest.approx(len("Hello") + 1, abs=0.05)
        assert sum(each["total"]["errors_per_second"] * each["interval_s"] for each in told) == pytest.approx(
            1, abs=0.05
        )
        (model,) = told[-1]["models"]
        assert [name for name in QUANTILES if model[name] is None] == []
        assert any(each["models"][0]["batch_size"] == 1 for each in told)
        assert all(0.19 < each["interval_s"] < 10 for each in told)


def test_models_that_come_and_go_are_told_of(server: LiveServer) -> None:
    with listening(server, MAX_INTERVAL_S) as socket:
        assert received(socket)["models"] == []
        chat(server)
        loaded = received(socket, "loaded")
        chat(server, keep_alive=0)
        left = received(socket, "unloaded")
    for told in (loaded, left):
        assert list(told) == ["type", "time", *PLACE, "reason", "seconds"]
        assert {name: told[name] for name in PLACE} == PLACE
    assert (loaded["reason"], loaded["seconds"] >= 0) == (None, True)
    assert (left["reason"], left["seconds"]) == ("keep_alive", None)


def test_a_load_that_fails_is_told_with_its_reason(start_server: StartServer) -> None:
    def no_room(batch: Batch) -> None:
        raise ModelLoadFailed("no room") from OutOfMemory("no room")

    server = start_server(load_gate=no_room)
    with listening(server, MAX_INTERVAL_S) as socket:
        received(socket)
        assert server.client.post("/v1/chat/completions", json=CHAT).status_code == 500
        assert received(socket, "load_failed")["reason"] == "OutOfMemory"


def test_two_listen_each_at_its_pace(server: LiveServer) -> None:
    with listening(server, 0.2) as quick, listening(server, 60) as calm:
        received(calm)
        times = [received(quick)["time"] for _ in range(3)]
        assert times == sorted(set(times))
        chat(server)
        assert received(quick, "loaded") == received(calm, "loaded")


def test_whoever_leaves_is_forgotten(server: LiveServer) -> None:
    with listening(server) as polite:
        with listening(server, 0.2) as rude:
            received(polite)
            received(rude)
            assert num_listeners(server) == 2
            rude.socket.close()
        while num_listeners(server) > 1:
            pass
        received(polite)
    while num_listeners(server):
        pass
    while any("events" in name for name in server.run(_coroutines())):
        pass


async def _coroutines() -> list[str]:
    """Of all tasks of the server."""
    return [repr(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_what_a_client_says_is_not_listened_to(server: LiveServer) -> None:
    with listening(server, 0.2) as socket:
        socket.send("ping")
        socket.send(b"\x00")
        for _ in range(3):
            received(socket)


@pytest.mark.parametrize("interval", ["0.1", "61", "nan", "inf", "-1", "fast", "", "0x1"])
def test_an_interval_out_of_range_is_refused(server: LiveServer, interval: str) -> None:
    with pytest.raises(InvalidStatus) as caught, listening(server, interval):
        pass
    response = caught.value.response
    assert response.status_code == 400
    assert json.loads(response.body)["error"].startswith("interval: must be 0.2 to 60 seconds")
    assert num_listeners(server) == 0


@given(st.text() | st.floats().map(str))
def test_every_interval_is_in_range_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert MIN_INTERVAL_S <= interval_of([text]) <= MAX_INTERVAL_S


def test_there_is_room_for_so_many(server: LiveServer) -> None:
    with ExitStack() as entered:
        for _ in range(live.MAX_LISTENERS):
            server.run(_enter(entered, server.parts.live_figures))
        with pytest.raises(InvalidStatus) as caught, listening(server):
            pass
    assert caught.value.response.status_code == 503


async def _enter(entered: ExitStack, figures: live.LiveFigures) -> None:
    entered.enter_context(figures.listening(1.0))


def test_a_server_that_stops_tells_of_it_until_it_is_empty(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    running = Background(server, "/v1/chat/completions", CHAT)
    gate.wait_entered()
    with listening(server, 0.2) as socket:
        received(socket)
        stopping = asyncio.run_coroutine_threadsafe(stop_serving(server.parts), server.loop)
        while (told := received(socket))["status"] == "ok":
            pass
        assert (told["status"], told["reason"]) == ("draining", "the server is shutting down")
        gate.open()
        assert received(socket, "unloaded")["reason"] == "shutdown"
        assert closed(socket) == 1001
    assert running.result().is_success
    stopping.result(WAIT_S)
    while num_listeners(server):
        pass


def test_figures_need_a_key_of_their_scope_and_the_page_none(server: LiveServer) -> None:
    _, secret = server.parts.keys.create("screen", scopes=("metrics",))
    _, other = server.parts.keys.create("chat", scopes=("inference",))
    for headers, status in (({}, 401), ({"authorization": f"Bearer {other}"}, 403)):
        with pytest.raises(InvalidStatus) as caught, listening(server, additional_headers=headers):
            pass
        assert caught.value.response.status_code == status
    with listening(server, subprotocols=[Subprotocol(KEY_PROTOCOL + secret)]) as socket:
        received(socket)
    assert server.client.get("/api/vmm/dashboard").status_code == 200


def test_a_key_that_is_revoked_hears_no_more(server: LiveServer) -> None:
    key, secret = server.parts.keys.create("screen", scopes=("metrics",))
    server.parts.keys.create("other")
    with listening(server, 0.2, additional_headers={"authorization": f"Bearer {secret}"}) as socket:
        received(socket)
        server.parts.keys.revoke(key.id)
        assert "revoked" in received(socket, "error")["error"]["message"]
        assert closed(socket) == 4401


@pytest.mark.parametrize("name", [*PLACE, *GAUGES, *RATES, "batch_size", *OF_ALL, "threads", "tasks", "interval_s"])
def test_the_docs_have_every_field(name: str) -> None:
    assert f"`{name}`" in DOCS


# The page


def test_the_page_works_under_its_policy_and_loads_nothing(live_server: LiveServer) -> None:
    answer = live_server.client.get("/api/vmm/dashboard")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//[^\n]*?\*/", "", answer.text)) == ["http://www.w3.org"]
    assert not re.findall(r"<[^>]+\s(?:on\w+|style|src)=", answer.text)


def test_the_policy_is_of_the_page_that_is_sent() -> None:
    page = PAGE.read_bytes()
    assert policy(page) != policy(page.replace(b'"use strict"', b'"use lax"'))
    assert policy(page) != policy(page.replace(b"margin: 0", b"margin: 1px"))
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy(page))) == 2


def test_the_page_asks_for_what_is_told() -> None:
    text = PAGE.read_text()
    asked = set(re.findall(r'field\("[^"]+", "(\w+)"\)', text)) | set(re.findall(r"total\.(\w+)", text))
    quantiles = {f"{name}_p{part}_s" for name in re.findall(r'quantiles\("(\w+)"\)', text) for part in (50, 95)}
    assert len(asked) > 10
    assert len(quantiles) == 6
    assert asked | quantiles <= {*GAUGES, *RATES, *QUANTILES, *OF_ALL, "batch_size", "process_bytes"}
