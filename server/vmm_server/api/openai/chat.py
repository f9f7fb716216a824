"""`POST /v1/chat/completions`."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather_all, interleaved, open_all, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.openai.choices import candidates
from vmm_server.api.openai.convert import chat_request
from vmm_server.api.openai.render import ChatChunks, Identity, TokenText, chat_completion
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
        asked = candidates(chat_request(wire), wire.n or 1)
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


async def _answer(inference: Inference, asked: Sequence[GenerateRequest]) -> WholeAnswer:
    async with open_all(inference, asked) as completions:
        gathered = await gather_all(completions)
        first = completions[0]
        body = chat_completion(_identity(asked[0], first), gathered, _token_bytes(asked[0], first))
        return WholeAnswer(body, provenance(first) | cache_header([gathered[0].usage]))


@asynccontextmanager
async def _stream(
    inference: Inference, asked: Sequence[GenerateRequest], include_usage: bool
) -> AsyncIterator[ChunkStream]:
    async with open_all(inference, asked) as completions:
        first = completions[0]
        chunks = ChatChunks(
            _identity(asked[0], first),
            len(completions),
            include_usage=include_usage,
            token_bytes=_token_bytes(asked[0], first),
        )
        async with aclosing(_events(completions, chunks)) as events:
            yield ChunkStream(events, provenance(first))


def _token_bytes(asked: GenerateRequest, completion: Completion) -> TokenText | None:
    return completion.token_bytes if asked.sampling.logprobs is not None else None


async def _events(completions: Sequence[Completion], chunks: ChatChunks) -> AsyncGenerator[bytes]:
    async with aclosing(interleaved(completions)) as deltas:
        async for index, delta in deltas:
            for event in chunks.events(index, delta):
                yield event
