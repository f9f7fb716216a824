"""Replies against a hand-driven ASGI connection: what is sent when, and that what was opened is closed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sse_starlette import ServerSentEvent

from vmm_server.api.errors import ollama_body, openai_body
from vmm_server.api.framing import named_event
from vmm_server.api.streaming import (
    ChunkStream,
    WholeAnswer,
    bytes_response,
    json_response,
    ndjson_response,
    sse_response,
)
from vmm_server.callers import Caller, caller
from vmm_server.errors import DeadlineExceeded, GenerationFailed, ModelNotFound, Overloaded

SCOPE: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
Reply = Callable[..., Any]
REPLIES: list[Any] = [
    pytest.param(lambda opened, **options: sse_response(opened, openai_body, drain_s=1.0, **options), id="sse"),
    pytest.param(lambda opened, **options: ndjson_response(opened, ollama_body, **options), id="ndjson"),
]


class Connection:
    """The server's side of one request."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.bodies: list[bytes] = []
        self.complete = False
        self.started = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started.set()
        else:
            if message["body"]:
                self.bodies.append(message["body"])
            self.complete = not message["more_body"]


class Opened:
    """An answer that counts how often it is open."""

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]], fail: Exception | None = None) -> None:
        self.chunks = chunks
        self.fail = fail
        self.num_open = 0
        self.was_opened = asyncio.Event()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[ChunkStream]:
        if self.fail:
            raise self.fail
        self.num_open += 1
        self.was_opened.set()
        try:
            yield ChunkStream(self.chunks(), lambda: {"x-vmm-model": "m"})
        finally:
            self.num_open -= 1


