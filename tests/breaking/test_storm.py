"""Clients that leave, all at once and at any moment: nothing of them is left."""

import asyncio
import json
import random
from contextlib import suppress

import httpx
from bench.traffic import cut_short, fill_pool
from tests.breaking.conftest import Serve
from websockets.asyncio.client import connect

NUM_STREAMS = 500
NUM_SOCKETS = 40
LONGEST_S = 2.0
USER = [{"role": "user", "content": "a long story " * 40}]
REQUESTS = [
    ("/v1/chat/completions", {"messages": USER, "stream": True}),
    ("/v1/chat/completions", {"messages": USER, "stream": False}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4000, "stream": True}),
    ("/v1/messages", {"messages": USER, "max_tokens": 500, "stream": True}),
    ("/v1/responses", {"input": "a long story " * 40, "stream": True}),
    ("/api/chat", {"messages": USER}),
    ("/api/generate", {"prompt": "x", "raw": True}),
]
"""Some are over soon, some go on for ever."""


async def cut_socket(port: int, chance: random.Random) -> None:
    """Three streams on one socket, which is dropped."""
    with suppress(TimeoutError):
        async with connect(f"ws://127.0.0.1:{port}/v1/stream", proxy=None, open_timeout=60) as socket:
            try:
                for number in range(3):
                    body = {"model": "echo", "prompt": "x", "stream": True}
                    await socket.send(
                        json.dumps(
                            {"id": str(number), "endpoint": "/v1/completions", "body": body | {"max_tokens": 4000}}
                        )
                    )
                async with asyncio.timeout(chance.uniform(0, LONGEST_S)):
                    async for _ in socket:
                        pass
            finally:
                socket.transport.abort()


async def storm(port: int, num_streams: int, seed: int) -> None:
    chance = random.Random(seed)
    streams = []
    for index in range(num_streams):
        path, body = REQUESTS[index % len(REQUESTS)]
        content = json.dumps({"model": "echo"} | body).encode()
        streams.append(cut_short(port, path, content, random.Random(chance.random()), patience_s=LONGEST_S))
    sockets = [cut_socket(port, random.Random(chance.random())) for _ in range(NUM_SOCKETS)]
    await asyncio.gather(*streams, *sockets)


async def fill(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        await fill_pool(client, "echo")


def test_nothing_is_left_of_500_streams_that_were_cut(serve: Serve) -> None:
    running = serve(max_queue="1000")
    asyncio.run(storm(running.port, 100, 1))
    asyncio.run(fill(running.port))  # the threads of all pools are there from now on
    running.ask()
    before = running.settled(lambda vitals: not vitals.blocks_used)
    asyncio.run(storm(running.port, NUM_STREAMS, 2))
    running.ask()
    after = running.settled(lambda vitals: not vitals.blocks_used and vitals.open_fds <= before.open_fds)
    assert (after.running, after.waiting, after.active, after.blocks_used) == (0, 0, 0, 0)
    assert after.open_fds <= before.open_fds
    assert after.threads <= before.threads
    assert after.tasks <= before.tasks
    assert not running.errors()
