"""What both dialects do with a completion: gather its deltas, and say in headers who answered."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from vmm_server.api.gathered import Gathered
from vmm_server.completion import Completion
from vmm_server.embedding import Encoded
from vmm_server.engine.stream import Delta, Usage
from vmm_server.inference import Inference
from vmm_server.one_shot import Answered
from vmm_server.requests import GenerateRequest


def provenance(answered: Completion | Answered, *others: Completion) -> dict[str, str]:
    """Response headers: the model that answered, by its full name and digest, the runtime and the device it runs on,
    how much of a prompt that was too long it did not see, and how long the request waited for others, the longest of
    several answers. A stream asks once it has begun: until then it may move to another device. Where pictures were
    looked at, also what took how long, as browsers show it (https://www.w3.org/TR/server-timing/).
    """
    headers = {
        "x-vmm-model": answered.model.name,
        "x-vmm-model-digest": answered.model.digest,
        "x-vmm-backend": answered.placement.adapter,
        "x-vmm-device": answered.placement.device,
    }
    if answered.placement.variant:
        headers["x-vmm-variant"] = answered.placement.variant
    if isinstance(answered, Completion | Encoded) and answered.num_dropped_tokens:
        headers["x-vmm-dropped-tokens"] = str(answered.num_dropped_tokens)
    if isinstance(answered, Completion) and answered.num_dropped_messages:
        headers["x-vmm-dropped-messages"] = str(answered.num_dropped_messages)
    waited_s = [each.queued_s for each in (answered, *others)]
    known = [queued_s for queued_s in waited_s if queued_s is not None]
    if len(known) == len(waited_s):
        headers["x-vmm-queue-ms"] = str(round(1000 * max(known)))
    if isinstance(answered, Answered) and (timing := answered.timing) is not None:
        taken = {"decode": timing.decode_s, "queue": timing.queue_s, "model": timing.model_s}
        headers["server-timing"] = ", ".join(f"{name};dur={1000 * spent_s:.2f}" for name, spent_s in taken.items())
    return headers


def cache_header(usages: Sequence[Usage]) -> dict[str, str]:
    """Response header of a whole answer: prompt tokens that came from the prefix cache."""
    return {"x-vmm-cached-tokens": str(sum(usage.num_cached_tokens for usage in usages))}


async def gather(completion: Completion) -> Gathered:
    """Wait for the whole answer."""
    gathered = Gathered()
    async for delta in completion:
        gathered.add(delta)
    return gathered


@asynccontextmanager
async def open_all(inference: Inference, requests: Sequence[GenerateRequest]) -> AsyncIterator[list[Completion]]:
    """Start every request of one model, or none; all are closed on exit.

    They share the first one's model: the others must not wait for it while the first one holds it.
    """
    async with AsyncExitStack() as stack:
        completions: list[Completion] = []
        for request in requests:
            beside = completions[0] if completions else None
            completion = await inference.generate(request, beside=beside)
            completions.append(await stack.enter_async_context(completion))
        yield completions


async def gather_all(completions: Sequence[Completion]) -> list[Gathered]:
    """Wait for the whole answers of all."""
    gathered = [Gathered() for _ in completions]
    async with aclosing(interleaved(completions)) as deltas:
        async for index, delta in deltas:
            gathered[index].add(delta)
    return gathered


async def interleaved(completions: Sequence[Completion]) -> AsyncGenerator[tuple[int, Delta]]:
    """Deltas of several completions as they come, each with the index of its completion."""
    if len(completions) == 1:
        async for delta in completions[0]:
            yield 0, delta
        return
    iterators = [aiter(completion) for completion in completions]
    pending = {asyncio.ensure_future(anext(iterator, None)): index for index, iterator in enumerate(iterators)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = pending.pop(task)
                if (following := task.result()) is None:
                    continue
                pending[asyncio.ensure_future(anext(iterators[index], None))] = index
                yield index, following
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
