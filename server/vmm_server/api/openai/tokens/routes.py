"""The routes about tokens. Nothing is generated; a cold model is loaded."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler

from vmm_server.api.body import read_body
from vmm_server.api.openai.convert import chat_request
from vmm_server.api.openai.tokens import examples
from vmm_server.api.openai.tokens.wire import (
    ApplyTemplateBody,
    DetokenizeBody,
    TokenizeBody,
    adds_special_tokens,
    chat_of,
    check_ending,
    check_tokens,
    piece,
    texts_of,
)
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed, wanted_of
from vmm_server.errors import InvalidRequest
from vmm_server.inference import Inference
from vmm_server.models.registry import Registry
from vmm_server.settings import Settings

AnyRequest = Request[Any, Any, Any]
Shown = dict[str, Any]


async def tokenize(
    request: AnyRequest,
    inference: NamedDependency[Inference],
    registry: NamedDependency[Registry],
    settings: NamedDependency[Settings],
) -> Response[bytes]:
    """Tokens of a text, of several, or of a conversation as the model's template writes it."""
    wire = await read_body(request, TokenizeBody)
    texts = texts_of(wire)
    model = _model_name(wire.model, registry, settings)
    words = await inference.tokenizer(model, wanted_of(request.headers, wire))
    prompt: Sequence[int] = ()
    if texts is None:
        asked = placed(chat_request(chat_of(wire, model)), request.headers, wire)
        prompt = (await inference.count_tokens(asked)).tokens

    def answer() -> bytes:
        """For a thread: millions of tokens take seconds."""
        adds = adds_special_tokens(wire)
        if isinstance(texts, list):
            each = [_shown(wire, words.encode(text, adds), words.bytes) for text in texts]
            shown: Shown = {name: [one[name] for one in each] for name in (each[0] if each else ("tokens", "count"))}
        else:
            shown = _shown(wire, prompt if texts is None else words.encode(texts, adds), words.bytes)
        return msgspec.json.encode(shown | {"max_model_len": words.context_length})

    return Response(await asyncio.to_thread(answer), media_type=MediaType.JSON)


async def detokenize(
    request: AnyRequest,
    inference: NamedDependency[Inference],
    registry: NamedDependency[Registry],
    settings: NamedDependency[Settings],
) -> dict[str, str]:
    """The text of tokens, special ones included, under the name that each server's clients look for."""
    wire = await read_body(request, DetokenizeBody)
    check_tokens(wire)
    model = _model_name(wire.model, registry, settings)
    words = await inference.tokenizer(model, wanted_of(request.headers, wire))
    text = await asyncio.to_thread(words.decode, wire.tokens)
    return dict.fromkeys(("content", "prompt", "text"), text)


async def apply_template(
    request: AnyRequest,
    inference: NamedDependency[Inference],
    registry: NamedDependency[Registry],
    settings: NamedDependency[Settings],
) -> dict[str, str]:
    """The prompt that the model's chat template makes of a conversation."""
    wire = await read_body(request, ApplyTemplateBody)
    check_ending(wire, wire.messages)
    model = _model_name(wire.model, registry, settings)
    asked = placed(chat_request(wire.model_copy(update={"model": model})), request.headers, wire)
    prompted = await inference.count_tokens(asked)
    return {"prompt": prompted.text or ""}


def _routes(prefix: str) -> list[HTTPRouteHandler]:
    version = prefix.removeprefix("/").capitalize()

    def route(path: str, handler: Callable[..., Any], operation_id: str, summary: str, **shown: Any) -> Any:
        return post(
            f"{prefix}/{path}",
            status_code=200,
            operation_id=f"{operation_id}{version}",
            summary=summary,
            opt=described(*shown["examples"], body=shown["body"]),
        )(handler)

    return [
        route("tokenize", tokenize, "tokenize", "Text to tokens", examples=examples.TOKENIZE, body=TokenizeBody),
        route(
            "detokenize", detokenize, "detokenize", "Tokens to text", examples=examples.DETOKENIZE, body=DetokenizeBody
        ),
        route(
            "apply-template",
            apply_template,
            "applyTemplate",
            "A conversation's prompt",
            examples=examples.APPLY_TEMPLATE,
            body=ApplyTemplateBody,
        ),
    ]


TOKEN_ROUTES = [*_routes(""), *_routes("/v1")]
"""Each under the path that llama-server has and under the one that OVMS and LocalAI have."""


def _model_name(asked: str | None, registry: Registry, settings: Settings) -> str:
    """The model asked for, else the default, else the only one: llama-server's and vLLM's clients name none."""
    if asked:
        return asked
    if settings.default_model:
        return settings.default_model
    installed = registry.installed()
    if len(installed) != 1:
        raise InvalidRequest(
            f"model: field required, since {len(installed)} models are here and none is the default", param="model"
        )
    return installed[0].name


def _shown(wire: TokenizeBody, ids: Sequence[int], token_bytes: Callable[[int], bytes]) -> Shown:
    """What is told of one text's tokens."""
    tokens = [piece(token_id, token_bytes) for token_id in ids] if wire.with_pieces else list(ids)
    shown: Shown = {"tokens": tokens, "count": len(ids)}
    if wire.return_token_strs:
        shown["token_strs"] = [token_bytes(token_id).decode(errors="replace") for token_id in ids]
    return shown
