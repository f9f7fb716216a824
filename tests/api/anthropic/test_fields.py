"""Every field that Anthropic's client sends is honoured, harmless, or refused by its name - and the page says which."""

import json
import re
from pathlib import Path

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_create_params

from vmm_server.api.anthropic.convert import message_request
from vmm_server.api.anthropic.wire import MessagesBody, PromptFields
from vmm_server.api.body import parse_body
from vmm_server.api.placement import PlacementFields
from vmm_server.errors import UnsupportedParameter
from vmm_server.requests import GenerateRequest

HEADERS = {"betas", "workspace_id"}
"""What the client sends beside the body."""
SDK = {*message_create_params.MessageCreateParamsBase.__annotations__, "stream"} - HEADERS
BETA = {*beta_create_params.MessageCreateParamsBase.__annotations__} - HEADERS
TABLE = (Path(__file__).parents[3] / "docs/http.md").read_text().partition("## Messages")[2].partition("\n\n*")[0]
HARMLESS: dict[str, object] = {
    "billing_policy": {"type": "x"},
    "cache_control": {"type": "ephemeral"},
    "context_management": {"edits": []},
    "diagnostics": {"previous_message_id": "msg_1"},
    "fallback_credit_token": "x",
    "fallbacks": [{"model": "x"}],
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "speed": "fast",
    "user_profile_id": "u",
}
REFUSED: dict[str, object] = {
    "compaction": {"type": "x"},
    "container": "c",
    "inference_geo": "eu",
    "mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}],
    "thread": {"type": "create"},
}


def request(**fields: object) -> GenerateRequest:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]} | fields
    return message_request(parse_body(json.dumps(body).encode(), MessagesBody))


def documented(row: str) -> set[str]:
    line = next(line for line in TABLE.splitlines() if line.startswith(f"| {row}"))
    return set(re.findall(r"`(\w+)`", line))


def test_no_field_of_the_sdk_is_left_undecided() -> None:
    assert {*MessagesBody.model_fields, *HARMLESS} >= SDK | BETA
    assert not HARMLESS.keys() & MessagesBody.model_fields.keys()
    counted = {*message_count_tokens_params.MessageCountTokensParams.__annotations__} - HEADERS
    assert counted <= {*PromptFields.model_fields, *HARMLESS}


def test_the_page_has_every_field_in_its_row() -> None:
    ours = PlacementFields.model_fields.keys()
    assert documented("honoured") == MessagesBody.model_fields.keys() - REFUSED.keys() - ours
    assert documented("beyond") == ours
    assert documented("taken") == HARMLESS.keys()
    assert documented("refused") >= REFUSED.keys()


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_fields_change_nothing(name: str) -> None:
    assert request(**{name: HARMLESS[name]}) == request()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request(**{name: REFUSED[name]})
    assert refused.value.param == name
    assert request(**{name: None}) == request()
