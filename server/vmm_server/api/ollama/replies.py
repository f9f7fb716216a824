"""What `/api/generate` and `/api/chat` do once they know what was asked: stream it, answer it, only show its prompt,
load or unload.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather, provenance
from vmm_server.api.errors import ollama_body
from vmm_server.api.ollama.options import ignored_fields
from vmm_server.api.ollama.render import Lines, Piece, Reply
from vmm_server.api.ollama.wire import GenerationFields
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.completion import Completion
from vmm_server.errors import UnsupportedCapability
from vmm_server.inference import Inference
from vmm_server.models.store import InstalledModel
from vmm_server.requests import ChatPrompt, GenerateRequest, KeepAlive, TextPrompt, Wanted

JSON = "application/json; charset=utf-8"
"""As Ollama writes it."""

MakeReply = Callable[[Completion], Reply]


def answer_or_stream(
    inference: Inference, body: GenerationFields, asked: GenerateRequest, piece: Piece, *, with_context: bool = False
) -> ASGIApp:
    """NDJSON unless the body says `"stream": false`."""
    ignored = ignored_fields(body)
    headers = {"x-vmm-ignored": ", ".join(ignored)} if ignored else {}

    def reply(completion: Completion) -> Reply:
        return Reply(
            model=body.model,
            piece=piece,
            now=utc_now,
            load_s=completion.load_s,
            prepare_s=completion.prepare_s,
            prompt_tokens=completion.prompt_tokens if with_context else None,
            token_bytes=completion.token_bytes if asked.sampling.logprobs is not None else None,
        )

    if body.stream is False:
        return json_response(lambda: _answer(inference, asked, reply, headers), media_type=JSON)
    return ndjson_response(lambda: _stream(inference, asked, reply, headers), ollama_body)


def show_prompt(inference: Inference, body: GenerationFields, asked: GenerateRequest, piece: Piece) -> ASGIApp:
    """`_debug_render_only`: one object with the prompt as the model would see it; nothing is generated."""
    reply = Reply(model=body.model, piece=piece, now=utc_now, load_s=0.0)

    async def work() -> WholeAnswer:
        return WholeAnswer(reply.prompt(await _written(inference, asked)))

    return json_response(work, media_type=JSON)


async def _written(inference: Inference, asked: GenerateRequest) -> str:
    prompted, prompt = await inference.count_tokens(asked), asked.prompt
    if isinstance(prompt, TextPrompt) and isinstance(prompt.text, str):
        return prompt.text
    if isinstance(prompt, ChatPrompt) and not prompt.context:
        return prompted.text or ""
    return (await inference.tokenizer(asked.model, asked.wanted)).decode(prompted.tokens)


def check_task(model: InstalledModel, body: GenerationFields, task: str) -> None:
    """Raise `UnsupportedCapability` for a model that this route has nothing to ask."""
    if not model.generates:
        raise UnsupportedCapability(body.model, task)


def load_or_unload(
    inference: Inference, model: InstalledModel, body: GenerationFields, wanted: Wanted, task: str, piece: Piece
) -> ASGIApp:
    """An empty prompt: one object, never NDJSON. `keep_alive: 0` unloads, whatever the model can do."""
    reply = Reply(model=body.model, piece=piece, now=utc_now, load_s=0.0)
    unloads = body.keep_alive == KeepAlive(0.0)
    if not unloads:
        check_task(model, body, task)
        if body.think and "thinking" not in model.capabilities:
            raise UnsupportedCapability(body.model, "thinking", param="think")

    async def work() -> WholeAnswer:
        if unloads:
            await inference.unload(body.model, wanted)
            return WholeAnswer(reply.idle("unload"))
        await inference.load(body.model, body.keep_alive, wanted)
        return WholeAnswer(reply.idle("load"))

    return json_response(work, media_type=JSON)


def utc_now() -> datetime:
    """The clock of `created_at`."""
    return datetime.now(UTC)


async def _answer(
    inference: Inference, asked: GenerateRequest, reply: MakeReply, headers: dict[str, str]
) -> WholeAnswer:
    async with await inference.generate(asked) as completion:
        gathered = await gather(completion)
        told = provenance(completion) | cache_header([gathered.usage]) | headers
        return WholeAnswer(reply(completion).whole(gathered), told)


@asynccontextmanager
async def _stream(
    inference: Inference, asked: GenerateRequest, reply: MakeReply, headers: dict[str, str]
) -> AsyncIterator[ChunkStream]:
    async with await inference.generate(asked) as completion, aclosing(_lines(completion, reply)) as lines:
        yield ChunkStream(lines, lambda: provenance(completion) | headers)


async def _lines(completion: Completion, reply: MakeReply) -> AsyncGenerator[bytes]:
    lines = Lines(reply(completion))
    async for delta in completion:
        for line in lines.lines(delta):
            yield line
