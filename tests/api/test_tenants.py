"""Tenants and deadlines over HTTP: what keys' weights and priorities do, and what ends when its time is over."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import EchoLoader, LiveServer, StartServer
from tests.conftest import MakeSettings

from vmm_adapters.echo import Gate
from vmm_server.app import create_app
from vmm_server.callers import BATCH_PRIORITY
from vmm_server.engine.engine import EngineOptions
from vmm_server.keys import KEYS_FILE, KeyRing
from vmm_server.models.store import InstalledModel, Store

WEIGHTS = {"one": 1.0, "two": 2.0, "three": 3.0}


def secrets_in(home: Path) -> dict[str, str]:
    """A key for each tenant, and one for work that nobody waits for."""
    keys = KeyRing(home / KEYS_FILE)
    secrets = {name: keys.create(name, weight=weight)[1] for name, weight in WEIGHTS.items()}
    return secrets | {"batch": keys.create("batch", priority=BATCH_PRIORITY)[1]}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def saturate(
    server: LiveServer, model: str, secrets: dict[str, str], num_tokens: int, lengths: Sequence[int]
) -> dict[str, float]:
    """What three tenants got of so many tokens, over what their weights say; each has as many requests as `lengths`."""
    got: Counter[str] = Counter()
    numbers = count()
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as client:

        async def ask(name: str, length: int) -> None:
            while got.total() < num_tokens:
                prompt = f"{next(numbers)} bottles of beer on the wall"
                body = {"model": model, "prompt": prompt, "max_tokens": length, "ignore_eos": True}
                reply = await client.post("/v1/completions", json=body, headers=bearer(secrets[name]))
                if got.total() < num_tokens:
                    got[name] += reply.json()["usage"]["completion_tokens"]

        await asyncio.gather(*(ask(name, length) for name in WEIGHTS for length in lengths))
    return {name: got[name] / got.total() / (weight / sum(WEIGHTS.values())) for name, weight in WEIGHTS.items()}


@pytest.fixture
def real_server(smollm2: InstalledModel, settings_with_kernels: MakeSettings) -> Iterator[LiveServer]:
    settings = settings_with_kernels(calibrate="off", max_sequences=6)
    Store(settings.store_dir).install(replace(smollm2, aliases=()))
    server = LiveServer(create_app(settings), EchoLoader())
    server.start()
    yield server
    server.stop()


@pytest.mark.runtime
def test_shares_of_keys_are_as_their_weights_with_a_real_model(tmp_path: Path, request: Any) -> None:
    secrets = secrets_in(tmp_path / "home")
    server: LiveServer = request.getfixturevalue("real_server")
    shares = asyncio.run(saturate(server, "smollm2:135m", secrets, 1500, [8] * 12))
    assert all(0.9 < share < 1.1 for share in shares.values()), shares


def test_an_urgent_request_takes_the_place_of_one_that_nobody_waits_for(
    start_server: StartServer, tmp_path: Path, gate: Gate
) -> None:
    secrets = secrets_in(tmp_path / "home")
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1))

    async def ask(client: httpx.AsyncClient, name: str, max_tokens: int) -> None:
        body = {"model": "echo", "prompt": name, "max_tokens": max_tokens}
        reply = await client.post("/v1/completions", json=body, headers=bearer(secrets[name]))
        assert reply.json()["usage"]["completion_tokens"] == max_tokens

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
            batch = asyncio.create_task(ask(client, "batch", 50))
            await asyncio.to_thread(gate.wait_entered)
            urgent = asyncio.create_task(ask(client, "one", 5))
            while server.stats().num_waiting == 0:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)
            gate.release(20)  # enough for the one, and not for both
            await urgent
            assert not batch.done()
            gate.open()
            await batch

    asyncio.run(scenario())


ASKING = {"model": "echo", "prompt": "a", "max_tokens": 100}


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate"])
@pytest.mark.parametrize("stream", [True, False])
def test_what_has_not_begun_by_its_deadline_is_a_504(
    start_server: StartServer, gate: Gate, path: str, stream: bool
) -> None:
    server = start_server(gate=gate)
    reply = server.client.post(path, json=ASKING | {"stream": stream}, headers={"x-vmm-timeout-ms": "100"})
    assert reply.status_code == 504
    assert "the time for this request is over" in reply.text
    gate.open()
    assert server.client.post("/v1/completions", json=ASKING | {"max_tokens": 1}).status_code == 200
    assert server.stats().num_free_blocks == server.stats().num_blocks


def test_a_load_is_not_waited_for_past_the_deadline(start_server: StartServer) -> None:
    server = start_server(load_gate=Gate())
    reply = server.client.post("/v1/completions", json=ASKING, headers={"x-vmm-timeout-ms": "100"})
    assert reply.status_code == 504


def test_a_stream_ends_at_its_deadline_with_an_error(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate)
    server.client.post("/api/generate", json={"model": "echo"}).raise_for_status()  # loads it
    gate.release(3)
    events = []
    headers = {"x-vmm-timeout-ms": "1500"}
    with server.client.stream("POST", "/v1/completions", json=ASKING | {"stream": True}, headers=headers) as reply:
        assert reply.status_code == 200
        events += [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "bcd"
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    gate.open()


def test_what_is_answered_in_time_is_answered(start_server: StartServer) -> None:
    server = start_server()
    assert server.client.post("/v1/completions", json=ASKING, headers={"x-vmm-timeout-ms": "60000"}).status_code == 200
