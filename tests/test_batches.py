"""Batches with routes that answer as the test wants: states, exactly one result a line, and everything that breaks."""

import asyncio
import functools
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vmm_server.batch_lines import AskedLine, ResultLine, TokenUsage
from vmm_server.batch_store import Batch, JobStore, open_database
from vmm_server.batches import Batches, NewBatch
from vmm_server.callers import BATCH_PRIORITY, Caller
from vmm_server.errors import BatchNotFound, FileNotFound, InvalidRequest, RateLimited, StoreError, Unauthenticated
from vmm_server.file_store import FileStore, NewFile, StoredFile

CHAT = "/v1/chat/completions"
MAX_BYTES = 10**6
TIMEOUT_S = 30


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), TIMEOUT_S))

    return run


@dataclass(frozen=True)
class FakeReply:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"x-request-id": "req-1"})
    body: bytes = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}'


BUSY = FakeReply(503, {"retry-after": "0", "x-should-retry": "true"}, b'{"error": {}}')
BROKEN = FakeReply(500, {"x-should-retry": "true"}, b'{"error": {}}')
WRONG = FakeReply(400, {"x-should-retry": "false"}, b'{"error": {"message": "no"}}')


class FakeRoutes:
    """Answers lines by their `model`; counts how often each was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.callers: list[Caller] = []
        self.answers: dict[str, list[FakeReply]] = {}
        self.gate: asyncio.Event | None = None
        self.has_come = asyncio.Event()
        self.under_way = 0
        self.most_under_way = 0

    async def post(self, path: str, body: bytes, caller: Caller) -> FakeReply:
        assert path == CHAT
        name = json.loads(body)["model"]
        self.asked.append(name)
        self.callers.append(caller)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.has_come.set()
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.under_way -= 1
        answers = self.answers.get(name, [])
        return (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else FakeReply()


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Server:
    """What is there while a process lives."""

    files: FileStore
    jobs: JobStore
    batches: Batches
    routes: FakeRoutes
    time: Time

    async def upload(self, content: bytes, tenant: str = "", purpose: str = "batch") -> StoredFile:
        return await self.files.put(NewFile(tenant, "lines.jsonl", purpose), chunks(content))

    async def create(self, lines: bytes | int, tenant: str = "") -> Batch:
        content = lines if isinstance(lines, bytes) else jsonl(f"{index}" for index in range(lines))
        file = await self.upload(content, tenant)
        return await self.batches.create(NewBatch(tenant, CHAT, file.id, "24h"))

    async def ended(self, batch: Batch) -> Batch:
        """The batch, once it is over."""
        await self.until(batch, lambda found: not found.is_live)
        return await self.jobs.get(batch.id)

    async def at_least(self, num_completed: int, batch: Batch) -> None:
        """Wait until so many lines are done."""
        await self.until(batch, lambda found: found.num_completed >= num_completed)

    async def until(self, batch: Batch, is_so: Callable[[Batch], bool]) -> None:
        while not is_so(await self.jobs.get(batch.id)):  # noqa: ASYNC110 - as clients do
            await asyncio.sleep(0)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        path = self.files.folder / file_id
        return [json.loads(line) for line in path.read_text().splitlines()]

    async def run(self) -> None:
        await self.batches.run(self.routes.post)


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - counters have no event
        await asyncio.sleep(0)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def jsonl(names: Iterable[str], **changes: object) -> bytes:
    return b"".join(line(name, **changes) for name in names)


def line(name: str, **changes: object) -> bytes:
    asked = {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": name}} | changes
    return json.dumps(asked).encode() + b"\n"


@asynccontextmanager
async def process(
    home: Path, *, routes: FakeRoutes | None = None, max_bytes: int = MAX_BYTES, **options: Any
) -> AsyncIterator[Server]:
    """A process over a home; at the end it is killed, unless it has stopped by itself."""
    time = options.pop("time", None) or Time()
    database = open_database(home / "batches.db")
    files = FileStore(database, home / "files", max_bytes=max_bytes, clock=time, wall=time)
    jobs = JobStore(database, max_bytes=max_bytes)
    caller_of = options.pop("caller_of", lambda tenant: Caller(tenant, priority=BATCH_PRIORITY))
    batches = Batches(
        jobs,
        files,
        caller_of=caller_of,
        num_slots=options.pop("num_slots", 8),
        lock_path=home / "batches.lock",
        clock=time,
        wall=time,
        pause_s=0.0,
    )
    server = Server(files, jobs, batches, routes or FakeRoutes(), time)
    running = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.aclose()


@in_a_loop
async def test_every_line_is_answered_once_at_the_lowest_priority(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        batch = await server.ended(await server.create(20))
        assert (batch.status, batch.num_lines, batch.num_completed, batch.num_failed) == ("completed", 20, 20, 0)
        assert (batch.input_tokens, batch.output_tokens) == (60, 40)
        output = await server.lines(batch.output_file_id)
        assert [one["custom_id"] for one in output] == [str(index) for index in range(20)]
        assert len({one["id"] for one in output}) == 20
        answer = {"status_code": 200, "request_id": "req-1", "body": json.loads(FakeReply().body)}
        assert output[0] == {"id": output[0]["id"], "custom_id": "0", "response": answer, "error": None}
        assert batch.error_file_id is None
        assert sorted(server.routes.asked) == sorted(str(index) for index in range(20))
        assert {caller.priority for caller in server.routes.callers} == {BATCH_PRIORITY}
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)


@in_a_loop
async def test_no_more_lines_are_under_way_than_there_are_slots(tmp_path: Path) -> None:
    async with process(tmp_path, num_slots=3) as server:
        server.routes.gate = asyncio.Event()
        batch = await server.create(10)
        await until(lambda: server.routes.under_way == 3)
        other = await server.create(5, tenant="other")
        server.routes.gate.set()
        assert [(await server.ended(one)).num_completed for one in (batch, other)] == [10, 5]
        assert server.routes.most_under_way == 3


@in_a_loop
async def test_batches_of_one_tenant_go_on_one_after_the_other(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.gate = asyncio.Event()
        first = await server.create(jsonl(["a"]))
        await server.routes.has_come.wait()  # of two that come at once, the one that is checked first goes first
        second = await server.create(jsonl(["b"]))
        await server.until(second, lambda found: found.status == "in_progress")
        assert server.routes.asked == ["a"]
        server.routes.gate.set()
        await server.ended(first)
        await server.ended(second)
        assert server.routes.asked == ["a", "b"]


@in_a_loop
async def test_what_fails_is_in_the_error_file(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.answers = {"wrong": [WRONG], "broken": [BROKEN], "busy": [BUSY] * 5 + [FakeReply()]}
        batch = await server.ended(await server.create(jsonl(["wrong", "fine", "broken", "busy"])))
        assert (batch.status, batch.num_completed, batch.num_failed) == ("completed", 2, 2)
        assert [one["custom_id"] for one in await server.lines(batch.output_file_id)] == ["fine", "busy"]
        errors = await server.lines(batch.error_file_id)
        assert [(one["custom_id"], one["response"]["status_code"]) for one in errors] == [
            ("wrong", 400),
            ("broken", 500),
        ]
        assert errors[0]["response"]["body"] == {"error": {"message": "no"}}
        assert [server.routes.asked.count(name) for name in ("wrong", "broken", "busy")] == [1, 3, 6]


@in_a_loop
async def test_a_route_that_breaks_down_is_an_error_of_its_line(tmp_path: Path) -> None:
    class Broken(FakeRoutes):
        async def post(self, path: str, body: bytes, caller: Caller) -> FakeReply:
            if b'"b"' in body:
                raise ValueError("a bug")
            return FakeReply(body=b"no JSON") if b'"c"' in body else await super().post(path, body, caller)

    async with process(tmp_path, routes=Broken()) as server:
        batch = await server.ended(await server.create(jsonl("abc")))
        errors = await server.lines(batch.error_file_id)
        assert [(one["custom_id"], one["response"], one["error"]["code"]) for one in errors] == [
            ("b", None, "server_error"),
            ("c", None, "server_error"),
        ]


@in_a_loop
async def test_lines_that_are_wrong_fail_the_batch_before_anything_runs(tmp_path: Path) -> None:
    wrong = [
        line("a"),
        b"{no json\n",
        b"[1]\n",
        b"\n",
        line("a"),
        line("b", method="GET"),
        line("c", url="/v1/embeddings"),
        line("d", body={"model": "m", "stream": True}),
        line("e", body={}),
        line("f", body=3),
        line(""),
        b'{"custom_id": "g"}\n',
        b'{"custom_id": 7}',
    ]
    async with process(tmp_path) as server:
        batch = await server.ended(await server.create(b"".join(wrong)))
        assert batch.status == "failed"
        assert batch.failed_at is not None
        assert [(one["line"], one["code"], one["param"]) for one in json.loads(batch.errors or b"")] == [
            (2, "invalid_json_line", None),
            (3, "invalid_json_line", None),
            (5, "duplicate_custom_id", "custom_id"),
            (6, "invalid_method", "method"),
            (7, "url_mismatch", "url"),
            (8, "unsupported_parameter", "body.stream"),
            (9, "missing_required_parameter", "body.model"),
            (10, "invalid_type", "body"),
            (11, "invalid_value", "custom_id"),
            (12, "missing_required_parameter", "method"),
            (13, "invalid_type", "custom_id"),
        ]
        assert server.routes.asked == []


@in_a_loop
async def test_a_file_without_requests_fails_the_batch(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        batch = await server.ended(await server.create(b" \n\n"))
        assert json.loads(batch.errors or b"")[0]["code"] == "empty_file"


@in_a_loop
async def test_a_file_may_be_deleted_while_its_batch_runs(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.gate = asyncio.Event()
        batch = await server.create(20)
        await server.routes.has_come.wait()
        await server.files.delete(batch.input_file_id, "")
        server.routes.gate.set()
        assert (await server.ended(batch)).num_completed == 20


@in_a_loop
async def test_a_file_that_is_gone_before_it_was_read_fails_the_batch(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        file = await server.upload(jsonl("ab"))
        (server.files.folder / file.id).unlink()
        batch = await server.ended(await server.batches.create(NewBatch("", CHAT, file.id, "24h")))
        assert (batch.status, json.loads(batch.errors or b"")[0]["code"]) == ("failed", "file_not_found")


@in_a_loop
async def test_a_cancelled_batch_keeps_what_is_done_and_tells_of_the_rest(tmp_path: Path) -> None:
    async with process(tmp_path, num_slots=2) as server:
        batch = await server.create(20)
        await server.at_least(3, batch)
        server.routes.gate = asyncio.Event()
        assert (await server.batches.cancel(batch.id, "")).status in ("cancelling", "cancelled")
        over = await server.ended(batch)
        assert over.status == "cancelled"
        assert server.routes.under_way == 0
        output, errors = await server.lines(over.output_file_id), await server.lines(over.error_file_id)
        assert len(output) == over.num_completed >= 3
        assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
        assert sorted(int(one["custom_id"]) for one in [*output, *errors]) == list(range(20))
        with pytest.raises(InvalidRequest, match="status 'cancelled'"):
            await server.batches.cancel(batch.id, "")


@in_a_loop
async def test_a_process_that_goes_on_computes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    routes = FakeRoutes()
    async with process(tmp_path, routes=routes, num_slots=4) as server:
        batch = await server.create(30)
        await server.at_least(10, batch)
        routes.gate = asyncio.Event()
        await until(lambda: routes.under_way == 4)
    with closing(sqlite3.connect(tmp_path / "batches.db")) as database:
        finished = {name for (name,) in database.execute("SELECT custom_id FROM lines WHERE state = 2")}
    later = FakeRoutes()
    async with process(tmp_path, routes=later) as server:
        over = await server.ended(batch)
        assert over.num_completed == 30
        assert [one["custom_id"] for one in await server.lines(over.output_file_id)] == [str(n) for n in range(30)]
        assert sorted(later.asked, key=int) == [str(n) for n in range(30) if str(n) not in finished]


@in_a_loop
async def test_lines_that_were_under_way_when_a_process_died_run_alone_and_not_for_ever(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.gate = asyncio.Event()
        batch = await server.create(10)
        await server.routes.has_come.wait()
    with closing(sqlite3.connect(tmp_path / "batches.db", isolation_level=None)) as database:  # as SIGKILL leaves them
        database.execute("UPDATE lines SET state = 1, starts = 1 WHERE custom_id IN ('3', '4')")
        database.execute("UPDATE lines SET state = 1, starts = 3 WHERE custom_id = '7'")
    routes = FakeRoutes()
    routes.gate = asyncio.Event()
    async with process(tmp_path, routes=routes) as server:
        await routes.has_come.wait()
        for _ in range(10):
            await server.jobs.get(batch.id)
        assert routes.asked == ["3"]
        routes.gate.set()
        over = await server.ended(batch)
        assert routes.asked[:2] == ["3", "4"]
        assert "7" not in routes.asked
        (error,) = await server.lines(over.error_file_id)
        assert (error["custom_id"], error["error"]["code"]) == ("7", "server_error")
        assert len(await server.lines(over.output_file_id)) == over.num_completed == 9


@in_a_loop
async def test_a_line_has_one_result_whoever_brings_more(tmp_path: Path) -> None:
    database = open_database(tmp_path / "batches.db")
    jobs = JobStore(database, max_bytes=MAX_BYTES)
    batch = Batch("batch_1", "", "validating", CHAT, "file-1", "24h", None, None, created_at=1, expires_at=2)
    await jobs.add(batch, max_live=1)
    assert await jobs.add_lines(batch.id, [AskedLine(1, "a", "m", b"{}"), AskedLine(2, "b", "m", b"{}")])
    assert await jobs.begin_line(batch.id) is None  # it is not validated yet
    await jobs.move(batch.id, ("validating",), status="in_progress", num_lines=2)
    first, second = await jobs.begin_line(batch.id), await jobs.begin_line(batch.id)
    assert first is not None
    assert second is not None
    assert await jobs.begin_line(batch.id) is None
    for text in (b"one", b"two"):
        await jobs.finish_line(batch.id, 1, ResultLine(text, False, TokenUsage(5, 0, 1, 0)))
    await jobs.put_back(batch.id)
    await jobs.finish_line(batch.id, 2, ResultLine(b"late", True, TokenUsage()))
    found = await jobs.get(batch.id)
    assert (found.num_completed, found.num_failed, found.input_tokens) == (1, 0, 5)
    assert await jobs.results(batch.id, failed=False, after=0, limit=9) == [(1, b"one")]
    assert await jobs.results(batch.id, failed=True, after=0, limit=9) == []
    assert await jobs.unfinished(batch.id, after=0, limit=9) == [(2, "b")]
    assert not await jobs.add_lines(batch.id, [AskedLine(3, "c", "m", b"{}")])
    await database.aclose()


@in_a_loop
async def test_a_drained_process_finishes_what_is_under_way_and_begins_nothing(tmp_path: Path) -> None:
    routes = FakeRoutes()
    async with process(tmp_path, routes=routes, num_slots=3) as server:
        routes.gate = asyncio.Event()
        batch = await server.create(10)
        await until(lambda: routes.under_way == 3)
        draining = asyncio.create_task(server.batches.drain(TIMEOUT_S))
        await asyncio.sleep(0)
        routes.gate.set()
        assert await draining
        assert len(routes.asked) == 3
        assert (await server.jobs.get(batch.id)).num_completed == 3
    async with process(tmp_path) as server:
        assert (await server.ended(batch)).num_completed == 10
        assert len(server.routes.asked) == 7


@in_a_loop
async def test_a_batch_expires_and_tells_of_what_was_not_done(tmp_path: Path) -> None:
    time = Time()
    async with process(tmp_path, time=time, num_slots=2) as server:
        batch = await server.create(10)
        await server.at_least(3, batch)
        server.routes.gate = asyncio.Event()
    time.now += 24 * 3600
    async with process(tmp_path, time=time) as server:
        over = await server.ended(batch)
        assert (over.status, server.routes.asked) == ("expired", [])
        output, errors = await server.lines(over.output_file_id), await server.lines(over.error_file_id)
        assert {one["error"]["code"] for one in errors} == {"batch_expired"}
        assert sorted(int(one["custom_id"]) for one in [*output, *errors]) == list(range(10))


@in_a_loop
async def test_batches_of_a_revoked_key_fail(tmp_path: Path) -> None:
    revoked = False

    def caller_of(tenant: str) -> Caller:
        if revoked:
            raise Unauthenticated("the key was revoked")
        return Caller(tenant)

    async with process(tmp_path, caller_of=caller_of, num_slots=2) as server:
        batch = await server.create(50)
        await server.at_least(3, batch)
        revoked = True
        over = await server.ended(batch)
        assert over.status == "failed"
        assert json.loads(over.errors or b"")[0]["code"] == "invalid_api_key"
        assert len(server.routes.asked) < 50


@in_a_loop
async def test_lines_wait_while_the_tokens_of_their_key_are_used_up(tmp_path: Path) -> None:
    refusals = 3

    def caller_of(tenant: str) -> Caller:
        nonlocal refusals
        if tenant == "poor" and refusals:
            refusals -= 1
            raise RateLimited("tokens", retry_after_s=0)
        return Caller(tenant)

    async with process(tmp_path, caller_of=caller_of, num_slots=1) as server:
        poor, rich = await server.create(5, "poor"), await server.create(5, "rich")
        assert (await server.ended(poor)).num_completed == 5
        assert (await server.ended(rich)).num_completed == 5
        assert refusals == 0


@in_a_loop
async def test_results_wait_for_room_and_are_not_computed_again(tmp_path: Path) -> None:
    async with process(tmp_path, max_bytes=3000) as server:
        ballast = await server.upload(b"x" * 1500, purpose="user_data")
        server.routes.answers = {str(n): [FakeReply(body=b'{"text": "%b"}' % (b"y" * 150))] for n in range(5)}
        batch = await server.create(5)
        await until(lambda: len(server.routes.asked) == 5)
        with pytest.raises(StoreError, match="3000 bytes"):
            await server.upload(b"z" * 1500)
        assert (await server.jobs.get(batch.id)).is_live
        await server.files.delete(ballast.id, "")
        assert (await server.ended(batch)).num_completed == 5
        assert len(server.routes.asked) == 5


@in_a_loop
async def test_a_batch_that_is_over_gives_its_space_back(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.answers = {str(n): [FakeReply(body=b'{"text": "%b"}' % (b"y" * 10_000))] for n in range(50)}
        batch = await server.create(jsonl(str(n) for n in range(50)))
        assert (await server.ended(batch)).num_bytes == 0
        await server.files.sweep()
    assert sum(path.stat().st_size for path in tmp_path.glob("batches.db*")) < 250_000  # noqa: ASYNC240 - of a test


@in_a_loop
async def test_a_sweep_that_fails_holds_up_no_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "files" / "a folder"
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    async with process(tmp_path) as server:
        assert (await server.ended(await server.create(3))).num_completed == 3
    assert "a folder cannot be deleted" in caplog.text


@in_a_loop
async def test_two_processes_do_not_work_on_the_same_batches(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(process(tmp_path))
        await first.ended(await first.create(1))
        second = await stack.enter_async_context(process(tmp_path))
        batch = await second.create(10)
        first.batches.wake()
        assert (await second.ended(batch)).num_completed == 10
        assert second.routes.asked == []


@in_a_loop
async def test_a_batch_belongs_to_its_tenant(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        batch = await server.ended(await server.create(1, "alice"))
        for other in ("bob", ""):
            with pytest.raises(BatchNotFound):
                await server.jobs.get(batch.id, other)
            with pytest.raises(BatchNotFound):
                await server.batches.cancel(batch.id, other)
            with pytest.raises(FileNotFound):
                await server.batches.create(NewBatch(other, CHAT, batch.input_file_id, "24h"))
            with pytest.raises(FileNotFound):
                await server.files.get(batch.output_file_id or "", other)
            assert await server.jobs.page(other, after=None, limit=5) == ([], False)
        assert (await server.files.get(batch.output_file_id or "", "alice")).purpose == "batch_output"


@in_a_loop
async def test_batches_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        made = [(await server.ended(await server.create(1))).id for _ in range(3)]
        page, has_more = await server.jobs.page("", after=None, limit=2)
        assert ([one.id for one in page], has_more) == (made[:0:-1], True)
        rest, has_more = await server.jobs.page("", after=page[-1].id, limit=2)
        assert ([one.id for one in rest], has_more) == (made[:1], False)
        with pytest.raises(InvalidRequest, match="after"):
            await server.jobs.page("", after="batch_nobody", limit=2)


@in_a_loop
async def test_a_file_for_something_else_is_no_input(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        file = await server.upload(jsonl("a"), purpose="user_data")
        with pytest.raises(InvalidRequest, match="purpose is user_data"):
            await server.batches.create(NewBatch("", CHAT, file.id, "24h"))


@in_a_loop
async def test_a_tenant_has_so_many_batches_at_a_time(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        server.routes.gate = asyncio.Event()
        batch = await server.create(1)
        stored = await server.jobs.get(batch.id)
        assert not await server.jobs.add(stored, max_live=1)
        await server.batches.cancel(batch.id, "")
        await server.ended(batch)
        assert (await server.create(1)).status == "validating"
