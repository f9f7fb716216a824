"""Which schemas can be told property by property."""

import json
from typing import Any

import pytest

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.formats import schemas
from vmm_server.requests import Tool

MEMBERS = {"a": {"type": "string"}, "b": {"type": "integer", "minimum": 3}}


def tool(schema: object) -> Tool:
    return Tool("now", parameters=json.dumps(schema), param="tools[3]")


def test_properties_come_with_what_they_refer_to() -> None:
    schema = {
        "properties": {**MEMBERS, "c": {"$ref": "#/$defs/d"}},
        "required": ["b"],
        "$defs": {"d": {"type": "null"}},
    }
    found = schemas.properties(tool(schema))
    assert found is not None
    assert [(one.name, one.is_required) for one in found] == [("a", False), ("b", True), ("c", False)]
    assert json.loads(found[2].json) == {"$ref": "#/$defs/d", "$defs": {"d": {"type": "null"}}}
    assert [one.is_text for one in found] == [True, False, False]
    assert [one.is_never_text for one in found] == [False, True, False]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": MEMBERS, "minProperties": 1},
        {"properties": MEMBERS, "anyOf": [{"required": ["a"]}]},
        {"properties": MEMBERS, "required": ["c"]},
        {"properties": {"a": True}},
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#/properties/b"}, "b": {}}},
        {"properties": {"a": {"items": {"$ref": "https://example.org/schema"}}}},
        True,
    ],
)
def test_what_says_more_cannot_be_told_so(schema: object) -> None:
    assert schemas.properties(tool(schema)) is None


@pytest.mark.parametrize(
    ("schema", "choices"),
    [
        ({"enum": ["a", "b"]}, ["a", "b"]),
        ({"const": "a", "type": "string", "description": "x"}, ["a"]),
        ({"enum": ["a", 1]}, None),
        ({"enum": []}, None),
        ({"enum": ["a"], "const": "a"}, None),
        ({"enum": ["a"], "maxLength": 0}, None),
        ({"type": "string"}, None),
    ],
)
def test_choices_are_texts_and_nothing_else_is_said(schema: dict[str, Any], choices: list[str] | None) -> None:
    assert schemas.Property("a", schema, True, {}).choices == choices


def test_arguments_are_an_object() -> None:
    assert json.loads(schemas.of_object(tool({"properties": MEMBERS}))) == {"properties": MEMBERS, "type": "object"}
    assert json.loads(schemas.of_object(tool(True))) == {"type": "object"}
    kept = tool({"type": "object", "properties": {"b": {}, "a": {}}})
    assert schemas.of_object(kept) == kept.parameters


def test_a_schema_that_is_too_deep_is_refused_by_its_field() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"anyOf": [deep]}
    with pytest.raises(InvalidRequest, match="nested 601 deep") as caught:
        schemas.of_object(tool(deep))
    assert caught.value.param == "tools[3]"
