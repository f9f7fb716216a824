"""One load, three doors: streams started together, each answering a prompt of its own with as many tokens."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import httpx
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
        self._request, self._started, self._head, self._last = request, started, b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._started
        if not self.arrivals and b"200 OK" not in self._head + data[:64]:
            self._head += data
            return
        self._head = b"200 OK"
        self._last = data
        # "text" is in the chunks of both servers that carry a token, not in the usage chunk or [DONE]
        self.arrivals += [now] * data.count(b'"finish_reason":null')
        if not self.arrivals and b'"finish_reason":"length"' in data:
            self.arrivals.append(now)  # all tokens in one chunk, as this program was slow

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():  # whoever asked has left
            return
        if error is not None or not self.arrivals:
            told = (self._last or self._head)[:500].decode(errors="replace")
            self.done.set_exception(error or RuntimeError(f"no stream: {told}"))
        else:
            self.done.set_result(self.arrivals)


async def stream_http(port: int, body: Mapping[str, object], started: float, key: str | None = None) -> list[float]:
    """When the tokens of one `/v1/completions` over loopback came, in seconds after `started`; greedy, streamed."""
    content = json.dumps({**body, "temperature": 0, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    )
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    loop = asyncio.get_running_loop()
    request = f"{head}\r\n".encode() + content
    transport, protocol = await loop.create_connection(lambda: _EventCounter(request, started), "127.0.0.1", port)
    try:
        return await protocol.done
    finally:
        transport.close()


async def run_http(
    port: int, load: Load, prompts: list[list[int]], model: str, form: Mapping[str, object] | None = None
) -> Measured:
    """One connection a stream; with a form, if it never ends."""
    body = {"model": model, "max_tokens": load.new_tokens, **(form or {"ignore_eos": True})}
    return await _together(load, [partial(stream_http, port, {**body, "prompt": prompt}) for prompt in prompts])


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got. `total_s` is from its start to the last byte, `first_s` to the first text."""

    text: str
    num_tokens: int
    first_s: float
    total_s: float
    num_drafted: int
    num_accepted: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens generated, drafted and accepted."""
        return self.num_tokens, self.num_drafted, self.num_accepted

    @property
    def tokens_per_s(self) -> float:
        """Of the whole request, the prompt's time included."""
        return self.num_tokens / self.total_s

    @property
    def decoded_per_s(self) -> float:
        """After the first text."""
        return (self.num_tokens - 1) / (self.total_s - self.first_s)


def ask(port: int, model: str, prompt: list[int], new_tokens: int) -> Answer:
    """One greedy `/v1/completions` over loopback, streamed, with what the server says of its speculation."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    text, first_s = "", 0.0
    before = count_drafts(port)
    started = time.perf_counter()
    url = f"http://127.0.0.1:{port}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=600, trust_env=False) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            text += "".join(choice["text"] for choice in chunk["choices"])
            first_s = first_s or (time.perf_counter() - started if text else 0.0)
            usage = chunk.get("usage") or usage
            timings = chunk.get("timings") or timings  # llama-server's own
    total_s = time.perf_counter() - started
    drafts = [one - other for one, other in zip(count_drafts(port), before, strict=True)]
    drafted, accepted = timings.get("draft_n", drafts[0]), timings.get("draft_n_accepted", drafts[1])
    return Answer(text, usage["completion_tokens"], first_s, total_s, drafted, accepted)


def count_drafts(port: int) -> list[int]:
    """Tokens that a VMM has drafted and accepted since its start; 0 of any other server."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    names = ("vmm_draft_tokens_total", "vmm_accepted_tokens_total")
    found = [re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M) for name in names]
    return [int(sum(map(float, values))) for values in found]
