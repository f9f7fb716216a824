"""`POST /api/generate`."""

from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.body import read_body
from vmm_server.api.ollama import examples
from vmm_server.api.ollama.convert import check_generate_model, generate_request
from vmm_server.api.ollama.render import generate_piece
from vmm_server.api.ollama.replies import answer_or_stream, check_task, load_or_unload, show_prompt
from vmm_server.api.ollama.wire import GenerateBody
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.inference import Inference
from vmm_server.models.registry import Registry


class GenerateController(Controller):
    """One prompt, one answer."""

    path = "/api/generate"

    @post(
        status_code=200,
        operation_id="generate",
        summary="Answer a prompt",
        opt=described(*examples.GENERATE, body=GenerateBody, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        registry: NamedDependency[Registry],
    ) -> ASGIApp:
        """NDJSON, or one object with `"stream": false`. An empty prompt loads the model."""
        body = await read_body(request, GenerateBody)
        check_generate_model(body)
        model = registry.resolve(body.model)
        asked = placed(generate_request(body, thinks="thinking" in model.capabilities), request.headers, body)
        if not body.prompt and not body.suffix:
            return load_or_unload(inference, model, body, asked.wanted, "generate", generate_piece)
        check_task(model, body, "generate")
        if body.debug_render_only:
            return show_prompt(inference, body, asked, generate_piece)
        return answer_or_stream(inference, body, asked, generate_piece, with_context=not body.raw)
