"""Every field that OpenAI's client can send is honoured, harmless, or refused by its name - and the page says which."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from vmm_server.api.body import parse_body
from vmm_server.api.openai.convert import chat_request, completion_requests
from vmm_server.api.openai.wire import ChatCompletionRequest, CompletionRequest
from vmm_server.errors import UnsupportedParameter
from vmm_server.requests import GenerateRequest

SDK_CHAT = {*chat_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
SDK_COMPLETION = {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
TABLE = (
    (Path(__file__).parents[3] / "docs/http.md")
    .read_text()
    .partition("## Chat and text completions: which fields do what")[2]
    .partition("\n\n")[0]
)
HARMLESS: dict[str, object] = {
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "user": "u",
}
REFUSED: dict[str, object] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "verbosity": "high",
    "web_search_options": {},
}


def chat(**fields: object) -> GenerateRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    return chat_request(parse_body(json.dumps(body).encode(), ChatCompletionRequest))


def completion(**fields: object) -> list[GenerateRequest]:
    body = {"model": "m", "prompt": "x"} | fields
    return completion_requests(parse_body(json.dumps(body).encode(), CompletionRequest))


def documented(row: str) -> str:
    line: str = next(line for line in TABLE.splitlines() if line.startswith(f"| {row}"))
    return line


def test_no_field_of_the_sdk_is_left_undecided() -> None:
    assert SDK_CHAT - ChatCompletionRequest.model_fields.keys() == HARMLESS.keys()
    assert SDK_COMPLETION - CompletionRequest.model_fields.keys() <= HARMLESS.keys()
    assert REFUSED.keys() < ChatCompletionRequest.model_fields.keys()


@pytest.mark.parametrize("field", HARMLESS)
def test_harmless_fields_change_nothing(field: str) -> None:
    fields: dict[str, Any] = {field: HARMLESS[field]}
    assert chat(**fields) == chat()
    assert completion(**fields) == completion()
    assert f"`{field}`" in documented("taken")


@pytest.mark.parametrize("field", REFUSED)
def test_refused_fields_are_named(field: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat(**{field: REFUSED[field]})
    assert refused.value.param == field
    assert f"`{field}`" in documented("refused by name")


def test_the_defaults_of_refused_fields_are_fine() -> None:
    assert chat(modalities=["text"], verbosity="medium", audio=None, web_search_options=None) == chat()


@pytest.mark.parametrize("field", sorted((SDK_CHAT | SDK_COMPLETION) - HARMLESS.keys() - REFUSED.keys()))
def test_honoured_fields_are_in_the_table(field: str) -> None:
    assert f"`{field}`" in documented("honoured") + documented("on chat") + documented("on completions")
