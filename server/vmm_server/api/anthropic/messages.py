"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from sse_starlette import ServerSentEvent

from vmm_server.api.answers import cache_header, provenance
from vmm_server.api.anthropic import examples
from vmm_server.api.anthropic.convert import message_request, prompt_request, shows_thinking
from vmm_server.api.anthropic.render import Identity, MessageEvents, message
from vmm_server.api.anthropic.wire import MessagesBody, PromptFields
from vmm_server.api.body import read_body
from vmm_server.api.errors import anthropic_body
from vmm_server.api.framing import named_event
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.completion import Completion
from vmm_server.inference import Inference
from vmm_server.requests import GenerateRequest
from vmm_server.settings import Settings

PING = ServerSentEvent('{"type": "ping"}', event="ping", sep="\n")


class MessagesController(Controller):
    """Messages."""

    path = "/v1/messages"

    @post(
        status_code=200,
        operation_id="createMessage",
        summary="Answer a conversation",
        opt=described(*examples.CREATE, body=MessagesBody, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, MessagesBody)
        asked = placed(message_request(wire), request.headers, wire)
        if not wire.stream:
            return json_response(lambda: _answer(inference, wire, asked))
        return sse_response(
            lambda: _stream(inference, wire, asked),
            anthropic_body,
            drain_s=settings.shutdown_timeout_s,
            frame=named_event,
            ping=PING,
        )

    @post(
        "/count_tokens",
        status_code=200,
        operation_id="countMessageTokens",
        summary="Count a prompt's tokens",
        opt=described(*examples.COUNT, body=PromptFields),
    )
    async def count_tokens(
        self, request: Request[Any, Any, Any], inference: NamedDependency[Inference]
    ) -> dict[str, int]:
        """Messages, system prompt and tools as the model's template writes them; nothing is generated."""
        wire = await read_body(request, PromptFields)
        prompted = await inference.count_tokens(placed(prompt_request(wire), request.headers, wire))
        return {"input_tokens": len(prompted.tokens)}


def _identity(wire: MessagesBody, completion: Completion) -> Identity:
    return Identity(
        id=f"msg_{secrets.token_hex(12)}",
        model=wire.model,
        num_prompt_tokens=len(completion.prompt_tokens),
        max_tokens=wire.max_tokens,
        shows_thinking=shows_thinking(wire.thinking),
    )


async def _answer(inference: Inference, wire: MessagesBody, asked: GenerateRequest) -> WholeAnswer:
    async with await inference.generate(asked) as completion:
        deltas = [delta async for delta in completion]
        body = message(_identity(wire, completion), deltas)
        usages = [delta.usage for delta in deltas[-1:] if delta.usage is not None]
        return WholeAnswer(body, provenance(completion) | cache_header(usages))


@asynccontextmanager
async def _stream(inference: Inference, wire: MessagesBody, asked: GenerateRequest) -> AsyncIterator[ChunkStream]:
    async with await inference.generate(asked) as completion:
        events = MessageEvents(_identity(wire, completion))
        async with aclosing(_events(completion, events)) as chunks:
            yield ChunkStream(chunks, lambda: provenance(completion))


async def _events(completion: Completion, events: MessageEvents) -> AsyncGenerator[bytes]:
    async for delta in completion:
        for event in events.events(delta):
            yield event
