"""What `/api/generate` and `/api/chat` do once they know what was asked: stream it, answer it, load or unload."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

from litestar.types import ASGIApp

from vmm_server.api.answers import cache_header, gather, provenance
from vmm_server.api.errors import ollama_body
from vmm_server.api.ollama.render import Lines, Piece, Reply
from vmm_server.api.ollama.wire import GenerationFields
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.inference import Completion, Inference
from vmm_server.requests import GenerateRequest, KeepAlive

JSON = "application/json; charset=utf-8"
"""As Ollama writes it."""

MakeReply = Callable[[Completion], Reply]


def answer_or_stream(
    inference: Inference, body: GenerationFields, asked: GenerateRequest, piece: Piece, *, with_context: bool = False
) -> ASGIApp:
    """NDJSON unless the body says `"stream": false`."""

    def reply(completion: Completion) -> Reply:
        return Reply(
            model=body.model,
            piece=piece,
            now=utc_now,
            load_s=completion.load_s,
            prompt_tokens=completion.prompt_tokens if with_context else None,
            token_bytes=completion.token_bytes if asked.sampling.logprobs is not None else None,
        )

    if body.stream is False:
        return json_response(lambda: _answer(inference, asked, reply), media_type=JSON)
    return ndjson_response(lambda: _stream(inference, asked, reply), ollama_body)


def load_or_unload(inference: Inference, body: GenerationFields, piece: Piece) -> ASGIApp:
    """An empty prompt: one object, never NDJSON. `keep_alive: 0` unloads."""
    reply = Reply(model=body.model, piece=piece, now=utc_now, load_s=0.0)

    async def work() -> WholeAnswer:
        if body.keep_alive == KeepAlive(0.0):
            await inference.unload(body.model)
            return WholeAnswer(reply.idle("unload"))
        await inference.load(body.model, body.keep_alive)
        return WholeAnswer(reply.idle("load"))

    return json_response(work, media_type=JSON)


def utc_now() -> datetime:
    """The clock of `created_at`."""
    return datetime.now(UTC)


async def _answer(inference: Inference, asked: GenerateRequest, reply: MakeReply) -> WholeAnswer:
    async with await inference.generate(asked) as completion:
        gathered = await gather(completion)
        return WholeAnswer(reply(completion).whole(gathered), provenance(completion) | cache_header([gathered.usage]))


@asynccontextmanager
async def _stream(inference: Inference, asked: GenerateRequest, reply: MakeReply) -> AsyncIterator[ChunkStream]:
    async with await inference.generate(asked) as completion, aclosing(_lines(completion, reply)) as lines:
        yield ChunkStream(lines, provenance(completion))


async def _lines(completion: Completion, reply: MakeReply) -> AsyncGenerator[bytes]:
    lines = Lines(reply(completion))
    async for delta in completion:
        for line in lines.lines(delta):
            yield line
