"""A request for a response → `GenerateRequest`."""

import json
from typing import Any

import pytest

from vmm_server.api.body import parse_body
from vmm_server.api.openai.responses.convert import count_request, refuse_unsupported, response_request, wants_summary
from vmm_server.api.openai.responses.wire import CountRequest, ResponseRequest
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, GenerateRequest, JsonObject, JsonSchema, Message, ToolUse

HI = (Message("user", "hi"),)
SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}


def parsed(**fields: object) -> ResponseRequest:
    wire = parse_body(json.dumps({"model": "m", "input": "hi"} | fields).encode(), ResponseRequest)
    refuse_unsupported(wire)
    return wire


def converted(**fields: object) -> GenerateRequest:
    return response_request(parsed(**fields), HI)


def prompt_of(request: GenerateRequest) -> ChatPrompt:
    assert isinstance(request.prompt, ChatPrompt)
    return request.prompt


def tools_of(**fields: object) -> ToolUse:
    use = prompt_of(converted(**fields)).tools
    assert use is not None
    return use


def test_sampling_is_read() -> None:
    request = converted(temperature=0.5, top_p=0.25, max_output_tokens=5, seed=3, top_k=4)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.25, 5)
    assert (sampling.seed, sampling.top_k, sampling.logprobs) == (3, 4, None)
    assert {"min_p", "repetition_penalty"} <= request.unset
    assert prompt_of(request).messages == HI
    assert prompt_of(request).param == "input"


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
        ({}, None),
    ],
)
def test_logprobs_are_asked_for_in_two_ways(fields: dict[str, object], logprobs: int | None) -> None:
    assert converted(**fields).sampling.logprobs == logprobs


def test_tools_are_flat_and_strict_unless_they_say_otherwise() -> None:
    (tool,) = tools_of(tools=[TOOL]).tools
    assert (tool.name, tool.description, tool.strict, tool.param) == ("f", "d", True, "tools[0].parameters")
    assert json.loads(tool.parameters) == SCHEMA
    assert list(json.loads(tool.parameters)["properties"]) == ["z", "a"]
    assert tools_of(tools=[TOOL | {"strict": None}]).tools[0].strict
    assert not tools_of(tools=[TOOL | {"strict": False}]).tools[0].strict


def test_tool_choice() -> None:
    two = {"tools": [TOOL, TOOL | {"name": "g"}]}
    auto = tools_of(**two)
    assert (auto.required, auto.allowed, auto.parallel) == (False, None, True)
    assert prompt_of(converted(**two, tool_choice="none")).tools is None
    assert tools_of(**two, tool_choice="required", parallel_tool_calls=False) == ToolUse(
        auto.tools, required=True, parallel=False
    )
    named = tools_of(**two, tool_choice={"type": "function", "name": "g"})
    assert (named.required, named.allowed) == (True, {"g"})
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    assert (tools_of(**two, tool_choice=allowed).required, tools_of(**two, tool_choice=allowed).allowed) == (
        False,
        {"f"},
    )
    assert tools_of(**two, tool_choice=allowed | {"mode": "required"}).required


@pytest.mark.parametrize(
    ("effort", "thinking"), [(None, None), ("none", False), ("minimal", "low"), ("medium", "medium"), ("max", "high")]
)
def test_effort_turns_thinking_on_and_off(effort: str | None, thinking: object) -> None:
    prompt = prompt_of(converted(reasoning={"effort": effort}))
    assert (prompt.thinking, prompt.thinking_param) == (thinking, "reasoning.effort")


def test_a_summary_is_wanted_by_its_older_name_too() -> None:
    assert wants_summary(parsed(reasoning={"summary": "auto"}).reasoning)
    assert wants_summary(parsed(reasoning={"generate_summary": "detailed"}).reasoning)
    assert not wants_summary(parsed(reasoning={"effort": "low"}).reasoning)
    assert not wants_summary(parsed().reasoning)


def test_text_format_is_the_answers_form() -> None:
    assert converted(text={"format": {"type": "text"}}).constraint is None
    assert converted(text={"format": {"type": "json_object"}}).constraint == JsonObject("text.format")
    constraint = converted(text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}).constraint
    assert constraint == JsonSchema(json.dumps(SCHEMA), "text.format.schema")
    assert constraint is not None
    assert constraint.param == "text.format.schema"


HARMLESS: dict[str, Any] = {
    "service_tier": "flex",
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit", "ttl": "12h"},
    "image": {"context_compression": "auto"},
    "max_tool_calls": 3,
    "metadata": {"a": "b"},
    "background": False,
    "truncation": "disabled",
    "stream_options": {"include_obfuscation": False},
    "text": {"verbosity": "medium"},
    "reasoning": {"context": "auto", "mode": "standard"},
    "include": ["file_search_call.results"],
    "conversation": None,
    "prompt": None,
    "something_new": 5,
}


@pytest.mark.parametrize("field", HARMLESS)
def test_what_changes_nothing_is_taken(field: str) -> None:
    assert converted(**{field: HARMLESS[field]}) == converted()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"prompt_cache_options": {"mode": "explicit", "prewarm": True}}, "prompt_cache_options.prewarm"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"reasoning": {"summary": "concise"}}, "reasoning.summary"),
    ({"reasoning": {"context": "current_turn"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"n": 2}, "n"),
    ({"messages": []}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1].type"),
    ({"tools": [{"type": "mcp", "server_label": "s", "server_url": "u"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "custom", "name": "c"}}, "tool_choice.type"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        converted(**fields)
    assert caught.value.param == param


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": "1"}, "top_p"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"store": "yes"}, "store"),
    ({"include": ["everything"]}, "include[0]"),
    ({"include": "everything"}, "include"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a" * 65: "b"}}, "metadata"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"instructions": ["a"]}, "instructions"),
    ({"truncation": "middle"}, "truncation"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"text": {"verbosity": "chatty"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"name": "f"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
    ({"tools": [TOOL | {"parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}},
        "tool_choice.mode",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        converted(**fields)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert param in caught.value.message


def test_counting_reads_what_makes_the_prompt() -> None:
    fields = {"model": "m", "tools": [TOOL], "reasoning": {"effort": "low"}}
    wire = CountRequest.model_validate(fields)
    assert count_request(wire, HI).prompt == response_request(ResponseRequest.model_validate(fields), HI).prompt
    with pytest.raises(UnsupportedParameter, match="personality"):
        refuse_unsupported(CountRequest(model="m", personality="friendly"))
