"""Anthropic's requests → `GenerateRequest`."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import IMAGE_MARK, SamplingParams
from vmm_server.api.anthropic.convert import message_request, prompt_request, shows_thinking
from vmm_server.api.anthropic.wire import MessagesBody, PromptFields, Thinking
from vmm_server.api.body import parse_body
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, GenerateRequest, GivenImage, JsonSchema, Message, Tool, ToolCall, ToolUse

WEATHER = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm", "a": 1}}


def request(**fields: object) -> GenerateRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | fields
    return message_request(parse_body(json.dumps(body).encode(), MessagesBody))


def prompt(**fields: object) -> ChatPrompt:
    made = request(**fields).prompt
    assert isinstance(made, ChatPrompt)
    return made


def turns(*messages: object, **fields: object) -> tuple[Message, ...]:
    return prompt(messages=messages, **fields).messages


def test_a_bare_request() -> None:
    assert request() == GenerateRequest(
        model="m",
        prompt=ChatPrompt((Message("user", "hi"),), thinking_param="thinking"),
        sampling=SamplingParams(temperature=1.0, max_tokens=9),
        unset=frozenset(SamplingDefaults.model_fields.keys() - {"max_tokens"}),
    )


def test_sampling_arrives_under_our_names() -> None:
    made = request(temperature=0.5, top_p=0.9, top_k=3, max_tokens=0, stop_sequences=["a", "b"])
    assert made.sampling == SamplingParams(temperature=0.5, top_p=0.9, top_k=3, max_tokens=0, stop=("a", "b"))
    assert made.unset == SamplingDefaults.model_fields.keys() - {"temperature", "top_p", "top_k", "max_tokens", "stop"}


def test_fields_on_billing_and_caching_change_nothing() -> None:
    extras = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "unheard": 1,
    }
    assert request(**extras) == request()
    block = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "citations": None}
    assert turns({"role": "user", "content": [block]}) == (Message("user", "hi"),)


@pytest.mark.parametrize(
    "system", ["be brief\nbe kind", [{"type": "text", "text": t} for t in ("be brief", "be kind")]]
)
def test_system_is_a_text_or_text_blocks(system: object) -> None:
    assert prompt(system=system).messages == (Message("system", "be brief\nbe kind"), Message("user", "hi"))


def test_a_tool_loop_arrives() -> None:
    got = turns(
        {"role": "user", "content": "how is it?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "xxxx"},
                {"type": "text", "text": "let me see"},
                CALL,
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "no network"},
                {"type": "tool_result", "tool_use_id": "toolu_1"},
                {"type": "text", "text": "well?"},
            ],
        },
    )
    assert got == (
        Message("user", "how is it?"),
        Message(
            "assistant",
            "let me see",
            thinking="hm",
            tool_calls=(ToolCall("weather", '{"city": "Ulm", "a": 1}', "toolu_1"),),
        ),
        Message("tool", "rain", name="weather", tool_call_id="toolu_1"),
        Message("tool", "Error: no network", name="weather", tool_call_id="toolu_1"),
        Message("tool", "", name="weather", tool_call_id="toolu_1"),
        Message("user", "well?"),
    )


def test_turns_of_one_role_are_one() -> None:
    got = turns(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""}]},
        {"role": "system", "content": [{"type": "text", "text": "e"}]},
        {"role": "user", "content": "f"},
    )
    assert got == (
        Message("user", "a\nb\nc"),
        Message("assistant", "d", thinking="t"),
        Message("system", "e"),
        Message("user", "f"),
    )


def test_an_empty_answer_goes_back() -> None:
    empty = {"role": "assistant", "content": []}
    got = turns({"role": "user", "content": "a"}, empty, {"role": "user", "content": "b"})
    assert got == (Message("user", "a"), Message("assistant", ""), Message("user", "b"))


def test_an_assistant_message_at_the_end_is_a_beginning() -> None:
    got = turns({"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is ("})
    assert got[-1] == Message("assistant", "The answer is (")


TOOL = Tool("weather", "of a city", '{"type": "object", "properties": {"city": {"type": "string"}}}')
NEWS = {"name": "news", "input_schema": {"type": "object"}, "strict": True, "type": "custom"}
NEWS_TOOL = Tool("news", None, '{"type": "object"}', strict=True)


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        (None, ToolUse((TOOL, NEWS_TOOL))),
        ({"type": "auto"}, ToolUse((TOOL, NEWS_TOOL))),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolUse((TOOL, NEWS_TOOL), parallel=False)),
        ({"type": "any"}, ToolUse((TOOL, NEWS_TOOL), required=True)),
        (
            {"type": "tool", "name": "news"},
            ToolUse((TOOL, NEWS_TOOL), required=True, allowed=frozenset({"news"}), parallel=False),
        ),
        ({"type": "none"}, None),
    ],
)
def test_tools_and_the_choice_of_them(choice: object, use: ToolUse | None) -> None:
    assert prompt(tools=[WEATHER, NEWS], tool_choice=choice).tools == use


def test_examples_of_input_are_told_with_the_description() -> None:
    use = prompt(tools=[WEATHER | {"input_examples": [{"city": "Köln"}, {}]}]).tools
    assert use is not None
    assert use.tools[0].description == 'of a city\nExamples of input:\n{"city": "Köln"}\n{}'


@pytest.mark.parametrize(
    ("fields", "thinking", "param"),
    [
        ({}, None, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True, "thinking"),
        ({"thinking": {"type": "adaptive"}}, None, "thinking"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, False, "thinking"),
        ({"output_config": {"effort": "low"}}, "low", "output_config.effort"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high", "output_config.effort"),
    ],
)
def test_thinking_is_on_off_an_effort_or_left_to_the_model(fields: Any, thinking: object, param: str) -> None:
    made = prompt(**fields)
    assert (made.thinking, made.thinking_param) == (thinking, param)


def test_thinking_may_be_kept_from_the_reply() -> None:
    assert shows_thinking(None)
    assert shows_thinking(Thinking(type="adaptive", display="summarized"))
    assert not shows_thinking(Thinking(type="adaptive", display="omitted"))


def test_an_output_format_is_a_constraint_in_the_schemas_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    made = request(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert made.constraint == JsonSchema(json.dumps(schema), "output_config.format.schema")
    older = request(output_format={"type": "json_schema", "schema": schema}).constraint
    assert older == made.constraint


def test_counting_reads_the_same_prompt() -> None:
    fields = {"system": "s", "tools": [WEATHER], "thinking": {"type": "disabled"}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    assert prompt_request(parse_body(json.dumps(body).encode(), PromptFields)).prompt == prompt(**fields)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def test_images_stand_between_the_texts() -> None:
    text, linked = {"type": "text", "text": "x"}, {"type": "image", "source": {"type": "url", "url": "https://x"}}
    (message,) = turns({"role": "user", "content": [IMAGE, text, linked]})
    assert message.content == f"{IMAGE_MARK}\nx\n{IMAGE_MARK}"
    assert message.images == (
        GivenImage("aGk=", "messages[0].content[0].source.data"),
        GivenImage("https://x", "messages[0].content[2].source.url"),
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": [IMAGE]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0].source"),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]},
            "messages[0].content[0].source.data",
        ),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]},
            "messages[0].content[0].source.type",
        ),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "document"}]}, "messages[0].content[1]"),
        ({"role": "user", "content": [CALL]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "messages[0].content[0]"),
        ({"role": "system", "content": [IMAGE]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "content": [CALL]}, "messages"),
        ({"role": "assistant", "content": [CALL | {"input": "x"}]}, "messages[0].content[0].input"),
        ({"role": "assistant", "content": [CALL | {"id": None}]}, "messages[0].content[0].id"),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "?", "content": "x"}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"role": "user", "content": [{"type": "tool_result"}]}, "messages[0].content[0].tool_use_id"),
    ],
)
def test_wrong_messages_are_refused_by_name(message: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        turns(message)
    assert refused.value.param == param
    assert param in refused.value.message


def test_what_a_tool_result_holds_is_refused_by_its_place() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE]}
    with pytest.raises(UnsupportedParameter) as refused:
        turns({"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]})
    assert refused.value.param == "messages[1].content[0].content[0]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"system": 5}, "system"),
        ({"system": [IMAGE]}, "system[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "x", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER | {"allowed_callers": ["code_execution_20250825"]}]}, "tools[0].allowed_callers"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "some"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


WORDS = st.sampled_from(["", "text", "thinking", "tool_use", "tool_result", "user", "assistant", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "name", "id", "input"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(MessagesBody.model_fields)), JSON, max_size=5))
def test_any_fields_convert_or_are_refused(fields: dict[str, object]) -> None:
    with suppress(InvalidRequest):
        request(**fields)


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": JSON})))
def test_any_messages_convert_or_are_refused(messages: list[object]) -> None:
    with suppress(InvalidRequest):
        turns(*messages)
