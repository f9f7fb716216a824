"""One batch, from state to state: validating → in_progress → finalizing → completed, or aside to another end.

Lines are sent to the routes of this server at the lowest priority. How many are under way at a time is bounded by
slots, which workers take in turn, so that batches of several tenants go on side by side. Those of one tenant go on one
after the other: two models would push each other out of memory, and what is in memory at a time is one file at most.

A worker may be cancelled anywhere. What it has not written into the store is done again by the next one: lines are read
anew, a line without a result is computed again, and files of results have ids that follow from the batch's.
"""

import asyncio
import hashlib
import logging
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import IO, Protocol, TypeVar

import msgspec

from vmm_server.batch_lines import (
    MAX_LINE_BYTES,
    AskedLine,
    LineError,
    ResultLine,
    answered,
    check_lines,
    unanswered,
)
from vmm_server.batch_store import Batch, JobStore, Line
from vmm_server.callers import Caller
from vmm_server.errors import FileNotFound, PermissionDenied, RateLimited, StoreError, Unauthenticated
from vmm_server.file_store import OUTPUT, FileStore, NewFile

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_ERRORS = 100
"""Wrong lines that a batch tells of."""
MAX_TRIES = 3
"""Of a line that fails for reasons of the server's; one that finds it busy is tried until the batch expires."""
MAX_STARTS = 3
"""Of a line during which the process died; from the second on it runs alone, so it is that line which does it."""
MAX_PAUSE_S = 60.0
BUSY = (429, 503)
_CHUNK_LINES, _CHUNK_BYTES = 500, 8 * 1024 * 1024
"""In one transaction."""
_PAGE_LINES = 100
"""Results in memory at a time, while they are written."""
_LONGEST_WAIT_S = 3600.0


class Reply(Protocol):
    """What a route answers."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""

    @property
    def body(self) -> bytes:
        """All of it."""


Post = Callable[[str, bytes, Caller], Awaitable[Reply]]
"""Sends a body to a route of this server, for a caller."""
CallerOf = Callable[[str], Caller]
"""A tenant as the caller of a line. Raises `Unauthenticated` or `PermissionDenied` when it may ask no more, and
`RateLimited` when it has to wait."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers have in common."""

    jobs: JobStore
    files: FileStore
    caller_of: CallerOf
    slots: asyncio.Semaphore
    clock: Callable[[], float]
    """What batches expire by."""
    wall: Callable[[], float]
    """What they are dated by."""
    pause_s: float
    """Before the second try of a line, and of what the store refuses."""
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """By tenant."""
    is_stopping: asyncio.Event = field(default_factory=asyncio.Event)


