"""WebSocket `/v1/vision/stream`: the newest frame wins."""

import asyncio
import json
import logging
import socket as sockets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from tests.api.conftest import StartServer
from tests.api.fake_vision import Pixels, box, install_fakes, png_of, uri
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vmm_adapters.echo import Gate
from vmm_adapters.types import Batch
from vmm_server.api.vision.frames import LatestFrame
from vmm_server.cli.listener import is_no_refusal

FRAME = png_of(box())
WAIT_S = 20


def open_stream(server: Any, **options: Any) -> Any:
    return connect(f"ws://127.0.0.1:{server.port}/v1/vision/stream", proxy=None, **options)


@contextmanager
def stream(server: Any, **options: Any) -> Iterator[ClientConnection]:
    with open_stream(server) as socket:
        socket.send(json.dumps(options))
        yield socket


def received(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(timeout=WAIT_S))


def closed(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=WAIT_S)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def test_each_frame_is_answered_as_its_route_does(vision_server: Any) -> None:
    with stream(vision_server, model="detector", classes=["cat"]) as socket:
        assert received(socket) == {"object": "stream", "model": "detector", "task": "detection"}
        for number, count in enumerate([1, 1, 0]):
            socket.send(FRAME if count else png_of(Image.new("RGB", (9, 9), "white")))
            answer = received(socket)
            assert (answer["object"], answer["frame"], answer["dropped"]) == ("detections", number, 0)
            assert len(answer["detections"]) == count
    body = {"model": "detector", "image": uri(FRAME)}
    whole = vision_server.client.post("/v1/vision/detect", json=body).json()["data"][0]
    with stream(vision_server, model="detector") as socket:
        received(socket)
        socket.send(FRAME)
        assert received(socket) == whole | {"frame": 0, "dropped": 0}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "classifier", "top_k": 1}, ("classification", ["classes"])),
        ({"model": "clip", "labels": ["red", "blue"]}, ("classification", ["classes"])),
        ({"model": "clip", "query": "red"}, ("results", ["results"])),
        ({"model": "clip"}, ("embedding", ["embedding"])),
        ({"model": "clip", "encoding_format": "base64"}, ("embedding", ["embedding"])),
        ({"model": "detector", "draw": True}, ("detections", ["width", "height", "detections", "image"])),
    ],
)
def test_every_task_has_its_answer(vision_server: Any, options: dict[str, Any], told: tuple[str, list[str]]) -> None:
    kind, names = told
    with stream(vision_server, **options) as socket:
        received(socket)
        socket.send(FRAME)
        answer = received(socket)
    assert answer["object"] == kind
    assert [name for name in answer if name not in ("object", "index", "frame", "dropped")] == names


def test_a_frame_that_is_no_image_does_not_end_the_stream(vision_server: Any) -> None:
    with stream(vision_server, model="detector") as socket:
        received(socket)
        socket.send(b"hello")
        failed = received(socket)
        assert (failed["object"], failed["frame"], failed["error"]["param"]) == ("error", 0, "frame")
        assert "no image" in failed["error"]["message"]
        socket.send(FRAME)
        assert received(socket)["frame"] == 1


def test_other_options_hold_from_the_next_frame_on(vision_server: Any) -> None:
    with stream(vision_server, model="detector") as socket:
        received(socket)
        socket.send(FRAME)
        assert len(received(socket)["detections"]) == 1
        socket.send(json.dumps({"model": "classifier"}))
        socket.send(FRAME)
        assert received(socket)["object"] == "classification"
        socket.send(json.dumps({"model": "detector", "threshold": 2}))
        assert received(socket)["error"]["param"] == "threshold"
        assert closed(socket) == 4400


def test_other_options_that_the_model_cannot_honour_end_the_stream(vision_server: Any) -> None:
    with stream(vision_server, model="detector") as socket:
        received(socket)
        socket.send(json.dumps({"model": "detector", "classes": ["cow"]}))
        socket.send(FRAME)
        told = received(socket)
        assert (told["error"]["param"], "frame" in told) == ("classes[0]", False)
        assert closed(socket) == 4400


def test_a_frame_sent_as_text_is_told_how_to_be_sent(vision_server: Any) -> None:
    with open_stream(vision_server) as socket:
        socket.send(json.dumps({"model": "detector"}))
        received(socket)
        socket.send(uri(png_of(box())))
        assert "binary message" in received(socket)["error"]["hint"]
        assert closed(socket) == 4400


@pytest.mark.parametrize(
    ("first", "param", "code"),
    [
        ("{", None, 4400),
        (b"\xff\xd8", None, 4400),
        ({"model": "nobody"}, "model", 4404),
        ({"model": "echo"}, "model", 4400),
        ({"model": "detector", "threshold": 7}, "threshold", 4400),
        ({"model": "detector", "labels": ["cat"]}, "labels", 4400),
        ({"model": "detector", "classes": ["cow"]}, "classes[0]", 4400),
        ({"model": "detector", "image": "aGk="}, "image", 4400),
        ({"model": "detector", "response_format": "png"}, "response_format", 4400),
        ({"model": "clip", "text": "a cat"}, "text", 4400),
        ({"model": "clip", "labels": [""]}, "labels[0]", 4400),
        ({"model": "clip", "query": {"image": "aGk="}}, "query.image", 4400),
        ({"model": "detector", "device": "GPU.7"}, "device", 4400),
    ],
)
def test_wrong_options_are_told_before_the_first_frame(
    vision_server: Any, first: Any, param: str | None, code: int
) -> None:
    with open_stream(vision_server) as socket:
        socket.send(first if isinstance(first, str | bytes) else json.dumps(first))
        told = received(socket)
        assert (told["object"], told["error"]["param"]) == ("error", param), told
        assert told["error"]["message"]
        assert closed(socket) == code


