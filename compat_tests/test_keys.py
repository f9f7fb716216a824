"""The clients with a key, at a server that wants one: what it lets them do, and which of their errors they raise."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

MODEL = "scripted"
SUM = "What is 17 times 3?"
WRONG = "vmm-this-is-no-key"


@dataclass(frozen=True)
class Keyed:
    """A server with keys."""

    url: str
    secret: str
    """For inference."""
    once: str
    """The same, for one request a minute."""
    figures: str
    """For metrics alone."""


@pytest.fixture(scope="module")
def keyed(vmm_in: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    if os.environ.get("VMM_BASE_URL"):
        pytest.skip("only a server of these tests' own can be given keys")
    vmm = vmm_in(tmp_path_factory.mktemp("keyed"))
    vmm.run("pull", "file:compat_tests/scripted", "--name", MODEL)
    secret = vmm.run("keys", "create", "clients")
    once = vmm.run("keys", "create", "once", "--requests-per-minute", "1")
    figures = vmm.run("keys", "create", "figures", "--scope", "metrics")
    with vmm.serving("--default-model", MODEL, start_timeout_s=60) as url:
        yield Keyed(url, secret, once, figures)


def ask_openai(keyed: Keyed, key: str) -> str | None:
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0) as client:
        reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": SUM}])
        return reply.choices[0].message.content


def test_openai(keyed: Keyed) -> None:
    assert "51" in (ask_openai(keyed, keyed.secret) or "")
    with pytest.raises(openai.AuthenticationError) as wrong:
        ask_openai(keyed, WRONG)
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError, match="scope inference"):
        ask_openai(keyed, keyed.figures)


def test_openai_reads_quotas_and_when_to_come_again(keyed: Keyed) -> None:
    ask_openai(keyed, keyed.once)
    with pytest.raises(openai.RateLimitError, match="requests_per_minute is 1") as limited:
        ask_openai(keyed, keyed.once)
    headers = limited.value.response.headers
    assert 50 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"


def test_anthropic(keyed: Keyed) -> None:
    def ask(key: str) -> anthropic.types.Message:
        with anthropic.Anthropic(base_url=keyed.url, api_key=key, max_retries=0) as client:
            return client.messages.create(model=MODEL, max_tokens=60, messages=[{"role": "user", "content": SUM}])

    assert ask(keyed.secret).usage.output_tokens > 3
    with pytest.raises(anthropic.AuthenticationError):
        ask(WRONG)
    with pytest.raises(anthropic.PermissionDeniedError):
        ask(keyed.figures)


def test_ollama(keyed: Keyed) -> None:
    def client(key: str) -> ollama.Client:
        return ollama.Client(host=keyed.url, headers={"Authorization": f"Bearer {key}"})

    known, unknown = client(keyed.secret), client(WRONG)
    with known._client, unknown._client:
        assert "51" in (known.chat(model=MODEL, messages=[{"role": "user", "content": SUM}]).message.content or "")
        assert [model.model for model in known.list().models] == [f"{MODEL}:latest"]
        with pytest.raises(ollama.ResponseError) as forbidden:
            known.delete(MODEL)
        assert forbidden.value.status_code == 403
        with pytest.raises(ollama.ResponseError) as wrong:
            unknown.list()
        assert wrong.value.status_code == 401


def test_langchain(keyed: Keyed) -> None:
    with httpx.Client() as client:
        by_openai = ChatOpenAI(
            model=MODEL, base_url=f"{keyed.url}/v1", api_key=SecretStr(keyed.secret), http_client=client
        )
        assert "51" in by_openai.invoke(SUM).text
    headers = {"Authorization": f"Bearer {keyed.secret}"}
    by_ollama = ChatOllama(model=MODEL, base_url=keyed.url, client_kwargs={"headers": headers})
    with by_ollama._client:
        assert "51" in by_ollama.invoke(SUM).text


def test_curl(keyed: Keyed) -> None:
    command = ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", "--noproxy", "*", f"{keyed.url}/v1/models"]
    for options, status in (([], "401"), (["-H", f"Authorization: Bearer {keyed.secret}"], "200")):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == status
