"""One load, three doors: streams started together, each answering a prompt of its own with as many tokens."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.types import Batch, Chunk, SamplingParams
from vmm_server.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Load:
    """`num_streams` prompts of `prompt_tokens`, each answered with `new_tokens`."""

    num_streams: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, rng: np.random.Generator) -> list[list[int]]:
        """Random token ids, different for every stream and call, so that no cache helps."""
        prompts: list[list[int]] = rng.integers(100, 40_000, (self.num_streams, self.prompt_tokens)).tolist()
        return prompts


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load took. `arrivals[i]` are the seconds after the start at which stream i's tokens came."""

    load: Load
    seconds: float
    arrivals: tuple[tuple[float, ...], ...]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all streams over the whole run, prompts included in the time."""
        return self.load.num_streams * self.load.new_tokens / self.seconds

    def first_token_s(self) -> list[float]:
        """Time to the first token of each stream."""
        return [stream[0] for stream in self.arrivals]

    def between_tokens_s(self) -> list[float]:
        """Gaps between the tokens of each stream."""
        return [after - before for stream in self.arrivals for before, after in pairwise(stream)]


def run_bare(runner: CausalLMRunner, load: Load, prompts: list[list[int]], budget: int) -> Measured:
    """The runner alone, greedy: prompts in chunks of `budget` tokens a step, then one token each."""
    blocks_each = -(-(load.prompt_tokens + load.new_tokens) // runner.block_size)
    tables = [range(index * blocks_each, (index + 1) * blocks_each) for index in range(load.num_streams)]
    arrivals: list[list[float]] = [[] for _ in prompts]
    computed = [0] * len(prompts)
    sequences = [list(prompt) for prompt in prompts]
    started = time.perf_counter()
    while any(len(stream) < load.new_tokens for stream in arrivals):
        chunks, sampled, left = [], [], budget
        for index, tokens in enumerate(sequences):
            count = min(len(tokens) - computed[index], left)
            if len(arrivals[index]) == load.new_tokens or count == 0:
                continue
            left -= count
            end = computed[index] + count
            wanted = int(end == len(tokens))
            chunks.append(Chunk(tokens[computed[index] : end], computed[index], tables[index], wanted))
            computed[index] = end
            sampled += [index] * wanted
        logits = runner.execute(Batch(tuple(chunks)))
        now = time.perf_counter() - started
        for index, token in zip(sampled, logits.argmax(-1).tolist() if sampled else (), strict=True):
            sequences[index].append(token)
            arrivals[index].append(now)
    return Measured(load, time.perf_counter() - started, tuple(map(tuple, arrivals)))


async def _together(load: Load, streams: list[Callable[[float], Awaitable[list[float]]]]) -> Measured:
    started = time.perf_counter()
    arrivals = await asyncio.gather(*(stream(started) for stream in streams))
    return Measured(load, time.perf_counter() - started, tuple(map(tuple, arrivals)))


async def run_engine(engine: Engine, load: Load, prompts: list[list[int]]) -> Measured:
    """The engine in this process, no HTTP, greedy."""
    sampling = SamplingParams(temperature=0.0, max_tokens=load.new_tokens, ignore_eos=True)

    def stream(prompt: list[int]) -> Callable[[float], Awaitable[list[float]]]:
        async def read(started: float) -> list[float]:
            arrivals: list[float] = []
            generation = engine.submit(prompt, sampling)
            async for delta in generation:
                arrivals += [time.perf_counter() - started] * len(delta.token_ids)
            await generation.aclose()
            return arrivals

        return read

    return await _together(load, [stream(prompt) for prompt in prompts])


class _EventCounter(asyncio.Protocol):
    """Reads an HTTP response and notes when each SSE event with a token came: as light as a client can be."""

    def __init__(self, request: bytes, started: float) -> None:
        self.arrivals: list[float] = []
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._request, self._started, self._head = request, started, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._started
        if not self.arrivals and b"200 OK" not in self._head + data[:64]:
            self._head += data
            return
        self._head = b"200 OK"
        # "text" is in the chunks of both servers that carry a token, not in the usage chunk or [DONE]
        self.arrivals += [now] * data.count(b'"finish_reason":null')

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or not self.arrivals:
            self.done.set_exception(error or RuntimeError(f"no stream: {self._head[:500].decode(errors='replace')}"))
        else:
            self.done.set_result(self.arrivals)


async def run_http(
    port: int, load: Load, prompts: list[list[int]], model: str, form: Mapping[str, object] | None = None
) -> Measured:
    """`/v1/completions` over loopback, one connection a stream, greedy, streamed; with a form, if it never ends."""

    def stream(prompt: list[int]) -> Callable[[float], Awaitable[list[float]]]:
        body = json.dumps(
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": load.new_tokens,
                "temperature": 0,
                "stream": True,
                **(form or {"ignore_eos": True}),
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )

        async def read(started: float) -> list[float]:
            loop = asyncio.get_running_loop()
            _, protocol = await loop.create_connection(
                lambda: _EventCounter(head.encode() + body, started), "127.0.0.1", port
            )
            return await protocol.done

        return read

    return await _together(load, [stream(prompt) for prompt in prompts])
