"""Messages and tools as templates in Go's language see them, after the types in Ollama's template/template.go."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from vmm_server.prompt.budget import Budget
from vmm_server.prompt.text_template.functions import TemplateFunction
from vmm_server.prompt.text_template.values import JsonList, JsonMap, Struct, TypeNames, to_json
from vmm_server.prompt.turns import tool_schemas
from vmm_server.requests import Message, Tool, ToolCall

_TYPESCRIPT = MappingProxyType(
    {
        "string": "string",
        "number": "number",
        "integer": "number",
        "boolean": "boolean",
        "array": "any[]",
        "object": "Record<string, any>",
        "null": "null",
    }
)


def message_struct(message: Message, call_names: Mapping[str, str]) -> Struct:
    """One message. A tool's result names the tool by itself, or by the call that it answers.

    A call's arguments are a map; where a model wrote none, they are the text that it wrote.
    """
    name = message.name or call_names.get(message.tool_call_id or "", "")
    fields: dict[str, object] = {
        "Role": message.role,
        "Content": message.content,
        "Thinking": message.thinking or "",
        "Images": [],
        "ToolCalls": [_call(call, index) for index, call in enumerate(message.tool_calls)],
        "ToolName": name if message.role == "tool" else "",
        "ToolCallID": message.tool_call_id or "",
    }
    words = {"role": "Role", "content": "Content", "thinking": "Thinking", "tool_calls": "ToolCalls"}
    words |= {"tool_name": "ToolName", "tool_call_id": "ToolCallID"}
    shown = {word: fields[field] for word, field in words.items() if fields[field] or word in ("role", "content")}
    return Struct("message", fields, shown)


def tool_list(tools: Sequence[Tool]) -> JsonList:
    """All tools. Raises `InvalidRequest` for a schema that cannot be read."""
    return JsonList(_tool(schema) for schema in tool_schemas(tools))


def _call(call: ToolCall, index: int) -> Struct:
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    arguments = JsonMap(value) if isinstance(value, dict) else call.arguments
    function = {"Index": index, "Name": call.name, "Arguments": arguments}
    words = {"index": index, "name": call.name, "arguments": arguments}
    shown = {"id": call.id, "function": words} if call.id else {"function": words}
    return Struct("tool call", {"ID": call.id or "", "Function": Struct("called function", function, words)}, shown)


def _tool(schema: Mapping[str, object]) -> Struct:
    function = _mapping(schema["function"])
    parameters = _mapping(function["parameters"])
    fields: dict[str, object] = {
        "Name": function["name"],
        "Description": function["description"],
        "Parameters": _parameters(parameters),
    }
    tool = {"Type": schema["type"], "Items": None, "Function": Struct("function", fields, function)}
    return Struct("tool", tool, schema)


def _parameters(schema: Mapping[str, object]) -> Struct:
    fields = {
        "Type": _text(schema.get("type")),
        "Defs": schema.get("$defs"),
        "Items": schema.get("items"),
        "Required": _list(schema.get("required")),
        "Properties": _properties(schema),
    }
    return Struct("parameters", fields, schema)


def _properties(schema: Mapping[str, object]) -> JsonMap:
    properties = _mapping(schema.get("properties"))
    return JsonMap({name: _property(_mapping(value), value) for name, value in properties.items()})


def _property(schema: Mapping[str, object], written: object) -> Struct:
    types = schema.get("type")
    any_of = [_property(_mapping(value), value) for value in _list(schema.get("anyOf"))]
    fields: dict[str, object] = {
        "AnyOf": any_of,
        "Type": TypeNames(_list(types) if isinstance(types, list) else [types] if isinstance(types, str) else []),
        "Items": schema.get("items"),
        "Description": _text(schema.get("description")),
        "Enum": _list(schema.get("enum")),
        "Properties": _properties(schema),
        "Required": _list(schema.get("required")),
    }
    fields["ToTypeScriptType"] = _typescript(fields)
    return Struct("property", fields, written)


def _typescript(fields: Mapping[str, object]) -> str:
    """A property's type in TypeScript's words."""
    any_of = [str(part["ToTypeScriptType"]) for part in _list(fields["AnyOf"]) if isinstance(part, Struct)]
    types = [_TYPESCRIPT.get(str(name), "any") for name in _list(fields["Type"])]
    return " | ".join(any_of or types or ["any"])


def _to_typescript_type(_: Budget, value: object) -> object:
    return value.get("ToTypeScriptType", "any") if isinstance(value, Struct) else "any"


def _json(budget: Budget, value: object) -> str:
    return to_json(value, budget)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


OLLAMA_FUNCTIONS: Mapping[str, TemplateFunction] = MappingProxyType(
    {
        "json": TemplateFunction(_json, 1, 1),
        "toTypeScriptType": TemplateFunction(_to_typescript_type, 1, 1),
    }
)
"""What Ollama adds to Go's functions, but for the dates, which a rendering brings."""
