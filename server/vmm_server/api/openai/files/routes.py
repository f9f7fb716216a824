"""`/v1/files`: upload, list, download, delete. A file belongs to the tenant that uploaded it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from litestar import Controller, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp

from vmm_server.api.multipart import Form, FormLimits, answer_form
from vmm_server.api.openai.files import examples
from vmm_server.api.openai.files.wire import PURPOSES, FileForm, expiry_s, file_object
from vmm_server.api.openai.pages import page, read_limit, read_order
from vmm_server.api.openapi import described
from vmm_server.api.streaming import ChunkStream, WholeAnswer, bytes_response, json_response
from vmm_server.callers import caller
from vmm_server.errors import InvalidRequest
from vmm_server.file_store import OUTPUT, FileStore, NewFile, pieces

MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_PAGE = 10_000
MAX_NAME = 255
"""Characters of a filename that are kept."""
OCTETS = "application/octet-stream"
FILE = {"file": "The file; JSON Lines for a batch."}
PAGE_QUERY = {
    "purpose": "Only files of this purpose",
    "order": "`asc` or `desc`, which is the default",
    "limit": f"1 to {MAX_PAGE}, which is the default",
    "after": "the `id` of the file that the page follows",
}


class FilesController(Controller):
    """Stored files."""

    path = "/v1/files"

    @post(
        status_code=200,
        operation_id="createFile",
        summary="Upload a file",
        request_max_body_size=None,
        opt=described(*examples.CREATE, body=FileForm, files=FILE),
    )
    async def create(self, request: Request[Any, Any, Any], file_store: NamedDependency[FileStore]) -> ASGIApp:
        """Kept until it expires or is deleted; for what a batch reads, `purpose` is `batch`."""
        limits = FormLimits(MAX_FILE_BYTES, spool_dir=file_store.folder if file_store.is_enabled else None)
        tenant = caller.get().tenant

        def reply(form: Form) -> ASGIApp:
            wire, sent = form.parse(FileForm), form.file_of("file")
            name = PurePosixPath(sent.filename.replace("\\", "/")).name[:MAX_NAME] or "file"
            new = NewFile(tenant, name, wire.purpose, expiry_s(wire))

            async def keep() -> WholeAnswer:
                return WholeAnswer(file_object(await file_store.put(new, pieces(sent.content))))

            return json_response(keep)

        return await answer_form(request, limits, reply)

    @get(
        operation_id="listFiles",
        summary="The files there are",
        opt=described(*examples.LIST, query=PAGE_QUERY),
    )
    async def list_files(
        self, request: Request[Any, Any, Any], file_store: NamedDependency[FileStore]
    ) -> dict[str, object]:
        """Those of the caller's; the newest first."""
        query = request.query_params
        purpose = query.get("purpose")
        if purpose is not None and purpose not in (*PURPOSES, OUTPUT):
            raise InvalidRequest(
                f"purpose: {purpose[:100]!r} is none of {', '.join((*PURPOSES, OUTPUT))}", param="purpose"
            )
        files, has_more = await file_store.page(
            caller.get().tenant,
            purpose=purpose,
            after=query.get("after"),
            limit=read_limit(query.get("limit"), default=MAX_PAGE, maximum=MAX_PAGE),
            ascending=read_order(query.get("order")),
        )
        return page([file_object(file) for file in files], has_more=has_more)

    @get("/{file_id:str}", operation_id="getFile", summary="What is known of a file", opt=described(*examples.RETRIEVE))
    async def retrieve(self, file_store: NamedDependency[FileStore], file_id: FromPath[str]) -> dict[str, object]:
        """Its name, size, purpose and age."""
        return file_object(await file_store.get(file_id, caller.get().tenant))

    @get(
        "/{file_id:str}/content",
        operation_id="getFileContent",
        summary="What is in a file",
        opt=described(*examples.CONTENTS),
    )
    async def content(self, file_store: NamedDependency[FileStore], file_id: FromPath[str]) -> ASGIApp:
        """As it was uploaded, or as a batch has written it."""
        file = await file_store.get(file_id, caller.get().tenant)
        opened = await file_store.open(file)

        @asynccontextmanager
        async def stream() -> AsyncIterator[ChunkStream]:
            disposition = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"
            headers = {"content-length": str(file.num_bytes), "content-disposition": disposition}
            with opened:
                yield ChunkStream(pieces(opened), lambda: headers)

        return bytes_response(stream, OCTETS)

    @delete(
        "/{file_id:str}",
        status_code=200,
        operation_id="deleteFile",
        summary="Forget a file",
        opt=described(*examples.DELETE),
    )
    async def remove(self, file_store: NamedDependency[FileStore], file_id: FromPath[str]) -> dict[str, object]:
        """A batch that has read it already goes on without it."""
        await file_store.delete(file_id, caller.get().tenant)
        return {"id": file_id, "object": "file", "deleted": True}
