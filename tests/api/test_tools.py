"""What holds for the tools of every dialect."""

import json

import pytest

from vmm_server.api.tools import MAX_TOOLS, make_tool, make_tool_use
from vmm_server.errors import InvalidRequest
from vmm_server.requests import Tool, ToolUse


def named(name: str) -> Tool:
    return make_tool(name, None, None, where="tools[0].function")


@pytest.mark.parametrize("name", ["f", "get_weather", "a-b", "admin.tools.list", "mcp__" + "x" * 123, "7"])
def test_names_of_every_vendor_are_taken(name: str) -> None:
    assert named(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 129, "two words", "a/b", 'a"b', "né", "a\n", "f("])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        named(name)
    assert refused.value.param == "tools[0].function.name"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        ({"properties": {"b": {}, "a": {}}}, {"type": "object", "properties": {"b": {}, "a": {}}}),
        ({"title": "é", "type": "object"}, {"title": "é", "type": "object"}),
    ],
)
def test_arguments_are_an_object_in_the_order_given(
    parameters: dict[str, object] | None, expected: dict[str, object]
) -> None:
    tool = make_tool("f", None, parameters, where="tools[0]", schema_field="input_schema")
    assert tool.parameters == json.dumps(expected, ensure_ascii=False)
    assert tool.param == "tools[0].input_schema"


@pytest.mark.parametrize("kind", ["string", ["object", "null"], None, 5])
def test_arguments_of_another_type_are_refused(kind: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_tool("f", None, {"type": kind}, where="tools[0].function")
    assert refused.value.param == "tools[0].function.parameters.type"


def test_properties_are_an_object() -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_tool("f", None, {"properties": ["city"]}, where="tools[0]", schema_field="input_schema")
    assert refused.value.param == "tools[0].input_schema.properties"


def test_tools_together() -> None:
    tools = named("a"), named("b")
    assert make_tool_use(tools) == ToolUse(tools)
    one = make_tool_use(tools, required=True, allowed={"b": "tool_choice"}, parallel=False)
    assert one == ToolUse(tools, required=True, allowed=frozenset("b"), parallel=False)
    assert [tool.name for tool in one.callable] == ["b"]


def test_too_many_tools_and_two_of_one_name_are_refused() -> None:
    for tools in ([named("a"), named("a")], [named(f"f{number}") for number in range(MAX_TOOLS + 1)]):
        with pytest.raises(InvalidRequest) as refused:
            make_tool_use(tools, param="functions")
        assert refused.value.param == "functions"
    make_tool_use([named(f"f{number}") for number in range(MAX_TOOLS)])


def test_a_name_that_is_not_offered_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_tool_use([named("a")], allowed={"a": "tool_choice", "c": "tool_choice.tools[1].name"})
    assert refused.value.param == "tool_choice.tools[1].name"
    assert "'c'" in refused.value.message


def test_the_one_tool_that_has_to_be_called_is_called_once() -> None:
    tools = [named("f"), named("g")]
    assert not make_tool_use(tools, required=True, allowed={"f": "tool_choice"}).parallel
    assert make_tool_use(tools, required=True, allowed={"f": "a", "g": "b"}).parallel
    assert make_tool_use(tools, required=True).parallel
    assert make_tool_use(tools, allowed={"f": "tool_choice"}).parallel
