"""`multipart/form-data` bodies: fields checked into a pydantic shape, files spooled to disk beyond a megabyte.

A form is read before its route answers, for fields may come after the file, and its files live until the answer is
sent: `answer_form` owns them in between. Nothing of it is larger than `FormLimits` says, and no disk is written to on
the event loop.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from litestar import Request
from litestar.exceptions import InternalServerException
from litestar.types import ASGIApp, Receive, Scope, Send
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header
from pydantic import ByteSize, ValidationError

from vmm_server.api.body import Wire, invalid_request, refuse_compressed
from vmm_server.api.form_fields import nested
from vmm_server.errors import InvalidRequest, RequestCancelled, StoreError

SPOOL_BYTES = 1024 * 1024
"""From here on a file lies on the disk, and is written there in pieces of this size."""
_SLACK_BYTES = 64 * 1024
"""Boundaries and headers of parts."""

Shape = TypeVar("Shape", bound=Wire)


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What a form may be."""

    max_bytes: int
    """Of all its files together."""
    max_files: int = 1
    max_fields: int = 200
    max_field_bytes: int = 256 * 1024
    """Of all its fields together."""
    param: str = "file"
    """The field that errors of too many bytes name."""
    setting: str | None = None
    """The setting that `max_bytes` comes from; errors name it."""
    spool_dir: Path | None = None
    """Where files lie meanwhile; it is made if it is not there. `None`: the system's place for temporary files."""


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file as it was sent."""

    field: str
    """The form's field it came in: `file`, `image`."""
    filename: str
    """The client's name for it: to be shown, never to be opened."""
    content_type: str
    """As the client has it, which often is wrong."""
    content: IO[bytes]
    """At its start. Reading it may block."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """Files and fields of a form, in their order."""

    files: tuple[FormFile, ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict)
    """Strings; lists of `name[]` and of what came several times; mappings of `name[key]`."""

    def files_of(self, *names: str) -> list[FormFile]:
        """Those that came in one of these fields; `name[]` and `name[0]` are `name`."""
        return [file for file in self.files if file.field.partition("[")[0] in names]

    def file_of(self, name: str) -> FormFile:
        """The one file of a field. Raises `InvalidRequest` when there is none, or more."""
        found = self.files_of(name)
        if not found:
            sent = f"{name}: must be a file, not text" if name in self.fields else f"{name}: field required"
            raise InvalidRequest(sent, param=name, hint=f"curl sends one with -F {name}=@path")
        if len(found) > 1:
            raise InvalidRequest(f"{name}: {len(found)} files; send one", param=name)
        return found[0]

    def parse(self, shape: type[Shape]) -> Shape:
        """The fields, checked; `"0.5"` is a number where one is wanted, and a field that is empty was left empty.

        Raises `InvalidRequest` naming the field.
        """
        filled = {name: value for name, value in self.fields.items() if value != ""}
        try:
            return shape.model_validate(filled, strict=False)
        except ValidationError as error:
            raise invalid_request(error, sent=filled if error.error_count() > 1 else None) from error

    def close(self) -> None:
        """Forget the files."""
        for file in self.files:
            file.content.close()


def is_form(request: Request[Any, Any, Any]) -> bool:
    """Whether a request's body says that it is a form."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    return bool(kind.strip().lower() == "multipart/form-data")


async def answer_form(
    request: Request[Any, Any, Any], limits: FormLimits, answer: Callable[[Form], ASGIApp | Awaitable[ASGIApp]]
) -> ASGIApp:
    """Read a form and reply what `answer` makes of it; its files are there until the reply is sent or has failed.

    Raises as `read_form` and `answer` do.
    """
    form = await read_form(request, limits)
    try:
        made = answer(form)
        app: ASGIApp = await made if isinstance(made, Awaitable) else made
    except BaseException:
        form.close()
        raise

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            form.close()

    return reply


async def read_form(request: Request[Any, Any, Any], limits: FormLimits) -> Form:
    """Read a whole form; who calls this closes it. The route needs `request_max_body_size=None`.

    Raises `InvalidRequest` for what is no form, is cut off or beyond a limit; `StoreError` for a disk that is full;
    `RequestCancelled` when the client leaves in the middle.
    """
    refuse_compressed(request)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise _no_form(str(kind))
    allowed = limits.max_bytes + limits.max_field_bytes + _SLACK_BYTES
    if request.content_length is not None and request.content_length > allowed:
        raise _too_large(limits)
    reader = _FormReader(limits)
    try:
        parser = PushMultipartParser(options["boundary"], max_segment_count=limits.max_files + limits.max_fields)
        num_bytes = 0
        async for chunk in _chunks(request):
            num_bytes += len(chunk)
            if num_bytes > allowed:
                raise _too_large(limits)
            for event in parser.parse(chunk):
                await reader.take(event)
        parser.close()
        return await reader.finish()
    except ParserLimitReached as error:
        reader.close()
        raise InvalidRequest(
            f"the form has more than {limits.max_files} files and {limits.max_fields} fields, or long headers"
        ) from error
    except MultipartError as error:
        reader.close()
        raise InvalidRequest(f"the form is damaged or cut off: {error}") from error
    except BaseException:
        reader.close()
        raise


