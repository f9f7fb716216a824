"""`POST /api/embed` and the older `POST /api/embeddings`: vectors of texts."""

import asyncio
import time
from typing import Any

import msgspec
from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from numpy.typing import NDArray

from vmm_server.api.answers import provenance
from vmm_server.api.body import field_path, read_body
from vmm_server.api.ollama import embed_examples as examples
from vmm_server.api.ollama.options import context_limit
from vmm_server.api.ollama.replies import JSON
from vmm_server.api.ollama.wire import EmbedBody, EmbeddingsBody
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.embedding import Embeddings
from vmm_server.errors import InvalidRequest, ModelNotFound, UnsupportedCapability
from vmm_server.inference import Inference
from vmm_server.models.registry import Registry
from vmm_server.requests import EmbeddingRequest

_MANY_NUMBERS = 20_000
"""From here on encoding takes milliseconds, which the event loop has not."""


class EmbedController(Controller):
    """Embeddings."""

    path = "/api"

    @post(
        "/embed",
        status_code=200,
        operation_id="embed",
        summary="Make vectors of texts",
        opt=described(*examples.EMBED, body=EmbedBody, runs=True),
    )
    async def embed(
        self,
        request: Request[Any, Any, Any],
        embeddings: NamedDependency[Embeddings],
        inference: NamedDependency[Inference],
        registry: NamedDependency[Registry],
    ) -> ASGIApp:
        """One vector an input, each of length 1. No input loads the model."""
        body = await read_body(request, EmbedBody)
        asked = placed(embed_request(body), request.headers, body)
        if not body.model:
            raise ModelNotFound("", hint="name one in model")
        check_embeds(registry, body.model)

        async def answer() -> WholeAnswer:
            if not asked.inputs:
                await inference.load(body.model, body.keep_alive, asked.wanted)
                return WholeAnswer({"model": body.model, "embeddings": []})
            started = time.monotonic()
            embedded = await embeddings.embed(asked)
            fields = {
                "total_duration": int((time.monotonic() - started) * 1e9),
                "load_duration": int(embedded.load_s * 1e9),
                "prompt_eval_count": embedded.num_tokens,
            }
            said: dict[str, object] = {"model": body.model, "embeddings": await _encoded(embedded.vectors)}
            said |= {name: value for name, value in fields.items() if value}
            return WholeAnswer(said, provenance(embedded))

        return json_response(answer, media_type=JSON)

    @post(
        "/embeddings",
        status_code=200,
        operation_id="embeddings",
        summary="Make a vector of one text",
        opt=described(*examples.EMBEDDINGS, body=EmbeddingsBody, runs=True),
    )
    async def legacy(
        self,
        request: Request[Any, Any, Any],
        embeddings: NamedDependency[Embeddings],
        inference: NamedDependency[Inference],
        registry: NamedDependency[Registry],
    ) -> ASGIApp:
        """The older route: the vector is as long as the model makes it. No prompt loads the model."""
        body = await read_body(request, EmbeddingsBody)
        asked = placed(legacy_request(body), request.headers, body)
        if not body.model:
            raise InvalidRequest("model is required", param="model")
        try:
            check_embeds(registry, body.model)
        except ModelNotFound as error:
            message = f'model "{body.model}" not found, try pulling it first'
            raise ModelNotFound(body.model, hint=error.hint, message=message) from error

        async def answer() -> WholeAnswer:
            if not asked.inputs:
                await inference.load(body.model, body.keep_alive, asked.wanted)
                return WholeAnswer({"embedding": []})
            embedded = await embeddings.embed(asked)
            return WholeAnswer({"embedding": embedded.vectors[0].tolist()}, provenance(embedded))

        return json_response(answer, media_type=JSON)


def embed_request(body: EmbedBody) -> EmbeddingRequest:
    """What `/api/embed` asks for; without inputs it loads the model. Raises `InvalidRequest`."""
    given = body.input
    texts = ([given] if given else []) if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("invalid input type", param="input", hint="a string or an array of strings")
    single = isinstance(given, str)
    return EmbeddingRequest(
        model=body.model,
        inputs=tuple(texts),
        params=tuple("input" if single else field_path(("input", index)) for index in range(len(texts))),
        dimensions=body.dimensions or None,
        max_tokens=context_limit(body.options),
        truncate=body.truncate is not False,
        normalize=True,
        keep_alive=body.keep_alive,
    )


def legacy_request(body: EmbeddingsBody) -> EmbeddingRequest:
    """What `/api/embeddings` asks for; without a prompt it loads the model. Raises `InvalidRequest`."""
    return EmbeddingRequest(
        model=body.model,
        inputs=(body.prompt,) if body.prompt else (),
        params=("prompt",) if body.prompt else (),
        max_tokens=context_limit(body.options),
        normalize=False,
        keep_alive=body.keep_alive,
    )


def check_embeds(registry: Registry, name: str) -> None:
    """Raise `ModelNotFound`, or `UnsupportedCapability` for a model that makes no vectors."""
    if "embedding" not in registry.resolve(name).capabilities:
        raise UnsupportedCapability(name, "embedding")


async def _encoded(vectors: NDArray[Any]) -> msgspec.Raw:
    """As JSON. No number passes through Python code."""
    if vectors.size < _MANY_NUMBERS:
        return msgspec.Raw(msgspec.json.encode(vectors.tolist()))
    return msgspec.Raw(await asyncio.to_thread(lambda: msgspec.json.encode(vectors.tolist())))
