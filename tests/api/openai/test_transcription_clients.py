"""Clients of `/v1/audio/transcriptions` that leave, or send nonsense."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.fake_audio import install_ears, sound

ROUTE = "/v1/audio/transcriptions"
BOUNDARY = "frontier"


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Of (name, filename, content)."""
    written = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        written += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        written += content + b"\r\n"
    return written + f"--{BOUNDARY}--\r\n".encode()


WHOLE = form(("model", None, b"whisper:small"), ("stream", None, b"true"), ("file", "a.wav", sound(*[1] * 8)))


def send(server: Any, content: bytes, length: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    connection.sendall(f"{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + content)
    return connection


def wait_until(server: Any, condition: Callable[[], bool]) -> None:
    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)

    server.run(asyncio.wait_for(turn(), 20))


def num_leases(server: Any) -> int:
    return sum(loaded.num_leases for loaded in server.parts.pool.loaded())


class Held:
    """Holds the model at its third segment."""

    def __init__(self) -> None:
        self.heard: list[float] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()

    def __call__(self, segment: Any) -> None:
        self.heard.append(segment.start)
        if len(self.heard) == 3:
            self.entered.set()
            assert self.may_go.wait(20)


def test_who_leaves_is_heard_no_further(start_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    server = start_server(on_segment=held)
    install_ears(server.parts.store, server.parts.registry.resolve("echo"))
    connection = send(server, WHOLE, len(WHOLE))
    received = b""
    while b"second 1." not in received:
        received += connection.recv(65536)
    assert held.entered.wait(20)
    assert num_leases(server) == 1
    connection.close()
    held.may_go.set()
    wait_until(server, lambda: num_leases(server) == 0)
    assert held.heard == [0.0, 1.0, 2.0]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_who_leaves_while_sending_is_forgotten(audio_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vmm_server")
    for cut in (50, len(WHOLE) // 2, len(WHOLE) - 3):
        send(audio_server, WHOLE[:cut], len(WHOLE)).close()
    audio_server.client.get("/health/live").raise_for_status()  # by now the others have been accepted
    wait_until(audio_server, lambda: not audio_server.uvicorn.server_state.tasks)
    assert sum(record.getMessage().count(" 499 ") for record in caplog.records) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert num_leases(audio_server) == 0


FIELDS = (
    *("model", "language", "prompt", "response_format", "temperature", "timestamp_granularities[]", "stream", "seed"),
    *("include[]", "chunking_strategy", "chunking_strategy[type]", "vad_filter", "keep_alive", "device", "languages[]"),
    *("file", "a[b][c]", "]", "", "keywords"),
)
VALUES = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "nan",
        "true",
        "json",
        "verbose_json",
        "word",
        "auto",
        "{}",
        "[" * 3000,
        '{"type": 1}',
    ),
    *('{"type": "server_vad", "threshold": 0.1}', "en", "de", "whisper:small", "logprobs", "\0", "é\u2028", "x" * 3000),
)
FILES = (sound(1), sound(0), b"", b"\0" * 50, sound(1)[:-7], sound(1, format="MP3")[:900], b"RIFF" + b"\xff" * 60)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    fields=st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)), max_size=4),
    file=st.sampled_from(FILES),
    route=st.sampled_from([ROUTE, "/v1/audio/translations"]),
    cut=st.one_of(st.none(), st.integers(0, 600)),
)
def test_no_form_is_a_failure(
    audio_server: Any, fields: list[tuple[str, str]], file: bytes, route: str, cut: int | None
) -> None:
    parts = [(name, None, value.encode()) for name, value in fields]
    content = form(("model", None, b"whisper:small"), *parts, ("file", "a.wav", file))[:cut]
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    response: httpx.Response = audio_server.client.post(route, content=content, headers=headers)
    where = f"{fields} {response.status_code} {response.text[:300]}"
    assert response.status_code < 500, where
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        assert response.json()["error"]["message"], where
        assert response.headers["x-should-retry"] == "false"
        assert len(response.content) < 10_000
