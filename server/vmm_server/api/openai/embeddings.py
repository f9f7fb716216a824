"""`POST /v1/embeddings`: vectors of texts."""

from typing import Annotated, Any, Literal

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from pydantic import Field

from vmm_server.api.body import Duration, Integer, field_path, read_body
from vmm_server.api.openai.embedding_examples import EMBEDDINGS
from vmm_server.api.openapi import described
from vmm_server.api.placement import PlacementFields, placed
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.api.vectors import EncodingFormat, check_encoding_format, embedding_answer
from vmm_server.embedding import Embeddings
from vmm_server.errors import InvalidRequest
from vmm_server.requests import EmbeddingRequest

MAX_INPUTS = 2048
"""Texts in one request, as OpenAI's limit is."""


class EmbeddingsBody(PlacementFields):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: object = None
    """A string, token ids, or an array of either."""
    encoding_format: EncodingFormat = None
    """`base64` is little-endian float32, which OpenAI's clients ask for."""
    dimensions: Annotated[Integer, Field(ge=1)] | None = None
    """Cut each vector to so many numbers and normalise it again."""
    user: str | None = None
    token_encoding: Literal["cl100k_base", "model"] | None = None
    """What token ids are of; OpenAI's clients mean cl100k_base."""
    truncate: bool | Literal["NONE", "END"] | None = None
    """Cut inputs that are too long at their end; else they are refused."""
    truncate_prompt_tokens: Annotated[Integer, Field(ge=-1)] | None = None
    """Tokens that inputs are cut to; -1 is what the model takes."""
    prompt_name: str | None = None
    """One of the model's prompts."""
    input_type: str | None = None
    """The same: `query` or `document`."""
    keep_alive: Duration = None


class EmbeddingsController(Controller):
    """Embeddings."""

    path = "/v1/embeddings"

    @post(
        status_code=200,
        operation_id="createEmbedding",
        summary="Make vectors of texts",
        opt=described(*EMBEDDINGS, body=EmbeddingsBody, runs=True),
    )
    async def create(self, request: Request[Any, Any, Any], embeddings: NamedDependency[Embeddings]) -> ASGIApp:
        """One vector an input, in the inputs' order."""
        wire = await read_body(request, EmbeddingsBody)
        asked = placed(embedding_request(wire), request.headers, wire)

        async def answer() -> WholeAnswer:
            embedded = await embeddings.embed(asked)
            return await embedding_answer(embedded, asked.model, wire.encoding_format)

        return json_response(answer)


def embedding_request(wire: EmbeddingsBody) -> EmbeddingRequest:
    """What a body asks for. Raises `InvalidRequest` naming the field."""
    check_encoding_format(wire.encoding_format)
    limit = wire.truncate_prompt_tokens
    if limit == 0:
        raise InvalidRequest("truncate_prompt_tokens: must be at least 1, or -1", param="truncate_prompt_tokens")
    if wire.prompt_name is not None and wire.input_type is not None:
        raise InvalidRequest("input_type: send this or prompt_name, not both", param="input_type")
    inputs = _inputs(wire.input)
    single = isinstance(wire.input, str) or _is_token_ids(wire.input)
    return EmbeddingRequest(
        model=wire.model,
        inputs=inputs,
        params=("input",) if single else tuple(field_path(("input", index)) for index in range(len(inputs))),
        token_encoding=wire.token_encoding or "cl100k_base",
        dimensions=wire.dimensions,
        max_tokens=limit if limit is not None and limit > 0 else None,
        truncate=wire.truncate in (True, "END") or limit is not None,
        prompt_name=wire.prompt_name if wire.prompt_name is not None else wire.input_type,
        prompt_param="input_type" if wire.prompt_name is None else "prompt_name",
        keep_alive=wire.keep_alive,
    )


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _inputs(value: object) -> tuple[str | tuple[int, ...], ...]:
    """`input` in its four forms: a string, strings, token ids, arrays of token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise InvalidRequest("input: must be a string, token ids, or an array of either", param="input")
    if not value:
        raise InvalidRequest("input: [] is empty, one text at least is needed", param="input")
    if _is_token_ids(value):
        return (tuple(value),)
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(f"input: {len(value)} inputs, the limit is {MAX_INPUTS}", param="input")
    inputs: list[str | tuple[int, ...]] = []
    for index, one in enumerate(value):
        if isinstance(one, str):
            inputs.append(one)
        elif _is_token_ids(one) or one == []:
            inputs.append(tuple(one))
        else:
            path = field_path(("input", index))
            raise InvalidRequest(f"{path}: must be a string or an array of token ids", param=path)
    return tuple(inputs)
