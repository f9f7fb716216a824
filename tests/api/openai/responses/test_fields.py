"""Every field that OpenAI's client can send is honoured, harmless, or refused by its name - and the page says which."""

from pathlib import Path

import pytest
from openai.types.responses import input_token_count_params, response_create_params

from vmm_server.api.openai.responses.wire import CountRequest, ResponseRequest

SDK = {*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"}
SDK_COUNT = {*input_token_count_params.InputTokenCountParams.__annotations__}
SECTION = (
    (Path(__file__).parents[4] / "docs/http.md").read_text().partition("\n## Responses\n")[2].partition("\n## ")[0]
)
HARMLESS = {
    "access_programs",
    "background_options",
    "image",
    "prompt_cache_retention",
    "service_tier",
}
REPEATED = {"max_tool_calls", "metadata", "prompt_cache_key", "safety_identifier", "user"}
REFUSED = {
    "background",
    "context_management",
    "conversation",
    "moderation",
    "prompt",
    "prompt_cache_options",
    "stream_options",
}


def documented(row: str) -> str:
    line: str = next(line for line in SECTION.splitlines() if line.startswith(f"| {row}"))
    return line


def test_no_field_of_the_sdk_is_left_undecided() -> None:
    assert SDK - ResponseRequest.model_fields.keys() == HARMLESS
    assert CountRequest.model_fields.keys() >= SDK_COUNT
    assert ResponseRequest.model_fields.keys() >= REFUSED | REPEATED


@pytest.mark.parametrize("field", sorted(SDK))
def test_every_field_is_in_its_row(field: str) -> None:
    rows = {"taken": HARMLESS, "repeated": REPEATED, "refused by name": REFUSED}
    row = next((row for row, fields in rows.items() if field in fields), "honoured")
    assert f"`{field}`" in documented(row)
