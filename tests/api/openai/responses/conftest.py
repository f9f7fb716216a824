"""A live server whose model thinks, calls tools and says the last user message again; OpenAI's client for it."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest


@pytest.fixture
def server(clever_server: Any) -> Any:
    return clever_server


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(server: Any) -> Callable[..., httpx.Response]:
    def send(input: object = "hello", **fields: object) -> httpx.Response:
        response: httpx.Response = server.client.post(
            "/v1/responses", json={"model": "clever", "input": input} | fields
        )
        return response

    return send
