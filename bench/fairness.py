"""`make bench ARGS=fairness`: what tenants get of a server that has too much to do, over HTTP, each with its key.

Shares: three tenants with the weights 1, 2 and 3 always have more requests open than there are places; the tokens that
each gets. Right of way: the time to the first token of one urgent request after the other, on an idle server and beside
a tenant that keeps all places busy at a worse priority.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bench.servers import vmm_server
from bench.streams import stream_http
from bench.tables import console, percentile, show
from vmm_server.callers import BATCH_PRIORITY
from vmm_server.keys import KeyRing
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import Store
from vmm_server.settings import read_settings

WEIGHTS = {"one": 1.0, "two": 2.0, "three": 3.0}
PLACES = 12
"""Of the server that is shared."""
OPEN = 16
"""Requests that a tenant always has open: more than all places."""
BATCH_OPEN = 80
WARM_UP_S = 5.0
NEW_TOKENS = 16
"""Of an urgent answer: so many that its first chunk is not its last."""
WORDS = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "on", "be", "by", "at", "this"]
"""A token each."""
KV_BYTES = 512 << 20


@dataclass(slots=True)
class Client:
    """Sends completions with prompts of its own under one key."""

    port: int
    model: str
    key: str
    answers: list[tuple[float, int]] = field(default_factory=list)
    """When each ended, on `time.perf_counter`'s clock, and its tokens: chunks may hold several."""

    def num_tokens(self, began: float, ended: float) -> int:
        """Of answers that ended in this time."""
        return sum(tokens for at, tokens in self.answers if began < at <= ended)

    async def ask(self, rng: np.random.Generator, prompt_tokens: int, new_tokens: int) -> float:
        """Seconds to the first token."""
        body = {
            "model": self.model,
            "prompt": " ".join(rng.choice(WORDS, prompt_tokens)),
            "max_tokens": new_tokens,
            "ignore_eos": True,
        }
        started = time.perf_counter()
        arrivals = await stream_http(self.port, body, started, self.key)
        self.answers.append((time.perf_counter(), new_tokens))
        return arrivals[0]

    async def keep_asking(self, seed: int, prompt_tokens: int, new_tokens: int) -> None:
        """One request after the other, until it is cancelled."""
        rng = np.random.default_rng(seed)
        while True:
            await self.ask(rng, prompt_tokens, int(rng.integers(new_tokens // 2, new_tokens * 3 // 2)))


@asynccontextmanager
async def busy(client: Client, num_open: int, prompt_tokens: int, new_tokens: int) -> AsyncIterator[None]:
    """With so many requests of a client always open."""
    tasks = [asyncio.create_task(client.keep_asking(i, prompt_tokens, new_tokens)) for i in range(num_open)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        failed = [
            error for error in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(error, Exception)
        ]
        if failed:
            raise failed[0]


async def shares(clients: dict[str, Client], seconds: float) -> list[list[str]]:
    """A row a tenant: what it got, and what its weight says."""
    async with busy(clients["one"], OPEN, 16, 24):  # has all places when the others come
        await asyncio.sleep(WARM_UP_S)
        async with busy(clients["two"], OPEN, 16, 24), busy(clients["three"], OPEN, 16, 24):
            await asyncio.sleep(WARM_UP_S)
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            ended = time.perf_counter()
    tokens = {name: client.num_tokens(began, ended) for name, client in clients.items()}
    rows = []
    for name, weight in WEIGHTS.items():
        share, due = tokens[name] / sum(tokens.values()), weight / sum(WEIGHTS.values())
        rows.append([name, f"{weight:g}", f"{tokens[name]}", f"{share:.3f}", f"{due:.3f}", f"{share / due:.3f}"])
    return rows


async def first_tokens(client: Client, num_requests: int, prompt_tokens: int, rng: np.random.Generator) -> list[float]:
    """Times to the first token of requests at random moments, one after the other."""
    await client.ask(rng, prompt_tokens, NEW_TOKENS)
    times = []
    for _ in range(num_requests):
        await asyncio.sleep(float(rng.uniform(0.05, 0.25)))
        times.append(await client.ask(rng, prompt_tokens, NEW_TOKENS))
    return times


async def right_of_way(urgent: Client, batch: Client, num_requests: int) -> list[list[str]]:
    """A row a prompt's length: idle, beside the batch tenant, and the ratio."""
    rows = []
    for prompt_tokens in (32, 128, 512):
        rng = np.random.default_rng(prompt_tokens)  # goes on: no prompt comes twice, none is cached
        idle = await first_tokens(urgent, num_requests, prompt_tokens, rng)
        began = time.perf_counter()
        async with busy(batch, BATCH_OPEN, 256, 64):
            await asyncio.sleep(WARM_UP_S)
            loaded = await first_tokens(urgent, num_requests, prompt_tokens, rng)
        ended = time.perf_counter()
        rate = batch.num_tokens(began, ended) / (ended - began)
        ratios = [f"{float(np.percentile(loaded, p) / np.percentile(idle, p)):.2f}" for p in (50, 95)]
        times = [percentile(each, p) for each in (idle, loaded) for p in (50, 95)]
        rows.append([str(prompt_tokens), *times, *ratios, f"{rate:.0f}"])
    return rows


def main(arguments: Sequence[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="bench fairness", description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--seconds", type=float, default=40, help="in which shares are counted")
    parser.add_argument("--requests", type=int, default=60, help="urgent ones, idle and beside others")
    options = parser.parse_args(arguments)
    settings = read_settings()
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(options.model).name
    console.print(f"{model}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(settings.store_dir.resolve())
        keys = KeyRing(home / "keys.toml")
        secrets = {name: keys.create(name, weight=weight)[1] for name, weight in WEIGHTS.items()}
        secrets["batch"] = keys.create("batch", priority=BATCH_PRIORITY)[1]
        start = partial(vmm_server, home, model, KV_BYTES)
        with start(settings={"VMM_MAX_SEQUENCES": str(PLACES)}) as server:
            clients = {name: Client(server.port, model, secrets[name]) for name in WEIGHTS}
            rows = asyncio.run(shares(clients, options.seconds))
        show(f"{OPEN} requests each, {PLACES} places", ["tenant", "weight", "tokens", "share", "due", "ratio"], rows)
        with start() as server:
            urgent, batch = (Client(server.port, model, secrets[name]) for name in ("one", "batch"))
            rows = asyncio.run(right_of_way(urgent, batch, options.requests))
        columns = ["prompt", "idle p50 ms", "p95", "loaded p50 ms", "p95", "ratio p50", "p95", "batch tokens/s"]
        show(f"first token beside {BATCH_OPEN} requests of a batch tenant", columns, rows)
