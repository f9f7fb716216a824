"""Ollama's own Python client against a live server, every method of it, sync and async."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest

MESSAGES = [{"role": "user", "content": "hello"}]


class AsyncCaller:
    """The async client's methods, each run to its end in one loop."""

    def __init__(self, client: ollama.AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **fields: Any) -> Any:
            answer = await getattr(self._client, name)(*args, **fields)
            return [item async for item in answer] if isinstance(answer, AsyncIterator) else answer

        return lambda *args, **fields: self._runner.run(call(*args, **fields))


Connect = Callable[[Any], Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """A client of either kind for a server."""
    with ExitStack() as stack:
        if request.param == "sync":
            yield lambda server: stack.enter_context(ollama.Client(server.url, trust_env=False))
            return
        runner = stack.enter_context(asyncio.Runner())

        def asynchronous(server: Any) -> AsyncCaller:
            client = ollama.AsyncClient(server.url, trust_env=False)
            stack.callback(lambda: runner.run(client.close()))
            return AsyncCaller(client, runner)

        yield asynchronous


@pytest.fixture
def client(connect: Connect, encoder_server: Any) -> Any:
    """Of a server that is left as it was: `echo` makes text, `words` embeds."""
    return connect(encoder_server)


CARD = """id = "broken:latest"
title = "b"
license = "MIT"
origin = "a test"
family = "llama"
parameter_size = "0"
quantization = "F32"
context_length = 8
[source]
uri = "file:{folder}/broken.gguf"
"""


def joined(pieces: Iterable[str | None]) -> str:
    return "".join(piece or "" for piece in pieces)


def test_generate(client: Any) -> None:
    whole = client.generate("echo", "hello", options={"temperature": 0}, keep_alive="5m")
    assert (whole.response, whole.done, whole.done_reason, whole.prompt_eval_count) == ("hello", True, "stop", 8)
    parts = list(client.generate("echo", "hello", stream=True, options=ollama.Options(temperature=0, num_ctx=64)))
    assert joined(part.response for part in parts) == "hello"
    assert parts[-1].context == whole.context
    assert client.generate("echo", "again", context=whole.context, system="x").response == "again"
    assert client.generate("echo", "ab", raw=True, options={"num_predict": 1}).response == "c"
    assert client.generate("echo", "hi", template="{% for m in messages %}{{ m.content }}{% endfor %}").response
    assert client.generate("echo").done_reason == "load"
    assert client.generate("echo", keep_alive=0).done_reason == "unload"
    scored = client.generate("echo", "hi", logprobs=True, top_logprobs=2)
    assert [(item.token, len(item.top_logprobs)) for item in scored.logprobs] == [("h", 2), ("i", 2)]


def test_chat(client: Any) -> None:
    whole = client.chat("echo", MESSAGES, think=False)
    assert (whole.message.role, whole.message.content, whole.done) == ("assistant", "hello", True)
    parts = list(client.chat("echo", [ollama.Message(role="user", content="hello")], stream=True))
    assert joined(part.message.content for part in parts) == "hello"
    assert (parts[-1].done_reason, parts[-1].eval_count) == (whole.done_reason, whole.eval_count)
    assert client.chat("echo", []).done_reason == "load"
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    formed = client.chat("echo", MESSAGES, format=schema, options={"num_predict": 80})
    assert json.loads(formed.message.content) == {"n": 1}


def test_chat_with_a_python_function_as_a_tool(connect: Connect, clever_server: Any) -> None:
    client = connect(clever_server)

    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    answer = client.chat("handy", [{"role": "user", "content": said}], tools=[weather])
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Oslo"})
    history = [*MESSAGES, answer.message, {"role": "tool", "tool_name": "weather", "content": "snow"}]
    assert client.chat("handy", history, tools=[weather]).done


def test_embeddings(client: Any) -> None:
    many = client.embed("words", ["a b", "c"], truncate=True, dimensions=8, keep_alive=60)
    assert np.array(many.embeddings).shape == (2, 8)
    assert np.linalg.norm(many.embeddings, axis=1) == pytest.approx(np.ones(2), abs=1e-6)
    assert many.prompt_eval_count == 8
    assert len(client.embed("words", "a").embeddings) == 1
    assert len(client.embeddings("words", "a b").embedding) == 32


def test_models_are_listed_and_shown(client: Any) -> None:
    assert {model.model for model in client.list().models} >= {"echo:latest", "words:latest"}
    assert all(model.modified_at.tzinfo for model in client.list().models)
    client.generate("echo", keep_alive="1h")
    (loaded,) = [model for model in client.ps().models if model.model == "echo:latest"]
    assert (loaded.model, loaded.name, loaded.context_length) == ("echo:latest", "echo:latest", 512)
    assert loaded.expires_at.tzinfo
    shown = client.show("echo")
    assert shown.modelinfo["general.architecture"] == "echo"
    assert shown.capabilities == ["completion"]
    assert shown.details.format == "onnx"


def test_models_are_created_copied_and_deleted(connect: Connect, start_server: Any) -> None:
    client = connect(start_server())
    assert client.create("mario", from_="echo", system="x", parameters={"temperature": 0}).status == "success"
    steps = list(client.create("luigi", from_="mario", messages=MESSAGES, license="MIT", stream=True))
    assert [step.status for step in steps][-1] == "success"
    assert client.copy("luigi", "me/peach").status == "success"
    assert client.delete("luigi").status == "success"
    assert {model.model for model in client.list().models} == {"echo:latest", "mario:latest", "me/peach:latest"}


def test_files_are_uploaded(connect: Connect, start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    client = connect(server)
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 100_000)
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    for _ in range(2):
        assert client.create_blob(path) == digest
    assert server.parts.store.has_blob(digest)
    with pytest.raises(ollama.ResponseError) as refused:
        client.create("mine", files={"weights": digest})
    assert refused.value.status_code >= 400


def test_models_are_pulled(connect: Connect, start_server: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 8)
    (tmp_path / "broken.toml").write_text(CARD.format(folder=tmp_path))
    client = connect(start_server({"card_dirs": (tmp_path,)}))
    with pytest.raises(ollama.ResponseError, match="GGUF"):
        list(client.pull("broken", stream=True))
    with pytest.raises(ollama.ResponseError) as refused:
        client.pull("no-such-model")
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as refused:
        list(client.pull("no-such-model", stream=True))
    assert "no-such-model" in refused.value.error


def test_a_push_that_has_no_server_to_go_to_is_refused(client: Any) -> None:
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError) as refused:
            list(client.push("echo", stream=stream))
        assert refused.value.status_code == 400


