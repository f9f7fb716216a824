"""A live server whose model thinks, calls tools and says the last user message again; OpenAI's client for it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.echo import CHAT_TEMPLATE, write_echo_model
from vmm_server.models.store import Store

TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}<|end|>{% endfor %}" + CHAT_TEMPLATE
) + "{# <think></think> #}"
"""Of a model that is told of its tools, and may think."""


def install_thinker(server: Any, folder: Path) -> Any:
    """Beside the echo model one that thinks and calls when it says so."""
    write_echo_model(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    echo = server.parts.registry.resolve("echo")
    changes = {"name": "thinker:latest", "aliases": (), "digest": "d" * 64, "folder": folder}
    Store(server.parts.settings.store_dir).install(replace(echo, sampling=SamplingDefaults(temperature=0.0), **changes))
    return server


@pytest.fixture
def start_thinker(start_server: Any, tmp_path: Path) -> Callable[..., Any]:
    """As `start_server`, with the thinker."""
    return lambda changes=None, **options: install_thinker(start_server(changes, **options), tmp_path / "thinker")


@pytest.fixture
def server(start_thinker: Callable[..., Any]) -> Any:
    return start_thinker()


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(server: Any) -> Callable[..., httpx.Response]:
    def send(input: object = "hello", **fields: object) -> httpx.Response:
        response: httpx.Response = server.client.post(
            "/v1/responses", json={"model": "thinker", "input": input} | fields
        )
        return response

    return send
