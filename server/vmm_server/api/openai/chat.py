"""`POST /v1/chat/completions`."""

from collections.abc import Sequence
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather_all, open_all, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.openai import examples
from vmm_server.api.openai.choices import candidates
from vmm_server.api.openai.convert import chat_request
from vmm_server.api.openai.render_chat import ChatChunks, chat_completion
from vmm_server.api.openai.replies import identity, open_stream
from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.api.streaming import WholeAnswer, json_response, sse_response
from vmm_server.completion import Completion
from vmm_server.inference import Inference
from vmm_server.requests import GenerateRequest
from vmm_server.settings import Settings


class ChatController(Controller):
    """Chat completions."""

    path = "/v1/chat/completions"

    @post(
        status_code=200,
        operation_id="createChatCompletion",
        summary="Answer a conversation",
        opt=described(*examples.CHAT, body=ChatCompletionRequest, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, ChatCompletionRequest)
        asked = candidates(placed(chat_request(wire), request.headers, wire), wire.n or 1)
        if not wire.stream:
            return json_response(lambda: _answer(inference, wire, asked))
        return sse_response(
            lambda: open_stream(inference, asked, lambda completions: _chunks(wire, asked, completions)),
            openai_body,
            drain_s=settings.shutdown_timeout_s,
        )


async def _answer(inference: Inference, wire: ChatCompletionRequest, asked: Sequence[GenerateRequest]) -> WholeAnswer:
    async with open_all(inference, asked) as completions:
        gathered = await gather_all(completions)
        first = completions[0]
        body = chat_completion(
            identity("chatcmpl", asked[0], first),
            gathered,
            first.token_bytes if wire.logprobs else None,
            functions=bool(wire.functions),
        )
        return WholeAnswer(body, provenance(*completions) | cache_header([gathered[0].usage]))


def _chunks(
    wire: ChatCompletionRequest, asked: Sequence[GenerateRequest], completions: Sequence[Completion]
) -> ChatChunks:
    first = completions[0]
    return ChatChunks(
        identity("chatcmpl", asked[0], first),
        len(completions),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        token_bytes=first.token_bytes if wire.logprobs else None,
        functions=bool(wire.functions),
    )