def test_only_the_newest_frame_waits_while_one_is_computed(start_server: StartServer) -> None:
    gate, widths = Gate(), []

    def on_pictures(pictures: Sequence[Pixels]) -> None:
        widths.append(pictures[0].shape[1])
        if widths[-1] == 10:
            gate(Batch(()))

    server = start_server(on_pictures=on_pictures)
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    with stream(server, model="detector") as socket:
        received(socket)
        socket.send(png_of(Image.new("RGB", (10, 10), "white")))
        gate.wait_entered()
        for width in (11, 12, 13, 14):
            socket.send(png_of(Image.new("RGB", (width, 10), "white")))
        socket.ping().wait(WAIT_S)  # behind the frames: they are all there
        gate.open()
        first, second = received(socket), received(socket)
    assert (first["frame"], first["dropped"], first["width"]) == (0, 0, 10)
    assert (second["frame"], second["dropped"], second["width"]) == (4, 3, 14)
    assert widths[1:] == [10, 14]


def test_between_frames_a_model_can_be_unloaded(start_server: StartServer) -> None:
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    with stream(server, model="detector", keep_alive=0) as socket:
        received(socket)
        for number in range(2):
            socket.send(FRAME)
            assert received(socket)["frame"] == number
            assert all(not loaded.num_leases for loaded in server.parts.pool.loaded())


def test_a_server_that_drains_ends_the_stream_at_the_next_frame(start_server: StartServer) -> None:
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    with stream(server, model="detector") as socket:
        received(socket)
        assert server.run(server.parts.one_shot.drain(5))
        socket.send(FRAME)
        assert "shutting down" in received(socket)["error"]["message"]
        assert closed(socket) == 1012


def test_a_server_that_stops_ends_the_stream(start_server: StartServer) -> None:
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    with stream(server, model="detector") as socket:
        received(socket)
        server.uvicorn.should_exit = True
        assert closed(socket) == 1012
        server.join()


def test_a_client_that_leaves_takes_its_frame_back(start_server: StartServer) -> None:
    gate = Gate()

    def on_pictures(pictures: Sequence[Pixels]) -> None:
        if pictures[0].shape[1] == 40:
            gate(Batch(()))

    server = start_server(on_pictures=on_pictures)
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    with stream(server, model="detector") as socket:
        received(socket)
        socket.send(FRAME)
        gate.wait_entered()

    assert server.run(server.parts.one_shot.drain(WAIT_S))
    gate.open()


def test_a_frame_over_the_limit_closes_the_stream(vision_server: Any) -> None:
    with stream(vision_server, model="detector") as socket:
        received(socket)
        sending = threading.Thread(target=lambda: _quietly(socket, bytes(20 * 1024**2 + 1)))
        sending.start()
        assert closed(socket) == 1009
        sending.join(WAIT_S)


def _quietly(socket: ClientConnection, content: bytes) -> None:
    try:
        socket.send(content)
    except (ConnectionClosed, OSError):
        return


@pytest.mark.parametrize(
    ("host", "origin", "words"),
    [("127.0.0.1", "https://evil.example", "origin"), ("evil.example", None, "host")],
)
def test_pages_of_others_cannot_open_a_stream(
    vision_server: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    origin: Any,
    words: str,
) -> None:
    # what `vmm serve` filters out once it was started in this process
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    url = f"ws://{host}:{vision_server.port}/v1/vision/stream"
    line = sockets.create_connection(("127.0.0.1", vision_server.port), WAIT_S)
    with pytest.raises(InvalidStatus) as caught, connect(url, sock=line, origin=origin, proxy=None):
        pass
    response = caught.value.response
    assert response.status_code == 403
    error = json.loads(response.body or b"")["error"]
    assert (error["type"], words in error["message"]) == ("permission_error", True)
    assert response.headers["x-request-id"]
    vision_server.client.get("/health/live")  # behind what is logged of the refusal
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["uvicorn.error"]
    assert not any(map(is_no_refusal, errors))


def test_this_machines_own_pages_can(vision_server: Any) -> None:
    with open_stream(vision_server, origin="http://localhost:3000") as socket:
        assert socket.response is not None
        assert socket.response.headers["x-request-id"]


def test_the_route_is_a_websocket_alone(vision_server: Any) -> None:
    assert vision_server.client.get("/v1/vision/stream").status_code in (404, 405)


def test_the_newest_frame_takes_the_place_of_the_one_that_waits() -> None:
    async def scenario() -> list[tuple[int, bytes, str, int]]:
        frames = LatestFrame("old")
        taken = []
        frames.put(b"0")
        taken.append(await frames.take())
        for content in (b"1", b"2"):
            frames.put(content)
        frames.options = "new"
        taken.append(await frames.take())
        waiting = asyncio.create_task(frames.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        frames.put(b"3")
        taken.append(await waiting)
        return [(frame.number, frame.content, frame.options, frame.num_dropped) for frame in taken]

    assert asyncio.run(scenario()) == [(0, b"0", "old", 0), (2, b"2", "old", 1), (3, b"3", "new", 0)]