async def _chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except InternalServerException as error:  # Litestar's word for a client that leaves in the middle
        raise RequestCancelled from error


def _no_form(kind: str) -> InvalidRequest:
    hint = "curl sends a form with -F name=value -F file=@path"
    if not kind:
        return InvalidRequest("missing request body: it must be multipart/form-data", hint=hint)
    what = "with a boundary" if kind == "multipart/form-data" else f"not {kind}"
    return InvalidRequest(f"the body must be multipart/form-data, {what}", hint=hint)


def _too_large(limits: FormLimits) -> InvalidRequest:
    size = ByteSize(limits.max_bytes).human_readable()
    hint = f"that is the server's setting {limits.setting}" if limits.setting else None
    return InvalidRequest(f"{limits.param}: more than {size}, which is the limit", param=limits.param, hint=hint)


class _FormReader:
    """What the parser says, one event after the other → a form."""

    def __init__(self, limits: FormLimits) -> None:
        self._limits = limits
        self._part: MultipartSegment | None = None
        self._pending = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._file_bytes = 0
        self._field_bytes = 0
        self._files: list[FormFile] = []
        self._fields: list[tuple[str, str]] = []

    async def take(self, event: MultipartSegment | bytes | None) -> None:
        """A part's head, some of its bytes, or its end."""
        if isinstance(event, MultipartSegment):
            self._part, self._size = event, 0
            if _is_file(event):
                if len(self._files) == self._limits.max_files:
                    count = f"{self._limits.max_files} file" + "s" * (self._limits.max_files > 1)
                    raise InvalidRequest(f"{event.name}: more than {count} in a request", param=event.name)
                folder = None if self._limits.spool_dir is None else str(self._limits.spool_dir)
                self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=folder)  # noqa: SIM115 - until it is closed
        elif event is not None:
            self._count(len(event))
            self._pending += event
            if len(self._pending) >= SPOOL_BYTES:
                await self._write()
        else:
            await self._end()

    async def finish(self) -> Form:
        """The form, once the parser is at its end."""
        return Form(tuple(self._files), nested(self._fields))

    def close(self) -> None:
        """Forget all that was read."""
        for content in (self._file, *(file.content for file in self._files)):
            if content is not None:
                content.close()

    def _count(self, size: int) -> None:
        self._size += size
        if self._file is not None:
            self._file_bytes += size
            if self._file_bytes > self._limits.max_bytes:
                raise _too_large(self._limits)
            return
        self._field_bytes += size
        if self._field_bytes > self._limits.max_field_bytes:
            name = self._part.name if self._part is not None else None
            raise InvalidRequest(f"{name}: fields have more than {self._limits.max_field_bytes} bytes", param=name)

    async def _write(self) -> None:
        if self._file is None:
            return
        pending, self._pending = self._pending, bytearray()
        try:
            if self._size <= SPOOL_BYTES:  # stays in memory
                self._file.write(pending)
            else:
                await asyncio.to_thread(self._spool, self._file, pending)
        except OSError as error:
            raise StoreError(f"the upload cannot be kept: {error.strerror}") from error

    def _spool(self, file: IO[bytes], pending: bytearray) -> None:
        if self._limits.spool_dir is not None:
            self._limits.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write(pending)

    async def _end(self) -> None:
        part = self._part
        if part is None:
            return
        if self._file is None:
            self._fields.append((part.name, _text(part.name, bytes(self._pending))))
            self._pending.clear()
            return
        await self._write()
        self._file.seek(0)
        kind = part.content_type or "application/octet-stream"
        self._files.append(FormFile(part.name, part.filename or "", kind, self._file, self._size))
        self._file = None


def _is_file(part: MultipartSegment) -> bool:
    """Files have a name; where they have none, bytes that are no text are one."""
    kind = part.content_type or "text/plain"
    return part.filename is not None or not kind.startswith(("text/", "application/json"))


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: must be UTF-8 text", param=name) from error
