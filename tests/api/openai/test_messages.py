"""`messages` → `Message`s."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.types import IMAGE_MARK
from vmm_server.api.body import parse_body
from vmm_server.api.openai.messages import chat_messages
from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import GivenImage, Message, ToolCall

USER = {"role": "user", "content": "x"}


def messages(*wire: dict[str, object]) -> tuple[Message, ...]:
    return chat_messages(
        parse_body(json.dumps({"model": "m", "messages": wire}).encode(), ChatCompletionRequest).messages
    )


def call(arguments: str = "{}", **fields: object) -> dict[str, object]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}} | fields


def calling(*calls: dict[str, object], **fields: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": calls} | fields


def test_roles_meet_the_ones_of_chat_templates() -> None:
    roles = ["system", "developer", "user", "assistant", "tool", "function"]
    expected = ["system", "system", "user", "assistant", "tool", "tool"]
    assert [message.role for message in messages(*({"role": role, "content": "x"} for role in roles))] == expected


def test_images_stand_between_the_texts() -> None:
    shown = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in ("data:a", "data:b")]
    parts = [{"type": "text", "text": "first"}, shown[0], {"type": "text", "text": "second"}, shown[1]]
    where = "messages[0].content"
    assert messages({"role": "user", "content": parts}) == (
        Message(
            "user",
            f"first\n{IMAGE_MARK}\nsecond\n{IMAGE_MARK}",
            images=(
                GivenImage("data:a", f"{where}[1].image_url.url"),
                GivenImage("data:b", f"{where}[3].image_url.url"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("role", "part", "param"),
    [
        ("user", {"type": "image_url"}, "messages[0].content[0].image_url"),
        ("user", {"type": "image_url", "image_url": {}}, "messages[0].content[0].image_url.url"),
        ("user", {"type": "image_url", "image_url": "data:a"}, "messages[0].content[0].image_url"),
        ("system", {"type": "image_url", "image_url": {"url": "data:a"}}, "messages[0].content[0]"),
    ],
)
def test_wrong_images_are_refused_by_name(role: str, part: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages({"role": role, "content": [part]})
    assert refused.value.param == param


def test_content_comes_as_string_parts_or_null() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages(
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "content": "y", "reasoning": "well"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "refusal": "never"},
    ) == (
        Message("user", "a\nb", name="ann"),
        Message("assistant", "", thinking="hm"),
        Message("assistant", "y", thinking="well"),
        Message("assistant", "no"),
        Message("assistant", "never"),
    )


def test_calls_and_their_results() -> None:
    assert messages(
        USER,
        calling(call('{"b": 1, "a": "é"}'), call("", id="c2", function={"name": "g", "arguments": ""})),
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}]},
    ) == (
        Message("user", "x"),
        Message("assistant", "", tool_calls=(ToolCall("f", '{"b": 1, "a": "é"}', "c1"), ToolCall("g", "{}", "c2"))),
        Message("tool", "2", tool_call_id="c2"),
        Message("tool", "1", tool_call_id="c1"),
    )


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "none"])
def test_a_call_that_went_wrong_can_be_told_of(arguments: str) -> None:
    """An agent whose model was cut off in the middle of a call goes on from there."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "invalid JSON"}
    assert messages(calling(call(arguments)), result)[0].tool_calls == (ToolCall("f", arguments, "c1"),)


def test_functions_as_openai_called_tools_before() -> None:
    assert messages(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "1"},
    ) == (
        Message("assistant", "", tool_calls=(ToolCall("f", '{"a": 1}'),)),
        Message("tool", "1", name="f"),
    )


def test_an_answer_as_the_sdk_keeps_it_comes_back() -> None:
    """What `message.model_dump()` of openai-python says, nulls and all."""
    kept = {"role": "assistant", "content": "y", "refusal": None, "audio": None, "annotations": []}
    assert messages(kept | {"function_call": None, "tool_calls": None}) == (Message("assistant", "y"),)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            calling(call(), {"type": "function", "function": {"name": "f", "arguments": {}}}),
            "messages[0].tool_calls[1].function.arguments",
        ),
        (calling(call(), {"type": "function"}), "messages[0].tool_calls[1].function"),
        (calling(call(), function_call={"name": "f", "arguments": "{}"}), "messages[0].function_call"),
        ({"role": "user", "content": "x", "tool_calls": [call()]}, "messages[0].tool_calls"),
        (
            {"role": "tool", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
            "messages[0].function_call",
        ),
        ({"role": "tool", "tool_call_id": "c1"}, "messages[0].content"),
    ],
)
def test_wrong_calls_are_refused_by_name(message: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages(message, {"role": "tool", "tool_call_id": "c1", "content": "1"})
    assert refused.value.param == param
    assert param in refused.value.message


def test_calls_of_custom_tools_are_not_supported() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        messages(calling({"id": "c1", "type": "custom", "custom": {"name": "f", "input": "x"}}), USER)
    assert refused.value.param == "messages[0].tool_calls[0].type"


def test_calls_at_the_end_lack_their_results() -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages(USER, calling(call()))
    assert refused.value.param == "messages[1]"


VALUES: Any = st.none() | st.text(max_size=8) | st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4)))
CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["function", "custom"]),
            "id": st.none() | st.text(max_size=3),
            "function": st.none() | st.fixed_dictionaries({"name": st.text(max_size=3), "arguments": st.text()}),
        },
    ),
    max_size=3,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"])},
            optional={"content": VALUES, "tool_calls": CALLS, "tool_call_id": st.text(max_size=3)},
        ),
        max_size=4,
    )
)
def test_any_messages_convert_or_are_refused(wire: list[dict[str, object]]) -> None:
    with suppress(InvalidRequest):
        assert len(messages(*wire)) == len(wire)
