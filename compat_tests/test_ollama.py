"""ollama-python, the official client."""

from collections.abc import Iterator
from datetime import datetime

import ollama
import pytest

CAPITAL = "What is the capital of France? Answer in one sentence."
GREEDY = {"temperature": 0, "num_predict": 40}


@pytest.fixture
def client(base_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=base_url) as client:
        yield client


def test_chat_answers_with_timings(client: ollama.Client, model: str) -> None:
    reply = client.chat(model=model, messages=[{"role": "user", "content": CAPITAL}], options=GREEDY)
    assert "Paris" in (reply.message.content or "")
    assert reply.model == model
    assert reply.done
    assert reply.done_reason == "stop"
    assert reply.eval_count
    assert reply.prompt_eval_count
    assert reply.total_duration
    assert reply.eval_duration
    assert reply.total_duration >= reply.eval_duration > 0


def test_a_chat_stream_ends_with_done(client: ollama.Client, model: str) -> None:
    messages = [{"role": "user", "content": CAPITAL}]
    parts = list(client.chat(model=model, messages=messages, options=GREEDY, stream=True))
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 3
    assert parts[-1].done_reason == "stop"


def test_generate_answers_and_streams(client: ollama.Client, model: str) -> None:
    reply = client.generate(model=model, prompt=CAPITAL, options=GREEDY)
    assert "Paris" in reply.response
    assert reply.context
    parts = list(client.generate(model=model, prompt=CAPITAL, options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == reply.response
    assert parts[-1].done


def test_generate_without_a_prompt_loads(client: ollama.Client, model: str) -> None:
    assert client.generate(model=model).done_reason == "load"
    (loaded,) = [entry for entry in client.ps().models if entry.name == "smollm2:135m"]
    assert loaded.size
    assert isinstance(loaded.expires_at, datetime)


def test_num_predict_is_the_length(client: ollama.Client, model: str) -> None:
    reply = client.generate(model=model, prompt=CAPITAL, options={"num_predict": 3})
    assert reply.done_reason == "length"
    assert reply.eval_count == 3


def test_models_are_listed_and_shown(client: ollama.Client, model: str) -> None:
    (listed,) = [entry for entry in client.list().models if entry.model == "smollm2:135m"]
    assert listed.size
    assert listed.details
    assert listed.details.family == "llama"
    shown = client.show(model)
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion"]
    assert shown.template


def test_pulling_what_is_there_succeeds_quickly(client: ollama.Client, model: str) -> None:
    assert client.pull(model).status == "success"
    assert [part.status for part in client.pull(model, stream=True)][-1] == "success"


def test_an_unknown_model_is_not_found(client: ollama.Client) -> None:
    for ask in (lambda: client.chat("nonsense", [{"role": "user", "content": "?"}]), lambda: client.show("nonsense")):
        with pytest.raises(ollama.ResponseError, match="model 'nonsense' not found") as caught:
            ask()
        assert caught.value.status_code == 404


def test_a_wrong_option_is_named(client: ollama.Client, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match="num_predict") as caught:
        client.generate(model=model, prompt="?", options={"num_predict": "many"})
    assert caught.value.status_code == 400
