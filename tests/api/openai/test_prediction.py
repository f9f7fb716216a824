"""`prediction`: tokens that the client expects are checked several at a time, and counted as OpenAI counts them."""

from collections.abc import Iterator
from random import Random
from string import ascii_letters
from typing import Any

import openai
import pytest
from tests.api.conftest import LiveServer, StartServer
from tests.api.test_metrics import ECHO, figures

from vmm_server.engine.engine import EngineOptions

TEXT = "".join(Random(1).choices(ascii_letters, k=150))
"""Hardly anything comes twice in it, so what is guessed is from the prediction."""


@pytest.fixture
def server(start_server: StartServer) -> LiveServer:
    return start_server(options=EngineOptions(speculation=True))


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, prediction: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": TEXT}], extra_body={"prediction": prediction}, **fields
    )


def test_what_was_predicted_is_accepted_or_rejected(client: openai.OpenAI, server: LiveServer) -> None:
    edited = TEXT.replace(TEXT[100:105], "-----")
    answer = ask(client, {"type": "content", "content": edited})
    assert answer.choices[0].message.content == TEXT
    details = answer.usage.completion_tokens_details
    assert 0 < details.accepted_prediction_tokens <= len(TEXT)
    assert details.rejected_prediction_tokens >= 0
    assert answer.usage.completion_tokens == len(TEXT) + 1
    found = figures(server)
    assert found["vmm_accepted_tokens_total"][ECHO] >= details.accepted_prediction_tokens
    rejected = found["vmm_draft_tokens_total"][ECHO] - found["vmm_accepted_tokens_total"][ECHO]
    assert rejected >= details.rejected_prediction_tokens


def test_a_stream_says_it_at_its_end(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": TEXT[:70]}, {"type": "text", "text": TEXT[70:]}]
    stream = ask(client, {"type": "content", "content": parts}, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens_details.accepted_prediction_tokens > 0


def test_without_one_nothing_is_accepted(client: openai.OpenAI) -> None:
    details = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "ab" * 40}]
    ).usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "outline", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0].text"),
        ({"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "prediction.content[0]"),
        ("x", "prediction"),
    ],
)
def test_one_that_is_no_text_is_refused_by_name(client: openai.OpenAI, prediction: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, prediction)
    assert caught.value.param == param


def test_ollamas_answers_say_what_was_drafted(server: LiveServer) -> None:
    song = [{"role": "user", "content": "row, row, row your boat, " * 8}]
    last = server.client.post("/api/chat", json={"model": "echo", "messages": song, "stream": False}).json()
    assert 0 < last["draft_accepted_count"] <= last["draft_count"]
