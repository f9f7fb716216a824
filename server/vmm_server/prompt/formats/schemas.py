"""What formats that are no JSON can say of a tool's arguments: one property after the other."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmm_server.errors import InvalidRequest
from vmm_server.requests import Tool

_MAX_DEPTH = 200

_SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_SAYS_PROPERTIES = _SAYS_NOTHING | {"type", "properties", "required", "additionalProperties", "strict"}
_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef|recursiveRef)": "(?!#/(?:\$defs|definitions)/)')


@dataclass(frozen=True, slots=True)
class Property:
    """One argument of a tool."""

    name: str
    schema: dict[str, Any]
    is_required: bool
    definitions: dict[str, Any]
    """What the schema may refer to: the members `$defs` and `definitions` of the whole."""

    @property
    def json(self) -> str:
        """The schema, complete in itself, as JSON text."""
        return json.dumps({**self.schema, **self.definitions}, ensure_ascii=False)

    @property
    def is_plain(self) -> bool:
        """Any value of its `type` will do."""
        return self.schema.keys() <= _SAYS_NOTHING | {"type"}

    @property
    def is_text(self) -> bool:
        """Any text will do."""
        return self.is_plain and self.schema.get("type") == "string"

    @property
    def choices(self) -> list[str] | None:
        """The texts it may be, if that is what the schema says."""
        kinds = self.schema.keys() - _SAYS_NOTHING - {"type"}
        if self.schema.get("type", "string") != "string" or kinds not in ({"const"}, {"enum"}):
            return None
        values = [self.schema["const"]] if "const" in kinds else self.schema["enum"]
        is_listed = isinstance(values, list) and values and all(isinstance(value, str) for value in values)
        return values if is_listed else None

    @property
    def is_never_text(self) -> bool:
        """No string is valid, as far as `type` says."""
        types = self.schema.get("type")
        return types is not None and "string" not in ([types] if isinstance(types, str) else types)


def parsed(tool: Tool) -> dict[str, Any]:
    """A tool's schema. Raises `InvalidRequest` for one that is too deep to be looked through."""
    schema = json.loads(tool.parameters)
    depth, level = 0, [schema]
    while level:
        depth += 1
        level = [inner for value in level if isinstance(value, dict | list) for inner in _inside(value)]
    if depth > _MAX_DEPTH:
        raise InvalidRequest(
            f"{tool.param}: a schema is nested {depth} deep, the limit is {_MAX_DEPTH}", param=tool.param
        )
    return schema if isinstance(schema, dict) else {}


def of_object(tool: Tool) -> str:
    """The schema of a tool's arguments, which are always an object, also where it does not say so."""
    schema = parsed(tool)
    return tool.parameters if schema.get("type") == "object" else json.dumps({**schema, "type": "object"})


def properties(tool: Tool) -> tuple[Property, ...] | None:
    """A tool's arguments, if its schema says no more than what each one is like and whether it is required."""
    schema = parsed(tool)
    members, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(members, dict) or not isinstance(required, list):
        return None
    if not schema.keys() <= _SAYS_PROPERTIES | {"$schema", "$id", *_DEFINITIONS} or not set(required) <= members.keys():
        return None
    if _REFERENCE.search(json.dumps(schema)) or not all(isinstance(member, dict) for member in members.values()):
        return None
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    return tuple(Property(name, member, name in required, definitions) for name, member in members.items())


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
