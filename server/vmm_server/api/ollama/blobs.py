"""`/api/blobs/sha256:<hex>`: files that a client uploads before it creates a model of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from litestar import Controller, MediaType, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException
from litestar.params import FromPath

from vmm_server.api.ollama import model_examples as examples
from vmm_server.api.openapi import described
from vmm_server.errors import BlobNotFound, DigestMismatch, InvalidRequest, RequestCancelled
from vmm_server.models.blobs import parse_digest
from vmm_server.models.store import Store


class BlobsController(Controller):
    """Files by their content."""

    path = "/api/blobs"

    @get(
        "/{digest:str}",
        operation_id="headBlob",
        summary="Is a file here",
        opt=described(*examples.HEAD_BLOB),
    )
    async def look(self, digest: FromPath[str], store: NamedDependency[Store]) -> dict[str, object]:
        """Clients ask with HEAD: 200 or 404."""
        if not await asyncio.to_thread(store.has_blob, parse_digest(digest)):
            raise BlobNotFound(digest)
        return {"digest": f"sha256:{parse_digest(digest)}"}

    @post(
        "/{digest:str}",
        status_code=201,
        operation_id="createBlob",
        summary="Upload a file",
        request_max_body_size=None,
        opt=described(*examples.CREATE_BLOB, upload=True),
    )
    async def upload(
        self, request: Request[Any, Any, Any], digest: FromPath[str], store: NamedDependency[Store]
    ) -> Response[bytes]:
        """The bytes as they are, of any size the disk has room for. 200: it was here already."""
        wanted = parse_digest(digest)
        chunks = _chunks(request)
        try:
            is_new = await store.put_blob(wanted, chunks, size_bytes=request.content_length)
        except DigestMismatch as error:
            raise InvalidRequest(
                f"digest mismatch, expected sha256:{error.expected}, got sha256:{error.actual}", param="digest"
            ) from error
        async for _ in chunks:  # a client that is still sending would take an early answer for a broken connection
            pass
        return Response(b"", status_code=201 if is_new else 200, media_type=MediaType.TEXT)


async def _chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException as error:  # Litestar's word for a client that leaves in the middle
        raise RequestCancelled from error
