"""`POST /v1/chat/completions`."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.openai.convert import chat_request
from vmm_server.api.openai.render import ChatChunks, Identity, chat_completion
from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.inference import Completion, Inference
from vmm_server.requests import GenerateRequest
from vmm_server.settings import Settings


class ChatController(Controller):
    """Chat completions."""

    path = "/v1/chat/completions"

    @post(status_code=200, operation_id="createChatCompletion", summary="Answer a conversation")
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, ChatCompletionRequest)
        asked = chat_request(wire)
        if not wire.stream:
            return json_response(lambda: _answer(inference, asked))
        include_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        return sse_response(
            lambda: _stream(inference, asked, include_usage), openai_body, drain_s=settings.shutdown_timeout_s
        )


def _identity(asked: GenerateRequest, completion: Completion) -> Identity:
    return Identity(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(completion.created.timestamp()),
        model=asked.model,
        system_fingerprint=f"vmm-{completion.model.digest[:12]}",
    )


async def _answer(inference: Inference, asked: GenerateRequest) -> WholeAnswer:
    async with await inference.generate(asked) as completion:
        gathered = await gather(completion)
        token_bytes = completion.token_bytes if asked.sampling.logprobs is not None else None
        body = chat_completion(_identity(asked, completion), gathered, token_bytes)
        return WholeAnswer(body, provenance(completion) | cache_header([gathered.usage]))


@asynccontextmanager
async def _stream(inference: Inference, asked: GenerateRequest, include_usage: bool) -> AsyncIterator[ChunkStream]:
    async with await inference.generate(asked) as completion:
        chunks = ChatChunks(
            _identity(asked, completion),
            include_usage=include_usage,
            token_bytes=completion.token_bytes if asked.sampling.logprobs is not None else None,
        )
        async with aclosing(_events(completion, chunks)) as events:
            yield ChunkStream(events, provenance(completion))


async def _events(completion: Completion, chunks: ChatChunks) -> AsyncGenerator[bytes]:
    async for delta in completion:
        for event in chunks.events(delta):
            yield event
