"""ollama-python, the official client: every method that a server of one's own has, synchronous and not."""

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest
from pydantic import BaseModel

CAPITAL = "What is the capital of France? Answer in one sentence."
GREEDY = {"temperature": 0, "num_predict": 40}
DEFAULT = "smollm2:135m"


class Waited:
    """The asynchronous client, each call waited for; a stream is read to its end."""

    def __init__(self, base_url: str, runner: asyncio.Runner) -> None:
        self._client = ollama.AsyncClient(host=base_url)
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def whole(reply: Awaitable[Any]) -> Any:
            answer = await reply
            return [part async for part in answer] if hasattr(answer, "__aiter__") else answer

        return lambda *arguments, **fields: self._runner.run(whole(method(*arguments, **fields)))


@pytest.fixture(params=["sync", "async"])
def client(base_url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "sync":
        with ollama.Client(host=base_url) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        waited = Waited(base_url, runner)
        yield waited
        waited.close()


@pytest.fixture
def new_name(client: Any, base_url: str) -> Iterator[Callable[[], str]]:
    """Names for models that are gone after the test."""
    numbers = itertools.count()
    names: list[str] = []

    def make(name: str = "compat/made") -> str:
        names.append(f"{name}-{next(numbers)}:test")
        return names[-1]

    yield make
    with ollama.Client(host=base_url) as remover:
        there = {entry.model for entry in remover.list().models}
        for name in there & set(names):
            remover.delete(name)


def test_chat_answers_with_timings(client: Any, model: str) -> None:
    reply = client.chat(model=model, messages=[{"role": "user", "content": CAPITAL}], options=GREEDY)
    assert "Paris" in reply.message.content
    assert reply.model == model
    assert reply.done
    assert reply.done_reason == "stop"
    assert reply.eval_count
    assert reply.prompt_eval_count
    assert reply.eval_duration > 0
    parts = (reply.load_duration or 0, reply.prompt_eval_duration, reply.eval_duration)  # what is 0 is left out
    assert reply.total_duration >= sum(parts)


def test_a_chat_stream_ends_with_done(client: Any, model: str) -> None:
    messages = [{"role": "user", "content": CAPITAL}]
    parts = list(client.chat(model=model, messages=messages, options=GREEDY, stream=True))
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 3
    assert parts[-1].done_reason == "stop"


def test_generate_answers_and_streams(client: Any, model: str) -> None:
    reply = client.generate(model=model, prompt=CAPITAL, options=GREEDY)
    assert "Paris" in reply.response
    assert reply.context
    parts = list(client.generate(model=model, prompt=CAPITAL, options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == reply.response
    assert parts[-1].done


def test_context_goes_on_with_a_conversation(client: Any, scripted: str) -> None:
    first = client.generate(model=scripted, prompt="How is the weather in San Francisco?", options=GREEDY)
    second = client.generate(model=scripted, prompt="And now?", context=first.context, options=GREEDY)
    assert second.prompt_eval_count > first.prompt_eval_count
    assert second.context[: len(first.context)] == first.context


def test_generate_takes_a_system_message_a_template_and_raw_text(client: Any, scripted: str) -> None:
    def ask(**fields: Any) -> Any:
        return client.generate(model=scripted, prompt="Say this.", options={"num_predict": 3}, **fields)

    assert ask(system="Be kind.").prompt_eval_count > ask().prompt_eval_count
    jinja, go = (ask(template=f"<|user|>{{{{ {text} }}}}<|end|>") for text in ("messages[-1].content", ".Prompt"))
    assert jinja.prompt_eval_count == go.prompt_eval_count
    assert ask(raw=True).context is None


def test_an_empty_prompt_loads_and_unloads(client: Any, model: str) -> None:
    digest = {entry.model: entry.digest for entry in client.list().models}[DEFAULT]

    def loaded() -> list[Any]:
        return [entry for entry in client.ps().models if entry.digest == digest]

    assert client.generate(model=model).done_reason == "load"
    (entry,) = loaded()
    assert entry.size
    assert entry.context_length
    assert isinstance(entry.expires_at, datetime)
    assert client.generate(model=model, keep_alive=0).done_reason == "unload"
    assert not loaded()
    assert client.chat(model=model, messages=[], keep_alive="10m").done_reason == "load"
    assert loaded()


def test_num_predict_and_stop_end_an_answer(client: Any, model: str, scripted: str) -> None:
    reply = client.generate(model=model, prompt=CAPITAL, options={"num_predict": 3.0})
    assert reply.done_reason == "length"
    assert reply.eval_count == 3
    reply = client.generate(model=scripted, prompt="Say this, and that.", options=ollama.Options(stop=[","]))
    assert (reply.response, reply.done_reason) == ("Say this", "stop")


def test_logprobs_are_of_each_token(client: Any, model: str) -> None:
    options = {"temperature": 0, "num_predict": 4}
    reply = client.generate(model=model, prompt=CAPITAL, options=options, logprobs=True, top_logprobs=2)
    assert len(reply.logprobs) == reply.eval_count == 4
    assert len(reply.logprobs[0].top_logprobs) == 2
    assert reply.logprobs[0].logprob == reply.logprobs[0].top_logprobs[0].logprob


def test_a_function_is_a_tool(client: Any, scripted: str) -> None:
    def get_weather(location: str) -> str:
        """The weather at a place, now.

        Args:
          location: The place.
        """
        return f"sunny in {location}"

    messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    first = client.chat(model=scripted, messages=messages, tools=[get_weather])
    (call,) = first.message.tool_calls
    assert call.function.name == "get_weather"
    assert call.function.arguments == {"location": "Paris"}
    result = get_weather(**call.function.arguments)
    messages += [first.message, {"role": "tool", "tool_name": "get_weather", "content": result}]
    assert (
        client.chat(model=scripted, messages=messages, tools=[get_weather]).message.content == "It is sunny in Paris."
    )


def test_streamed_calls_come_whole_and_before_the_end(client: Any, scripted: str) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
        },
    }
    messages = [{"role": "user", "content": "How is the weather in Paris and in Oslo?"}]
    parts = list(client.chat(model=scripted, messages=messages, tools=[tool], stream=True))
    calls = [call.function.arguments for part in parts for call in part.message.tool_calls or ()]
    assert calls == [{"location": "Paris"}, {"location": "Oslo"}]
    assert not parts[-1].message.tool_calls
    assert parts[-1].done_reason == "stop"


def test_thinking_is_apart_unless_it_is_not_wanted(client: Any, scripted: str) -> None:
    messages = [{"role": "user", "content": "What is 17 times 3?"}]
    for think in (True, None):
        reply = client.chat(model=scripted, messages=messages, think=think)
        assert reply.message.thinking.strip().startswith("Ten times three")
        assert reply.message.content == "17 times 3 is 51."
    assert not client.chat(model=scripted, messages=messages, think=False).message.thinking
    parts = list(client.generate(model=scripted, prompt="What is 17 times 3?", think=True, stream=True))
    assert "".join(part.thinking or "" for part in parts).strip().startswith("Ten times three")
    assert "".join(part.response for part in parts) == "17 times 3 is 51."


def test_a_form_is_kept(client: Any, scripted: str, model: str) -> None:
    class Person(BaseModel):
        name: str
        city: str
        year: int

    messages = [{"role": "user", "content": "Where is Ada?"}]
    reply = client.chat(model=scripted, messages=messages, format=Person.model_json_schema())
    assert Person.model_validate_json(reply.message.content).name == "Ada Lovelace"

    class Capital(BaseModel):
        capital: str

    reply = client.generate(model=model, prompt=CAPITAL, format=Capital.model_json_schema(), options=GREEDY)
    assert Capital.model_validate_json(reply.response)


def test_pictures_are_refused_by_name(client: Any, model: str) -> None:
    picture = {"role": "user", "content": "What is this?", "images": [b"\x89PNG\r\n\x1a\n"]}
    with pytest.raises(ollama.ResponseError, match="does not support vision") as caught:
        client.chat(model=model, messages=[picture])
    assert caught.value.status_code == 400


def test_embed_gives_unit_vectors(client: Any, embedding_model: str) -> None:
    reply = client.embed(model=embedding_model, input=["A cat sits on the mat.", "The shares fell."])
    assert [len(vector) for vector in reply.embeddings] == [384, 384]
    assert sum(value * value for value in reply.embeddings[0]) == pytest.approx(1, abs=1e-4)
    assert reply.prompt_eval_count
    assert reply.total_duration
    (one,) = client.embed(model=embedding_model, input="A cat sits on the mat.").embeddings
    assert one == pytest.approx(reply.embeddings[0], abs=1e-3)
    (short,) = client.embed(model=embedding_model, input="A cat sits on the mat.", dimensions=64).embeddings
    assert len(short) == 64
    long = "cat " * 2000
    assert client.embed(model=embedding_model, input=long, truncate=True).prompt_eval_count < 600
    with pytest.raises(ollama.ResponseError, match="context length") as caught:
        client.embed(model=embedding_model, input=long, truncate=False)
    assert caught.value.status_code == 400


def test_embeddings_gives_one_vector(client: Any, embedding_model: str) -> None:
    assert len(client.embeddings(model=embedding_model, prompt="A cat sits on the mat.").embedding) == 384


def test_models_are_listed_and_shown(client: Any, model: str) -> None:
    (listed,) = [entry for entry in client.list().models if entry.model == DEFAULT]
    assert listed.size
    assert isinstance(listed.modified_at, datetime)
    assert listed.details.family == "llama"
    shown = client.show(model)
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "completion" in shown.capabilities
    assert shown.template
    assert shown.modelfile


def test_pulling_what_is_there_succeeds_quickly(client: Any, model: str) -> None:
    assert client.pull(model).status == "success"
    assert [part.status for part in client.pull(model, stream=True)][-1] == "success"


def test_a_model_is_made_of_another(client: Any, model: str, new_name: Callable[..., str]) -> None:
    name = new_name()
    fields = {
        "from_": model,
        "system": "You answer in French.",
        "parameters": {"temperature": 0, "num_predict": 4, "stop": ["Z"]},
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Salut"}],
        "license": ["MIT"],
    }
    assert [part.status for part in client.create(model=name, **fields, stream=True)][-1] == "success"
    shown = client.show(name)
    assert "You answer in French." in shown.modelfile
    assert "num_predict" in shown.parameters
    assert "MIT" in shown.license
    reply = client.chat(model=name, messages=[{"role": "user", "content": CAPITAL}])
    assert reply.eval_count == 4
    bare = client.chat(model=model, messages=[{"role": "user", "content": CAPITAL}], options=GREEDY)
    assert reply.prompt_eval_count > bare.prompt_eval_count
    assert client.create(model=name, from_=name, system="You answer in verse.").status == "success"
    assert client.show(name).details.parent_model


def test_a_model_is_made_of_an_uploaded_file(
    client: Any, model: str, new_name: Callable[..., str], weights: Path
) -> None:
    digest = client.create_blob(weights)
    assert digest == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    name = new_name()
    assert client.create(model=name, files={"weights.gguf": digest}).status == "success"
    assert client.show(name).details.format == "gguf"
    reply = client.chat(model=name, messages=[{"role": "user", "content": CAPITAL}], options=GREEDY)
    assert "Paris" in reply.message.content


def test_copy_and_delete(client: Any, model: str, new_name: Callable[..., str]) -> None:
    name = new_name()
    assert client.copy(model, name).status == "success"
    digests = {entry.model: entry.digest for entry in client.list().models}
    assert digests[name] == digests[DEFAULT]
    assert client.delete(name).status == "success"
    assert name not in [entry.model for entry in client.list().models]
    for ask in (lambda: client.delete(name), lambda: client.copy(name, "elsewhere")):
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            ask()
        assert caught.value.status_code == 404


def test_push_hands_a_model_to_another_server(
    client: Any, base_url: str, model: str, new_name: Callable[..., str]
) -> None:
    """The other server is the same one under its address: what it is handed, it has under the name without it."""
    name = new_name()
    far = new_name(f"{urlsplit(base_url).netloc}/{name.partition(':')[0]}")
    client.create(model=far, from_=model, system="You answer in French.")
    statuses = [part.status for part in client.push(far, insecure=True, stream=True)]
    assert statuses[0] == "retrieving manifest"
    assert statuses[-1] == "success"
    pushed = far.partition("/")[2]
    assert "You answer in French." in client.show(pushed).modelfile
    client.delete(pushed)


def test_an_unknown_model_is_not_found(client: Any) -> None:
    for ask in (lambda: client.chat("nonsense", [{"role": "user", "content": "?"}]), lambda: client.show("nonsense")):
        with pytest.raises(ollama.ResponseError, match="model 'nonsense' not found") as caught:
            ask()
        assert caught.value.status_code == 404


def test_a_wrong_option_is_named(client: Any, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match="num_predict") as caught:
        client.generate(model=model, prompt="?", options={"num_predict": "many"})
    assert caught.value.status_code == 400
