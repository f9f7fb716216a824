"""`POST /v1/completions`: text goes on where the prompt ends."""

from collections.abc import Sequence
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather_all, open_all, provenance
from vmm_server.api.body import read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.openai import examples
from vmm_server.api.openai.choices import best
from vmm_server.api.openai.convert import completion_requests
from vmm_server.api.openai.render import usage_fields
from vmm_server.api.openai.render_completion import CompletionChunks, Echo, text_completion
from vmm_server.api.openai.replies import identity, open_stream
from vmm_server.api.openai.wire import CompletionRequest
from vmm_server.api.openapi import described
from vmm_server.api.placement import placed
from vmm_server.api.streaming import WholeAnswer, json_response, sse_response
from vmm_server.completion import Completion
from vmm_server.inference import Inference
from vmm_server.requests import GenerateRequest, TextPrompt
from vmm_server.settings import Settings


class CompletionController(Controller):
    """Text completions: `n` choices a prompt."""

    path = "/v1/completions"

    @post(
        status_code=200,
        operation_id="createCompletion",
        summary="Continue a text",
        opt=described(*examples.COMPLETION, body=CompletionRequest, runs=True),
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        inference: NamedDependency[Inference],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """JSON, or server-sent events with `"stream": true`."""
        wire = await read_body(request, CompletionRequest)
        asked = [placed(each, request.headers, wire) for each in completion_requests(wire)]
        if not wire.stream:
            return json_response(lambda: _answer(inference, wire, asked))
        return sse_response(
            lambda: open_stream(inference, asked, lambda completions: _chunks(wire, asked, completions)),
            openai_body,
            drain_s=settings.shutdown_timeout_s,
        )


async def _answer(inference: Inference, wire: CompletionRequest, asked: Sequence[GenerateRequest]) -> WholeAnswer:
    n, best_of = wire.n or 1, wire.best_of or wire.n or 1
    async with open_all(inference, asked) as completions:
        gathered = await gather_all(completions)
        usages = [one.usage for one in gathered]
        groups = [gathered[start : start + best_of] for start in range(0, len(gathered), best_of)]
        choices = [one for group in groups for one in (best(group, n) if wire.best_of else group)]
        echoes = [_echo(wire, *pair) for pair in zip(asked, completions, strict=True)]
        shown = [one for start in range(0, len(echoes), best_of) for one in echoes[start : start + n]]
        first = completions[0]
        token_bytes = first.token_bytes if wire.logprobs is not None else None
        usage = usage_fields(usages, best_of)
        body = text_completion(identity("cmpl", asked[0], first), choices, token_bytes, usage, shown)
        return WholeAnswer(body, provenance(*completions) | cache_header(usages[::best_of]))


def _chunks(
    wire: CompletionRequest, asked: Sequence[GenerateRequest], completions: Sequence[Completion]
) -> CompletionChunks:
    first = completions[0]
    return CompletionChunks(
        identity("cmpl", asked[0], first),
        [_echo(wire, *pair) for pair in zip(asked, completions, strict=True)],
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        token_bytes=first.token_bytes if wire.logprobs is not None else None,
        per_prompt=wire.n or 1,
    )


def _echo(wire: CompletionRequest, asked: GenerateRequest, completion: Completion) -> Echo | None:
    """The prompt as the client wrote it; the text of its tokens if it came as tokens."""
    if not wire.echo or not isinstance(asked.prompt, TextPrompt):
        return None
    text = asked.prompt.text
    if not isinstance(text, str):
        text = b"".join(map(completion.token_bytes, text)).decode(errors="replace")
    return Echo(text, completion.prompt_tokens)
