"""Requests of the server to itself: the caller, the answer in pieces, and what cancels what."""

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vmm_server.api.requester import Requester
from vmm_server.callers import Caller, caller
from vmm_server.errors import GenerationFailed

ALICE = Caller("alice", priority=7)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 30))

    return run


def start(status: int = 200, **headers: str) -> dict[str, Any]:
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked."""
    message = await receive()
    said = {"path": scope["path"], "method": scope["method"], "body": message["body"].decode()}
    await send(start(201, content_type="application/json"))
    await send(part(json.dumps(said | {"tenant": caller.get().tenant}).encode(), more=False))


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await send(start(content_type="text/event-stream"))
    while True:
        await send(part(b"data: x\n\n"))


@in_a_loop
async def test_a_route_answers_for_the_caller_and_leaves_the_senders_own_as_it_is() -> None:
    caller.set(Caller("server"))
    reply = await Requester(mirror).post("/v1/x", b'{"a": 1}', ALICE)
    assert (reply.status, reply.headers) == (201, {"content-type": "application/json"})
    said = {"path": "/v1/x", "method": "POST", "body": '{"a": 1}', "tenant": "alice"}
    assert json.loads(reply.body) == said
    assert caller.get().tenant == "server"


@in_a_loop
async def test_a_client_that_waits_does_not_leave() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        done, _ = await asyncio.wait({leaving}, timeout=0.01)
        leaving.cancel()
        await send(start(200 if not done else 499))
        await send(part(b"", more=False))

    assert (await Requester(app).post("/", b"{}", ALICE)).status == 200


@in_a_loop
async def test_events_come_one_by_one_however_the_bytes_are_cut() -> None:
    sent = b': ping\n\nevent: a\ndata: {"type": "a"}\n\ndata: one\ndata: two\r\n\r\n: ping\n\ndata: [DONE]\n\n'
    for size in (1, 5, 1000):

        async def app(scope: Any, receive: Any, send: Any, size: int = size) -> None:
            await send(start(content_type="text/event-stream; charset=utf-8"))
            for place in range(0, len(sent), size):
                await send(part(sent[place : place + size]))
            await send(part(b"", more=False))

        async with Requester(app).open("/", b"{}", ALICE) as streamed:
            assert streamed.is_event_stream
            assert [event async for event in streamed.events()] == [b'{"type": "a"}', b"one\ntwo", b"[DONE]"]


@in_a_loop
async def test_a_route_waits_for_whoever_reads() -> None:
    num_sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal num_sent
        await send(start())
        while True:
            await send(part(b"x"))
            num_sent += 1

    async with Requester(app).open("/", b"{}", ALICE) as streamed:
        for _ in range(3):
            await anext(streamed.chunks)
        for _ in range(100):
            await asyncio.sleep(0)
        assert num_sent <= 3


@pytest.mark.parametrize("num_read", [0, 1, 5])
@in_a_loop
async def test_leaving_ends_the_work(num_read: int) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await endless(scope, receive, send)
        finally:
            ended.set()

    async with Requester(app).open("/", b"{}", ALICE) as streamed:
        for _ in range(num_read):
            await anext(streamed.chunks)
    assert ended.is_set()


@in_a_loop
async def test_a_cancelled_request_cancels_its_work_at_any_moment() -> None:
    for num_turns in range(30):
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any, ended: asyncio.Event = ended) -> None:
            try:
                await endless(scope, receive, send)
            finally:
                ended.set()

        asking = asyncio.create_task(Requester(app).post("/", b"{}", ALICE))
        for _ in range(num_turns + 1):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert ended.is_set() or num_turns < 2  # before that it has not begun


@in_a_loop
async def test_an_answer_that_breaks_off_is_an_error() -> None:
    async def cut(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(part(b"half"))

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    for app, error in ((cut, GenerationFailed), (silent, GenerationFailed), (broken, ZeroDivisionError)):
        with pytest.raises(error):
            await Requester(app).post("/", b"{}", ALICE)
