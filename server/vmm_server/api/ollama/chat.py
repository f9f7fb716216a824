"""`POST /api/chat`."""

from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.body import read_body
from vmm_server.api.ollama import examples
from vmm_server.api.ollama.convert import chat_request, check_chat_model
from vmm_server.api.ollama.render import chat_piece
from vmm_server.api.ollama.replies import answer_or_stream, check_task, load_or_unload, show_prompt
from vmm_server.api.ollama.wire import ChatBody
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.inference import Inference
from vmm_server.models.registry import Registry


class ChatController(Controller):
    """A conversation."""

    path = "/api/chat"

    @post(
        status_code=200,
        operation_id="chat",
        summary="Answer a conversation",
        opt=described(*examples.CHAT, body=ChatBody, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        registry: NamedDependency[Registry],
    ) -> ASGIApp:
        """NDJSON, or one object with `"stream": false`. No messages load the model."""
        body = await read_body(request, ChatBody)
        check_chat_model(body)
        model = registry.resolve(body.model)
        asked = placed(chat_request(body, thinks="thinking" in model.capabilities), request.headers, body)
        if not body.messages:
            return load_or_unload(inference, model, body, asked.wanted, "chat", chat_piece)
        check_task(model, body, "chat")
        if body.debug_render_only:
            return show_prompt(inference, body, asked, chat_piece)
        return answer_or_stream(inference, body, asked, chat_piece)
