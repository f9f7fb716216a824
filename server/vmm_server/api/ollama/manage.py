"""Routes under `/api` that change what is installed: pull, push, create, copy, delete."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import Controller, MediaType, Request, Response, delete, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.body import read_body
from vmm_server.api.ollama import model_examples as examples
from vmm_server.api.ollama.create import check_not_local, create_request
from vmm_server.api.ollama.progress import progress_reply, then_find_replaced
from vmm_server.api.ollama.wire_models import CopyBody, CreateBody, NamedModel, PullBody, PushBody, required
from vmm_server.api.openapi import described
from vmm_server.api.origins import is_loopback
from vmm_server.errors import ImportFailed, InvalidModelName, InvalidRequest, ModelNotFound
from vmm_server.models.compiled import delete_compiled
from vmm_server.models.create import Creator
from vmm_server.models.names import ModelName
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import Puller, PullEvent
from vmm_server.models.push import Pusher
from vmm_server.models.registry import Registry
from vmm_server.settings import Settings


class ManageController(Controller):
    """Models come, go and get names. A model that is in use may be replaced or deleted: running answers go on."""

    path = "/api"

    @post(
        "/pull",
        status_code=200,
        operation_id="pull",
        summary="Fetch and install a model",
        opt=described(*examples.PULL, body=PullBody),
    )
    async def pull(
        self,
        request: Request[Any, Any, Any],
        puller: NamedDependency[Puller],
        pool: NamedDependency[ModelPool],
    ) -> ASGIApp:
        """Progress as NDJSON, or one object with `"stream": false`."""
        body = await read_body(request, PullBody)
        reference = required(body)
        check_not_local(reference, "model", hint=f"run there: vmm pull {reference}")
        return progress_reply(lambda: then_find_replaced(puller.pull(reference), pool), stream=body.stream)

    @post(
        "/push",
        status_code=200,
        operation_id="push",
        summary="Install a model on another server",
        opt=described(*examples.PUSH, body=PushBody),
    )
    async def push(self, request: Request[Any, Any, Any], pusher: NamedDependency[Pusher]) -> ASGIApp:
        """The model's name says which server: `host:port/namespace/model:tag`. Progress as `/api/pull` has it."""
        body = await read_body(request, PushBody)
        name = required(body)
        if request.client is not None and not is_loopback(request.client.host):
            await asyncio.to_thread(_check_elsewhere, ModelName.parse(name))
        return progress_reply(lambda: pusher.push(name, insecure=bool(body.insecure)), stream=body.stream)

    @post(
        "/create",
        status_code=200,
        operation_id="create",
        summary="Make a model of another one, or of uploaded files",
        opt=described(*examples.CREATE, body=CreateBody),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        creator: NamedDependency[Creator],
        pool: NamedDependency[ModelPool],
    ) -> ASGIApp:
        """Progress as `/api/pull` has it. What has the name already is replaced."""
        body = await read_body(request, CreateBody)
        asked = create_request(body)

        def start() -> AsyncGenerator[PullEvent]:
            events = creator.create(asked)
            return then_find_replaced(_of_uploads(events) if asked.files else events, pool)

        return progress_reply(start, stream=body.stream)

    @post(
        "/copy",
        status_code=200,
        operation_id="copy",
        summary="Give a model a second name",
        opt=described(*examples.COPY, body=CopyBody),
    )
    async def copy(
        self,
        request: Request[Any, Any, Any],
        registry: NamedDependency[Registry],
        pool: NamedDependency[ModelPool],
    ) -> Response[bytes]:
        """Nothing but the name is copied."""
        body = await read_body(request, CopyBody)
        for field, name in (("source", body.source), ("destination", body.destination)):
            try:
                ModelName.parse(name)
            except InvalidModelName as error:
                raise InvalidRequest(f'{field} "{name}" is invalid', param=field, hint=error.hint) from error
        try:
            await asyncio.to_thread(registry.copy, body.source, body.destination)
            pool.find_replaced()
        except ModelNotFound as error:
            message = f'model "{body.source}" not found'
            raise ModelNotFound(body.source, hint=error.hint, message=message) from error
        return empty()

    @delete(
        "/delete",
        status_code=200,
        operation_id="delete",
        summary="Uninstall a model",
        opt=described(*examples.DELETE, body=NamedModel),
    )
    async def remove(
        self,
        request: Request[Any, Any, Any],
        registry: NamedDependency[Registry],
        pool: NamedDependency[ModelPool],
        settings: NamedDependency[Settings],
    ) -> Response[bytes]:
        """Uninstall a model, and unload it once it is idle; its files go when it has left memory."""
        await asyncio.to_thread(registry.remove, required(await read_body(request, NamedModel)))
        await pool.settle()
        await asyncio.to_thread(delete_compiled, settings.cache_dir, keep=registry.installed())
        return empty()


async def _of_uploads(events: AsyncGenerator[PullEvent]) -> AsyncGenerator[PullEvent]:
    """The same events; uploaded files that make no model are the request's mistake: `InvalidRequest`."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except ImportFailed as error:
            raise InvalidRequest(error.message, param="files", hint=error.hint) from error


def _check_elsewhere(name: ModelName) -> None:
    """Raise `InvalidRequest` for a server on this machine's loopback: a client on another must not reach it.

    For a thread: names are looked up.
    """
    if is_loopback(name.host.partition(":")[0]):
        raise InvalidRequest(
            f"{name.host} is reached on the server's own machine only",
            param="model",
            hint=f"run there: vmm push {name}",
        )


def empty() -> Response[bytes]:
    """200 without a body."""
    return Response(b"", media_type=MediaType.TEXT)
