"""`format`'s JSON schemas, read as Ollama's engine reads them. Pure.

JSON schema lets an object have any properties beside those it lists. llama.cpp (grammars/README.md) takes the list for
all there are unless `additionalProperties` says more, and clients count on it: a model that may add properties goes on
adding them. A list is only closed where it alone says what its object has. Where several parts of a schema describe one
object, closing one would shut out what another asks for, and the whole schema stays as it is.
"""

from collections.abc import Iterator, Mapping

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Hold schemas by name."""
_NESTED = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
"""Hold a schema, or an array of them."""
_DECIDED = ("additionalProperties", "unevaluatedProperties")
"""Say what an object may have beside its list."""
_APPLIED = ("properties", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")
"""Each describes the object that its schema is about; so does every element of `allOf`."""


def closed(schema: Mapping[str, object]) -> Mapping[str, object]:
    """The schema with each list of properties closed that does not say it is open; its keys keep their order."""
    return schema if any(_is_shared(part) for part in _parts(schema)) else _closed(schema)


def _closed(schema: Mapping[str, object]) -> dict[str, object]:
    def inside(value: object) -> object:
        if isinstance(value, list):
            return [inside(element) for element in value]
        return _closed(value) if isinstance(value, dict) else value

    shut: dict[str, object] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            shut[key] = {name: inside(part) for name, part in value.items()}
        else:
            shut[key] = inside(value) if key in _NESTED else value
    if _is_whole(schema) and not any(key in schema for key in _DECIDED):
        shut["additionalProperties"] = False
    return shut


def _is_whole(schema: Mapping[str, object]) -> bool:
    """Whether it lists properties, all that it requires among them."""
    listed, required = schema.get("properties"), schema.get("required")
    if not isinstance(listed, dict):
        return False
    names = list(listed)  # `required` may hold anything yet
    return not isinstance(required, list) or all(name in names for name in required)


def _parts(schema: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The schema and all that are in it."""
    yield schema
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            inner = list(value.values())
        elif key in _NESTED:
            inner = value if isinstance(value, list) else [value]
        else:
            continue
        for part in inner:
            if isinstance(part, dict):
                yield from _parts(part)


def _is_shared(schema: Mapping[str, object]) -> bool:
    """Whether several parts of a schema describe one object."""
    together = schema.get("allOf")
    parts = len(together) if isinstance(together, list) else 0
    return parts + sum(key in schema for key in _APPLIED) > 1
