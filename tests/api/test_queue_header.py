"""`x-vmm-queue-ms`: how long a request waited for others, on every answer."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.api.conftest import LiveServer, StartServer

from vmm_adapters.echo import Gate
from vmm_adapters.types import SamplingParams
from vmm_server.api.answers import provenance
from vmm_server.engine.engine import EngineOptions
from vmm_server.requests import ChatPrompt, GenerateRequest, Message

HEADER = "x-vmm-queue-ms"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "echo", "prompt": ["Hello", "there"], "max_tokens": 3},
    "/v1/responses": {"model": "echo", "input": "Hello"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/api/chat": CHAT,
    "/api/generate": {"model": "echo", "prompt": "Hello"},
}
ENCODING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "words", "input": "a text"},
    "/v1/rerank": {"model": "words", "query": "a", "documents": ["b", "c"]},
    "/api/embed": {"model": "words", "input": "a text"},
    "/api/embeddings": {"model": "words", "prompt": "a text"},
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", GENERATING)
def test_every_answer_says_it(live_server: LiveServer, path: str, stream: bool) -> None:
    started = time.perf_counter()
    answer = live_server.client.post(path, json={**GENERATING[path], "stream": stream})
    assert 0 <= int(answer.headers[HEADER]) <= 1000 * (time.perf_counter() - started) + 1


@pytest.mark.parametrize("path", ENCODING)
def test_so_do_vectors_and_scores(encoder_server: LiveServer, path: str) -> None:
    started = time.perf_counter()
    answer = encoder_server.client.post(path, json=ENCODING[path])
    assert 0 <= int(answer.headers[HEADER]) <= 1000 * (time.perf_counter() - started) + 1


def test_no_answer_no_wait(live_server: LiveServer) -> None:
    assert HEADER not in live_server.client.post("/api/generate", json={"model": "echo"}).headers


@pytest.mark.parametrize("stream", [True, False])
def test_it_is_the_time_behind_others(start_server: StartServer, gate: Gate, stream: bool) -> None:
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(server.client.post, "/v1/chat/completions", json=CHAT)
        gate.wait_entered()
        num_answers = 1 if stream else 2  # a stream of two may begin while the second one still waits
        asked = {**CHAT, "stream": stream, "n": num_answers}
        second = threads.submit(server.client.post, "/v1/chat/completions", json=asked)
        while server.stats().num_waiting < num_answers:
            pass
        waited_since = time.perf_counter()
        while time.perf_counter() < waited_since + 0.03:
            pass
        gate.open()
        assert int(second.result().headers[HEADER]) >= 30
        assert int(first.result().headers[HEADER]) < int(second.result().headers[HEADER])


def test_a_stream_that_begins_before_it_is_known_does_not_say_it(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1))
    request = GenerateRequest("echo", ChatPrompt((Message("user", "Hello"),)), SamplingParams())

    async def begun() -> list[dict[str, str]]:
        async with await server.parts.inference.generate(request) as first:
            await asyncio.to_thread(gate.wait_entered)
            async with await server.parts.inference.generate(request) as second:
                told = [provenance(first), provenance(second), provenance(first, second)]
                gate.open()
                return told

    first, second, both = server.run(begun())
    assert HEADER in first
    assert HEADER not in second
    assert HEADER not in both
