"""`tools`, `tool_choice` and their older names → `ToolUse`."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.api.body import parse_body
from vmm_server.api.openai.convert import chat_request
from vmm_server.api.openai.wire import ChatCompletionRequest
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, Tool, ToolUse

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
EMPTY = '{"type": "object", "properties": {}}'
F = {"name": "f", "description": "Does f.", "parameters": SCHEMA, "strict": True}
TOOLS = [{"type": "function", "function": F}, {"type": "function", "function": {"name": "g"}}]
BOTH = (Tool("f", "Does f.", json.dumps(SCHEMA), strict=True), Tool("g", None, EMPTY))


def use(**fields: object) -> ToolUse | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    prompt = chat_request(parse_body(json.dumps(body).encode(), ChatCompletionRequest)).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.tools


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, object]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def test_tools_are_told_with_the_fields_they_came_in() -> None:
    got = use(tools=TOOLS)
    assert got == ToolUse(BOTH)
    assert [tool.param for tool in got.tools] == ["tools[0].function.parameters", "tools[1].function.parameters"]
    assert got.param == "tools"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolUse(BOTH)),
        ("auto", ToolUse(BOTH)),
        ("required", ToolUse(BOTH, required=True)),
        (named("g"), ToolUse(BOTH, required=True, allowed=frozenset({"g"}), parallel=False)),
        (allowed("auto", "f"), ToolUse(BOTH, allowed=frozenset({"f"}))),
        (allowed("required", "f", "g"), ToolUse(BOTH, required=True, allowed=frozenset({"f", "g"}))),
    ],
)
def test_tool_choice_is_not_ignored(choice: object, expected: ToolUse) -> None:
    assert use(tools=TOOLS, tool_choice=choice) == expected


def test_none_leaves_the_tools_out_of_the_prompt() -> None:
    assert use(tools=TOOLS, tool_choice="none") is None
    assert use(functions=[F], function_call="none") is None


def test_parallel_calls_can_be_refused() -> None:
    assert use(tools=TOOLS, parallel_tool_calls=False) == ToolUse(BOTH, parallel=False)
    assert use(tools=TOOLS, parallel_tool_calls=True) == ToolUse(BOTH)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_no_tools_need_no_choice(choice: object) -> None:
    assert use(tools=[], tool_choice=choice, functions=[], function_call=choice, parallel_tool_calls=True) is None


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (None, ToolUse(BOTH[:1], parallel=False, param="functions")),
        ("auto", ToolUse(BOTH[:1], parallel=False)),
        ({"name": "f"}, ToolUse(BOTH[:1], required=True, allowed=frozenset({"f"}), parallel=False)),
    ],
)
def test_functions_are_tools_called_one_at_a_time(call: object, expected: ToolUse) -> None:
    got = use(functions=[F], function_call=call)
    assert got == expected
    assert (got.param, got.tools[0].param) == ("functions", "functions[0].parameters")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [*TOOLS, {"type": "web_search"}]}, "tools[2].type"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        (
            {
                "tools": TOOLS,
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "custom"}]},
                },
            },
            "tool_choice.allowed_tools.tools[0].type",
        ),
    ],
)
def test_what_is_no_function_is_not_supported(fields: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        use(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "f"}, "tools"),
        ({"tools": [{"function": F}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [named("two words")]}, "tools[0].function.name"),
        ({"tools": [named("f"), named("f")]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": named("h")}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": allowed("maybe", "f")}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        (
            {"tools": TOOLS, "tool_choice": allowed("auto", "f", "h")},
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": named("f")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "none", "function_call": {"name": "f"}}, "function_call"),
        ({"functions": [F], "tools": TOOLS}, "functions"),
        ({"functions": [F], "function_call": "required"}, "function_call"),
        ({"functions": [F], "function_call": {"name": "g"}}, "function_call.name"),
        ({"functions": [F], "function_call": []}, "function_call"),
        ({"functions": [F], "tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"functions": [{"description": "x"}]}, "functions[0].name"),
    ],
)
def test_wrong_tools_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        use(**fields)
    assert refused.value.param == param
    assert refused.value.message.startswith(param)


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3) | st.sampled_from(["f", "function", "allowed_tools", "required"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "allowed_tools", "mode", "tools", "name"]), inner)
    ),
    max_leaves=6,
)


@given(JSON, JSON)
def test_any_choice_converts_or_is_refused(choice: object, call: object) -> None:
    for fields in ({"tools": TOOLS}, {"functions": [F]}, {}):
        with suppress(InvalidRequest):
            use(tool_choice=choice, function_call=call, **fields)


@given(JSON)
def test_any_tools_convert_or_are_refused(tools: object) -> None:
    with suppress(InvalidRequest):
        use(tools=tools)