def run(test: Callable[[Connection], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(Connection()), 10)

    asyncio.run(bounded())


@pytest.mark.parametrize("reply", REPLIES)
def test_every_chunk_is_a_write_of_its_own(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def test(connection: Connection) -> None:
        opened = Opened(chunks)
        await reply(opened)(SCOPE, connection.receive, connection.send)
        assert (connection.status, connection.bodies, connection.complete) == (200, [b"one", b"two"], True)
        assert opened.num_open == 0

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_an_error_before_the_first_chunk_is_raised_before_anything_is_sent(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        raise GenerationFailed("at once")
        yield b""

    async def test(connection: Connection) -> None:
        for opened, error in ((Opened(chunks), GenerationFailed), (Opened(chunks, Overloaded()), Overloaded)):
            with pytest.raises(error):
                await reply(opened)(SCOPE, connection.receive, connection.send)
            assert (connection.status, opened.num_open) == (None, 0)

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("error", [GenerationFailed("in the middle"), RuntimeError("a secret")])
def test_a_late_error_is_the_last_chunk(reply: Reply, error: Exception) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        raise error

    async def test(connection: Connection) -> None:
        opened = Opened(chunks)
        await reply(opened)(SCOPE, connection.receive, connection.send)
        expected = b"in the middle" if isinstance(error, GenerationFailed) else b"internal server error"
        assert connection.bodies[0] == b"one"
        assert expected in connection.bodies[1]
        assert len(connection.bodies) == 2
        assert (connection.complete, opened.num_open) == (True, 0)

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_leaving_before_the_first_chunk_closes_the_answer(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def test(connection: Connection) -> None:
        opened = Opened(chunks)
        running = asyncio.create_task(reply(opened)(SCOPE, connection.receive, connection.send))
        await opened.was_opened.wait()
        connection.left.set()
        await running
        assert (connection.status, opened.num_open) == (None, 0)

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_leaving_between_two_chunks_closes_the_answer(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def test(connection: Connection) -> None:
        opened = Opened(chunks)
        running = asyncio.create_task(reply(opened)(SCOPE, connection.receive, connection.send))
        await connection.started.wait()
        connection.left.set()
        await running
        assert (connection.complete, opened.num_open) == (False, 0)

    run(test)


def test_leaving_cancels_a_whole_answer() -> None:
    async def test(connection: Connection) -> None:
        working, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> WholeAnswer:
            working.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return WholeAnswer({})

        running = asyncio.create_task(json_response(work)(SCOPE, connection.receive, connection.send))
        await working.wait()
        connection.left.set()
        await running
        assert cancelled.is_set()
        assert connection.status is None

    run(test)


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    token = caller.set(Caller(deadline_at=time.monotonic() + seconds))
    try:
        yield
    finally:
        caller.reset(token)


async def never() -> Any:
    await asyncio.Event().wait()


async def never_a_chunk() -> AsyncIterator[bytes]:
    await never()
    yield b""


@asynccontextmanager
async def never_open() -> AsyncIterator[ChunkStream]:
    yield await never()


@pytest.mark.parametrize("seconds", [-1.0, 0.05])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(json_response(never), id="json"),
        *(pytest.param(each.values[0](never_open), id=f"{each.id}, loading") for each in REPLIES),
        *(pytest.param(each.values[0](Opened(never_a_chunk)), id=f"{each.id}, in the queue") for each in REPLIES),
        pytest.param(bytes_response(never_open, "audio/wav"), id="bytes, loading"),
        pytest.param(bytes_response(Opened(never_a_chunk), "audio/wav"), id="bytes, computing"),
    ],
)
def test_a_deadline_before_the_first_chunk_has_its_own_status(reply: Any, seconds: float) -> None:
    async def test(connection: Connection) -> None:
        with deadline_in(seconds), pytest.raises(DeadlineExceeded):
            await reply(SCOPE, connection.receive, connection.send)
        assert (connection.status, connection.bodies) == (None, [])

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_a_deadline_between_two_chunks_is_the_last_chunk(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await never()

    async def test(connection: Connection) -> None:
        opened = Opened(chunks)
        with deadline_in(0.3):
            await reply(opened)(SCOPE, connection.receive, connection.send)
        assert connection.bodies[0] == b"one"
        assert b"the time for this request is over" in connection.bodies[1]
        assert (len(connection.bodies), connection.complete, opened.num_open) == (2, True, 0)

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_what_is_whole_in_time_is_sent_whole(reply: Reply) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def test(connection: Connection) -> None:
        with deadline_in(60):
            await reply(Opened(chunks))(SCOPE, connection.receive, connection.send)
        assert (connection.bodies, connection.complete) == ([b"one", b"two"], True)

    run(test)


def test_a_timeout_of_the_works_own_is_no_deadline() -> None:
    async def work() -> WholeAnswer:
        raise TimeoutError("of a socket")

    async def test(connection: Connection) -> None:
        with deadline_in(60), pytest.raises(TimeoutError, match="of a socket"):
            await json_response(work)(SCOPE, connection.receive, connection.send)

    run(test)


def test_a_whole_answer_has_its_length() -> None:
    async def test(connection: Connection) -> None:
        async def work() -> WholeAnswer:
            return WholeAnswer({"a": 1})

        await json_response(work)(SCOPE, connection.receive, connection.send)
        assert (connection.status, connection.bodies, connection.complete) == (200, [b'{"a":1}'], True)

        async def fail() -> WholeAnswer:
            raise ModelNotFound("m")

        with pytest.raises(ModelNotFound):
            await json_response(fail)(SCOPE, connection.receive, connection.send)

    run(test)


@pytest.mark.parametrize("reply", REPLIES)
def test_a_slow_first_chunk_starts_the_response_without_one(reply: Reply) -> None:
    async def test(connection: Connection) -> None:
        may_go_on = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            await may_go_on.wait()
            raise GenerationFailed("after the status")
            yield b""

        opened = Opened(chunks)
        running = asyncio.create_task(reply(opened, grace_s=0)(SCOPE, connection.receive, connection.send))
        await connection.started.wait()
        assert connection.bodies == []
        may_go_on.set()
        await running
        assert b"after the status" in b"".join(connection.bodies)
        assert (connection.complete, opened.num_open) == (True, 0)

    run(test)


def test_a_silent_sse_stream_is_kept_alive_by_comments() -> None:
    async def test(connection: Connection) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            while len(connection.bodies) < 3:  # noqa: ASYNC110 - the pings are what is waited for
                await asyncio.sleep(0)

        opened = Opened(chunks)
        reply = sse_response(opened, openai_body, drain_s=1.0, ping_s=0.001)
        await reply(SCOPE, connection.receive, connection.send)
        assert connection.bodies[:3] == [b"one", b": ping\n\n", b": ping\n\n"]

    run(test)


def test_pings_and_late_failures_are_framed_as_the_dialect_has_it() -> None:
    async def test(connection: Connection) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield named_event({"type": "start"})
            while len(connection.bodies) < 2:  # noqa: ASYNC110 - the ping is what is waited for
                await asyncio.sleep(0)
            raise GenerationFailed("it broke")

        ping = ServerSentEvent("{}", event="ping", sep="\n")
        opened = Opened(chunks)
        reply = sse_response(
            opened, lambda e: {"type": "error", "of": str(e)}, drain_s=1.0, frame=named_event, ping=ping, ping_s=0.001
        )
        await reply(SCOPE, connection.receive, connection.send)
        assert connection.bodies[0] == b'event: start\ndata: {"type":"start"}\n\n'
        assert connection.bodies[1] == b"event: ping\ndata: {}\n\n"
        assert connection.bodies[-1] == b'event: error\ndata: {"type":"error","of":"it broke"}\n\n'

    run(test)
