"""LangChain's two packages."""

from collections.abc import Iterator

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

MESSAGES = [
    SystemMessage("You are a helpful assistant."),
    HumanMessage("What is the capital of France? Answer in one sentence."),
]


@pytest.fixture(params=["openai", "ollama"])
def chat_model(request: pytest.FixtureRequest, base_url: str, model: str) -> Iterator[BaseChatModel]:
    # neither closes what it opened
    if request.param == "ollama":
        chat_model = ChatOllama(model=model, base_url=base_url, temperature=0)
        with chat_model._client:
            yield chat_model
    else:
        with httpx.Client() as client:
            yield ChatOpenAI(
                model=model, base_url=f"{base_url}/v1", api_key=SecretStr("unused"), temperature=0, http_client=client
            )


def test_invoke(chat_model: BaseChatModel) -> None:
    reply = chat_model.invoke(MESSAGES)
    assert "Paris" in reply.text
    assert reply.usage_metadata
    assert reply.usage_metadata["output_tokens"] > 3


def test_stream(chat_model: BaseChatModel) -> None:
    pieces = [chunk.text for chunk in chat_model.stream(MESSAGES)]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3


def test_batch(chat_model: BaseChatModel) -> None:
    replies = chat_model.batch([MESSAGES, MESSAGES, MESSAGES])
    assert ["Paris" in reply.text for reply in replies] == [True] * 3
