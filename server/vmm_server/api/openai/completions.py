"""`POST /v1/completions`: text goes on where the prompt ends."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, interleaved, open_all, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.gathered import Gathered
from vmm_server.api.openai.convert import completion_requests
from vmm_server.api.openai.render import CompletionChunks, Identity, text_completion
from vmm_server.api.openai.wire import CompletionRequest
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.inference import Completion, Inference
from vmm_server.requests import GenerateRequest
from vmm_server.settings import Settings


class CompletionController(Controller):
    """Text completions, one choice a prompt."""

    path = "/v1/completions"

    @post(status_code=200, operation_id="createCompletion", summary="Continue a text")
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, CompletionRequest)
        asked = completion_requests(wire)
        if not wire.stream:
            return json_response(lambda: _answer(inference, asked))
        include_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        return sse_response(
            lambda: _stream(inference, asked, include_usage), openai_body, drain_s=settings.shutdown_timeout_s
        )


def _identity(asked: GenerateRequest, completion: Completion) -> Identity:
    return Identity(
        id=f"cmpl-{secrets.token_hex(12)}",
        created=int(completion.created.timestamp()),
        model=asked.model,
        system_fingerprint=f"vmm-{completion.model.digest[:12]}",
    )


async def _answer(inference: Inference, asked: Sequence[GenerateRequest]) -> WholeAnswer:
    async with open_all(inference, asked) as completions:
        gathered = [Gathered() for _ in completions]
        async with aclosing(interleaved(completions)) as deltas:
            async for index, delta in deltas:
                gathered[index].add(delta)
        first = completions[0]
        token_bytes = first.token_bytes if asked[0].sampling.logprobs is not None else None
        body = text_completion(_identity(asked[0], first), gathered, token_bytes)
        return WholeAnswer(body, provenance(first) | cache_header([one.usage for one in gathered]))


@asynccontextmanager
async def _stream(
    inference: Inference, asked: Sequence[GenerateRequest], include_usage: bool
) -> AsyncIterator[ChunkStream]:
    async with open_all(inference, asked) as completions:
        first = completions[0]
        chunks = CompletionChunks(
            _identity(asked[0], first),
            len(completions),
            include_usage=include_usage,
            token_bytes=first.token_bytes if asked[0].sampling.logprobs is not None else None,
        )
        async with aclosing(_events(completions, chunks)) as events:
            yield ChunkStream(events, provenance(first))


async def _events(completions: Sequence[Completion], chunks: CompletionChunks) -> AsyncGenerator[bytes]:
    async with aclosing(interleaved(completions)) as deltas:
        async for index, delta in deltas:
            for event in chunks.events(index, delta):
                yield event
