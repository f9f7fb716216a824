"""What the routes of chat and text completions share: who answers, and a stream of several generations."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from vmm_server.api.answers import interleaved, open_all, provenance
from vmm_server.api.openai.render import Chunks, Identity
from vmm_server.api.streaming import ChunkStream
from vmm_server.completion import Completion
from vmm_server.inference import Inference
from vmm_server.requests import GenerateRequest


def identity(prefix: str, asked: GenerateRequest, completion: Completion) -> Identity:
    """A new answer's id, which begins with `prefix`, and what goes with it."""
    return Identity(
        id=f"{prefix}-{secrets.token_hex(12)}",
        created=int(completion.created.timestamp()),
        model=asked.model,
        system_fingerprint=f"vmm-{completion.model.digest[:12]}",
    )


@asynccontextmanager
async def open_stream(
    inference: Inference, asked: Sequence[GenerateRequest], chunks_of: Callable[[Sequence[Completion]], Chunks]
) -> AsyncIterator[ChunkStream]:
    """Start every generation, and render their deltas as they come."""
    async with (
        open_all(inference, asked) as completions,
        aclosing(_events(completions, chunks_of(completions))) as events,
    ):
        yield ChunkStream(events, lambda: provenance(*completions))


async def _events(completions: Sequence[Completion], chunks: Chunks) -> AsyncGenerator[bytes]:
    async with aclosing(interleaved(completions)) as deltas:
        async for index, delta in deltas:
            for event in chunks.events(index, delta):
                yield event