class BatchWorker:
    """See the module."""

    def __init__(self, batch_id: str, post: Post, shared: Shared) -> None:
        self._id = batch_id
        self._post = post
        self._shared = shared
        self._is_told = asyncio.Event()
        self._refusal: Unauthenticated | PermissionDenied | None = None

    def tell(self) -> None:
        """Somebody else has changed the batch."""
        self._is_told.set()

    async def run(self) -> None:
        """Until the batch is over, or the server stops."""
        for attempt in count():
            try:
                while (batch := await self._shared.jobs.get(self._id)).is_live:
                    if self._shared.is_stopping.is_set():
                        return
                    await self._advance(batch)
                return
            except StoreError as error:
                if attempt == 0:
                    logger.warning("%s waits: %s", self._id, error.message)
                await self._pause(attempt)

    async def _advance(self, batch: Batch) -> None:
        match batch.status:
            case "validating":
                await self._validate(batch)
            case "in_progress":
                await self._compute(batch)
            case _:
                await self._finish(batch)

    async def _validate(self, batch: Batch) -> None:
        """Read the lines into the store."""
        shared = self._shared
        await shared.jobs.drop_lines(batch.id)
        try:
            content = await shared.files.open(await shared.files.get(batch.input_file_id, batch.tenant))
        except FileNotFound as error:
            await self._fail(batch, [LineError("file_not_found", error.message, "input_file_id")])
            return
        errors: list[LineError] = []
        models: set[str] = set()
        num_lines = 0
        try:
            lines = check_lines(_lines_of(content), batch.endpoint)
            while len(errors) < MAX_ERRORS and (chunk := await asyncio.to_thread(_chunk_of, lines)):
                asked = [line for line in chunk if isinstance(line, AskedLine)]
                errors.extend(line for line in chunk if isinstance(line, LineError))
                num_lines += len(asked)
                models.update(line.model for line in asked)
                if not errors and not await shared.jobs.add_lines(batch.id, asked):
                    return
        except StoreError as error:
            errors = [LineError("storage_full", error.message)]
        finally:
            await asyncio.to_thread(content.close)
        if not num_lines and not errors:
            errors.append(LineError("empty_file", "The file has no requests in it.", "input_file_id"))
        if errors:
            await self._fail(batch, errors[:MAX_ERRORS])
            return
        model = models.pop() if len(models) == 1 else None
        await self._move(batch, status="in_progress", in_progress_at=self._now(), num_lines=num_lines, model=model)

    async def _compute(self, batch: Batch) -> None:
        """All lines, until it has expired, is cancelled, or its tenant may ask no more."""
        shared = self._shared
        work = asyncio.create_task(self._compute_lines(batch))
        told = asyncio.create_task(self._is_told.wait())
        try:
            while not work.done() and not told.done() and (left_s := batch.expires_at - shared.clock()) > 0:
                timeout_s = min(left_s, _LONGEST_WAIT_S)
                await asyncio.wait({work, told}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_done, is_told = work.done(), told.done()
            work.cancel()
            told.cancel()
            await asyncio.gather(work, told, return_exceptions=True)
        if is_told:
            self._is_told.clear()
        elif not is_done:
            await self._move(batch, status="finalizing", finalizing_at=self._now(), expired_at=self._now())
        elif self._refusal is not None:
            await self._fail(batch, [LineError(self._refusal.code or "refused", self._refusal.message)])
        elif work.result():
            await self._move(batch, status="finalizing", finalizing_at=self._now())

    async def _compute_lines(self, batch: Batch) -> bool:
        """True when every line has a result."""
        shared = self._shared
        tasks: set[asyncio.Task[bool]] = set()
        broken_off: list[asyncio.Task[bool]] = []
        async with shared.turns[batch.tenant]:
            try:
                await shared.jobs.put_back(batch.id)
                while (begun := await self._begin(batch)) is not None:
                    line, caller = begun
                    task = asyncio.create_task(self._compute_line(batch, line, caller))
                    task.add_done_callback(self._ended(tasks, broken_off))
                    tasks.add(task)
                    if line.starts > 1:  # it may be what the process died of
                        await asyncio.wait({task})
                if tasks:
                    await asyncio.wait(tasks)
                for task in broken_off:
                    task.result()  # raises what it failed with
                return not broken_off and not shared.is_stopping.is_set()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.shield(shared.jobs.put_back(batch.id))

    def _ended(
        self, tasks: set[asyncio.Task[bool]], broken_off: list[asyncio.Task[bool]]
    ) -> Callable[[asyncio.Task[bool]], None]:
        def ended(task: asyncio.Task[bool]) -> None:
            tasks.discard(task)
            self._shared.slots.release()
            if task.cancelled() or task.exception() is not None or not task.result():
                broken_off.append(task)

        return ended

    async def _begin(self, batch: Batch) -> tuple[Line, Caller] | None:
        """Wait for a slot, which the caller releases; `None`: there is no more to begin."""
        shared = self._shared
        while not shared.is_stopping.is_set():
            await shared.slots.acquire()
            line = None
            try:
                caller = shared.caller_of(batch.tenant)
                if not shared.is_stopping.is_set():
                    line = await shared.jobs.begin_line(batch.id)
                return None if line is None else (line, caller)
            except (Unauthenticated, PermissionDenied) as error:
                self._refusal = error
                return None
            except RateLimited as error:
                pause_s = error.retry_after_s
            finally:
                if line is None:
                    shared.slots.release()
            await self._sleep(pause_s)
        return None

    async def _compute_line(self, batch: Batch, line: Line, caller: Caller) -> bool:
        """Ask, and keep the answer. False when the server stops before there is one."""
        result = await self._ask(batch, line, caller)
        if result is None:
            return False
        finish = self._shared.jobs.finish_line
        work = f"keeping a line of {batch.id}"
        await persistently(work, lambda: finish(batch.id, line.number, result), self._shared.pause_s)
        return True

    async def _ask(self, batch: Batch, line: Line, caller: Caller) -> ResultLine | None:
        request_id = new_request_id()
        if line.starts > MAX_STARTS:
            message = f"The server went down {MAX_STARTS} times while it computed this request."
            return unanswered(request_id, line.custom_id, "server_error", message)
        for attempt in count(1):
            try:
                reply = await self._post(batch.endpoint, line.body, caller)
            except Exception:  # a bug of ours: told of as over HTTP
                logger.exception("line %d of %s failed", line.number, batch.id)
                return unanswered(request_id, line.custom_id, "server_error", "internal server error")
            is_hopeful = reply.headers.get("x-should-retry") == "true" and attempt < MAX_TRIES
            if reply.status in BUSY or (reply.status >= 500 and is_hopeful):
                if self._shared.is_stopping.is_set():
                    return None
                await self._pause(attempt - 1, reply.headers.get("retry-after"))
                continue
            http_request_id = reply.headers.get("x-request-id", "")
            try:
                return answered(request_id, line.custom_id, reply.status, http_request_id, reply.body)
            except msgspec.DecodeError:
                return unanswered(request_id, line.custom_id, "server_error", "The answer was no JSON.")
        return None

    async def _pause(self, attempt: int, told: str | None = None) -> None:
        """Longer each time, and as long as the server says; some more, so that lines do not come all at once."""
        least_s = float(told) if told is not None and told.isdecimal() else 0.0
        pause_s = max(least_s, self._shared.pause_s * 2 ** min(attempt, 10))
        await self._sleep(min(MAX_PAUSE_S, pause_s) * random.uniform(1.0, 1.5))

    async def _sleep(self, seconds: float) -> None:
        """Or until the server stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._shared.is_stopping.wait()

    async def _finish(self, batch: Batch) -> None:
        """Write what came out into files; lines that have no result are told of among the errors."""
        if batch.status == "cancelling":
            end, reason = "cancelled", "This request was not executed because the batch was cancelled."
        elif batch.expired_at is not None:
            end, reason = "expired", "This request could not be executed before the completion window expired."
        else:
            end, reason = "completed", ""
        num_unfinished = max(0, batch.num_lines - batch.num_completed - batch.num_failed)
        num_errors = batch.num_failed + num_unfinished
        outputs = self._outputs(batch, failed=False)
        errors = self._errors(batch, f"batch_{end}", reason)
        await self._move(
            batch,
            status=end,
            **{f"{end}_at": self._now()},
            output_file_id=await self._write(batch, "output", outputs) if batch.num_completed else None,
            error_file_id=await self._write(batch, "error", errors) if num_errors else None,
            num_failed=num_errors,
        )

    async def _write(self, batch: Batch, kind: str, chunks: AsyncIterator[bytes]) -> str:
        file_id = f"file-{hashlib.sha256(f'{batch.id} {kind}'.encode()).hexdigest()[:24]}"
        expires_after_s = batch.output_expires_after_s
        new = NewFile(batch.tenant, f"{batch.id}_{kind}.jsonl", OUTPUT, expires_after_s, id=file_id)
        await self._shared.files.put(new, chunks)
        return file_id

    async def _outputs(self, batch: Batch, *, failed: bool) -> AsyncIterator[bytes]:
        after = 0
        while page := await self._shared.jobs.results(batch.id, failed=failed, after=after, limit=_PAGE_LINES):
            after = page[-1][0]
            yield b"".join(text + b"\n" for _, text in page)

    async def _errors(self, batch: Batch, code: str, reason: str) -> AsyncIterator[bytes]:
        async for lines in self._outputs(batch, failed=True):
            yield lines
        after = 0
        while page := await self._shared.jobs.unfinished(batch.id, after=after, limit=_CHUNK_LINES):
            after = page[-1][0]
            results = [unanswered(new_request_id(), custom_id, code, reason) for _, custom_id in page]
            yield b"".join(result.text + b"\n" for result in results)

    async def _fail(self, batch: Batch, errors: Sequence[LineError]) -> None:
        await self._move(batch, status="failed", failed_at=self._now(), errors=msgspec.json.encode(errors))

    def _now(self) -> int:
        return int(self._shared.wall())

    async def _move(self, batch: Batch, **changes: object) -> None:
        await self._shared.jobs.move(batch.id, (batch.status,), **changes)


def new_request_id() -> str:
    """Of a line's result."""
    return f"batch_req_{secrets.token_hex(16)}"


async def persistently(work: str, attempt: Callable[[], Awaitable[Result]], pause_s: float = 1.0) -> Result:
    """Do something that the store may refuse for a while, such as when the disk is full: until it succeeds."""
    for tries in count():
        try:
            return await attempt()
        except StoreError as error:
            if tries == 0:
                logger.warning("%s: %s; trying again", work, error.message)
        await asyncio.sleep(min(MAX_PAUSE_S, pause_s * 2 ** min(tries, 10)))
    raise AssertionError  # `count` has no end


def _lines_of(content: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long, enough to see that."""
    while line := content.readline(MAX_LINE_BYTES + 2):
        while len(line) > MAX_LINE_BYTES + 1 and not line.endswith(b"\n"):
            if not (rest := content.readline(_CHUNK_BYTES)) or rest.endswith(b"\n"):
                break
        yield line


def _chunk_of(lines: Iterator[AskedLine | LineError]) -> list[AskedLine | LineError]:
    chunk: list[AskedLine | LineError] = []
    num_bytes = 0
    for line in islice(lines, _CHUNK_LINES):
        chunk.append(line)
        num_bytes += len(line.body) if isinstance(line, AskedLine) else 0
        if num_bytes > _CHUNK_BYTES:
            break
    return chunk
