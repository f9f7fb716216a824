"""Schemas of `format` have the properties that they list, and no others."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmm_server.api.ollama.schemas import closed

Pair = tuple[dict[str, Any], Any]
"""A schema, and a value that it describes and that has no properties but listed ones."""

LEAVES: st.SearchStrategy[Pair] = st.sampled_from(
    [({"type": "integer"}, 3), ({"type": "string"}, "x"), ({}, {"any": 1})]
)


def named(members: dict[str, Pair]) -> Pair:
    schemas = {name: schema for name, (schema, _) in members.items()}
    return {"type": "object", "properties": schemas}, {name: value for name, (_, value) in members.items()}


def grown(pairs: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.dictionaries(st.sampled_from(["a", "properties", "items"]), pairs, max_size=3).map(named),
        pairs.map(lambda pair: ({"type": "array", "items": pair[0]}, [pair[1], pair[1]])),
        st.tuples(pairs, pairs).map(lambda two: ({"anyOf": [two[0][0], two[1][0]]}, two[0][1])),
        pairs.map(lambda pair: ({"allOf": [pair[0]], "description": "x"}, pair[1])),
        pairs.map(lambda pair: ({"additionalProperties": pair[0]}, {"a": pair[1]})),
    )


@given(st.recursive(LEAVES, grown, max_leaves=8))
def test_a_closed_schema_takes_what_is_listed_and_no_more(pair: Pair) -> None:
    schema, value = pair
    shut = jsonschema_rs.validator_for(dict(closed(schema)))
    assert jsonschema_rs.validator_for(schema).is_valid(value)
    assert shut.is_valid(value)
    if "properties" in schema:
        assert not shut.is_valid(value | {"more": 1})


def test_keys_keep_their_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {"properties": {"y": {}, "b": {}}}}, "required": ["z"]}
    assert json.dumps(closed(schema)) == (
        '{"type": "object", "properties": {"z": {}, "a": {"properties": {"y": {}, "b": {}}, '
        '"additionalProperties": false}}, "required": ["z"], "additionalProperties": false}'
    )


A: dict[str, Any] = {"properties": {"a": {}}}
B: dict[str, Any] = {"properties": {"b": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {},
        {"properties": {"a": {}}, "additionalProperties": True},
        {"properties": {"a": {}}, "unevaluatedProperties": {"type": "string"}},
        A | {"required": ["a", "b"]},
        {"allOf": [A, B]},
        A | {"anyOf": [B, {"required": ["c"]}]},
        A | {"$ref": "#/$defs/b", "$defs": {"b": B}},
        {"properties": {"c": A | {"oneOf": [B]}}},
        {"enum": [{"properties": {}}], "default": {"properties": {}}},
    ],
)
def test_what_says_that_it_is_open_or_describes_an_object_in_parts_stays(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_definitions_are_closed() -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": A}}
    assert closed(schema) == {"$ref": "#/$defs/a", "$defs": {"a": A | {"additionalProperties": False}}}


def test_an_answer_has_the_listed_properties_alone(live_server: Any) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    said = {"role": "user", "content": '{"age": 22, "name": "x"}'}
    body = {"model": "echo", "messages": [said], "stream": False, "options": {"temperature": 0, "num_predict": 60}}
    answer = live_server.client.post("/api/chat", json=body | {"format": schema}).json()
    assert json.loads(answer["message"]["content"]).keys() == {"age"}
    open_schema = schema | {"additionalProperties": True}
    answer = live_server.client.post("/api/chat", json=body | {"format": open_schema}).json()
    assert json.loads(answer["message"]["content"]) == {"age": 22, "name": "x"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=2),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.dictionaries(st.sampled_from(["properties", "required", "items", "anyOf", "allOf", "$defs", "a"]), parts)
    ),
)


@given(st.dictionaries(st.sampled_from(["properties", "required", "items", "anyOf", "allOf", "a"]), JSON))
@example({"properties": {}, "required": [[]]})
def test_no_schema_is_too_odd(schema: dict[str, Any]) -> None:
    assert closed(schema).keys() - schema.keys() <= {"additionalProperties"}