@pytest.mark.parametrize(
    ("call", "status", "word"),
    [
        (lambda client: client.chat("nobody", MESSAGES), 404, "model 'nobody' not found"),
        (lambda client: client.generate("nobody", "x"), 404, "model 'nobody' not found"),
        (lambda client: client.embed("nobody", "x"), 404, "model 'nobody' not found"),
        (lambda client: client.embeddings("nobody", "x"), 404, 'model "nobody" not found, try pulling it first'),
        (lambda client: client.show("nobody"), 404, "model 'nobody' not found"),
        (lambda client: client.delete("nobody"), 404, "model 'nobody' not found"),
        (lambda client: client.copy("nobody", "x"), 404, 'model "nobody" not found'),
        (lambda client: client.create("x", from_="nobody"), 404, "model 'nobody' not found"),
        (lambda client: client.chat("echo", MESSAGES, think=True), 400, '"echo" does not support thinking'),
        (lambda client: client.chat("words", MESSAGES), 400, '"words" does not support chat'),
        (lambda client: client.embed("echo", "x"), 400, '"echo" does not support embedding'),
        (lambda client: client.generate("echo", "x", images=[b"png"]), 400, '"echo" does not support vision'),
        (lambda client: client.generate("echo", "x", suffix="y"), 400, '"echo" does not support insert'),
        (lambda client: client.chat("echo", MESSAGES, options={"top_k": "x"}), 400, "options.top_k"),
        (lambda client: list(client.chat("echo", MESSAGES, stream=True, top_logprobs=21)), 400, "between 0 and 20"),
    ],
)
def test_errors_are_the_clients_own(client: Any, call: Any, status: int, word: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        call(client)
    assert (refused.value.status_code, word in refused.value.error) == (status, True), refused.value
