"""`<tool_call><function=name><parameter=city>Paris</parameter></function></tool_call>`, line by line.

Qwen 3 Coder and the Qwen 3.5 family, by their chat templates. A parameter is a text or JSON, and only the tool's
schema says which. The outer tag is left out at times.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vmm_server.prompt.formats import lark, schemas
from vmm_server.prompt.formats.base import Arguments, CallStart, Spell, ToolParser
from vmm_server.prompt.formats.json_text import call_objects, spoken
from vmm_server.prompt.formats.literals import (
    is_beginning_of_json,
    quoted,
    text_up_to,
    whole_json,
    whole_python,
    whole_up_to,
)
from vmm_server.prompt.formats.tape import (
    Parts,
    Tape,
    TapeParser,
    attempt,
    comes,
    expect,
    next_character,
    take_end,
    take_if,
    take_name,
    take_space,
    text_until,
)
from vmm_server.requests import Composite, Tool, ToolUse

START = "<tool_call>"
END = "</tool_call>"
_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"

_MAX_TAGS = 64
"""End tags that a parameter's JSON may hold, in its strings: each means to read it again."""
_TEXT = frozenset({"string"})

Types = Mapping[str, frozenset[str]]
"""What each parameter of a tool may be; one that is missing may be anything."""


class Qwen3Coder:
    """The format `qwen3_coder`."""

    name = "qwen3_coder"
    special_tokens: tuple[str, ...] = (START, END)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, {tool.name: _types(tool) for tool in tools}))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """Parameters one after the other. A tool that needs more is called in JSON, which these models know too."""

        def body(tool: Tool, parts: lark.Parts) -> str:
            properties = schemas.properties(tool)
            if properties is None or not all(map(_can_be_told, properties)):
                return lark.sequence([lark.quote("\n"), lark.call_object(tool, parts), lark.quote("\n")])
            items = [(_parameter(one, parts), one.is_required) for one in properties]
            listed = parts.listed(items, "")
            return lark.sequence([lark.quote(f"\n{_FUNCTION}{tool.name}>\n"), listed, lark.quote(f"{_FUNCTION_END}\n")])

        start, end = spell(START), spell(END)
        between = lark.sequence([end, lark.quote("\n"), start])
        return lark.calls(
            use, body, start=start, between=between, end=end, rules=lark.text_up_to(_PARAMETER_END, lark.quote)
        )

    def start(self, spell: Spell) -> str:
        """`<tool_call>`."""
        return spell(START)


def _can_be_told(one: schemas.Property) -> bool:
    """Whether a reader knows what the value is, text or JSON."""
    if ">" in one.name or "\n" in one.name:
        return False
    choices = one.choices
    if choices is not None:
        return not any(_PARAMETER_END in choice or choice != choice.strip("\n") for choice in choices)
    return one.is_text or one.is_never_text


def _parameter(one: schemas.Property, parts: lark.Parts) -> str:
    head = lark.quote(f"{_PARAMETER}{one.name}>\n")
    if one.is_text:
        return lark.sequence([head, "argument_text", lark.quote("\n")])
    value = lark.one_of(one.choices) if one.choices is not None else parts.add(one.json)
    return lark.sequence([head, value, lark.quote(f"\n{_PARAMETER_END}\n")])


def _types(tool: Tool) -> Types:
    members = schemas.parsed(tool).get("properties")
    if not isinstance(members, dict):
        return {}
    found = {name: _types_of(member) for name, member in members.items()}
    return {name: types for name, types in found.items() if types is not None}


def _types_of(schema: Any) -> frozenset[str] | None:
    """The types of a schema's values; `None`: any."""
    if not isinstance(schema, dict):
        return None
    if isinstance(types := schema.get("type"), str | list):
        return frozenset([types] if isinstance(types, str) else filter(_is_text, types))
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset(_type(json.dumps(value)) for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            found = [_types_of(option) for option in options]
            return None if None in found else frozenset().union(*(types for types in found if types is not None))
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _answer(tape: Tape, tools: Mapping[str, Types]) -> Parts:
    while (yield from text_until(tape, (START, _FUNCTION))):
        yield from attempt(tape, _calls(tape, tools))


def _calls(tape: Tape, tools: Mapping[str, Types]) -> Parts:
    yield from take_space(tape)
    if (yield from take_if(tape, START)):
        yield from take_space(tape)
    if (yield from next_character(tape)) == "{":
        yield from call_objects(tape, tools.keys())
    else:
        yield from _function(tape, tools)
    yield from take_space(tape)
    yield from take_end(tape, END)


def _function(tape: Tape, tools: Mapping[str, Types]) -> Parts:
    yield from expect(tape, _FUNCTION)
    name = yield from take_name(tape, tools.keys())
    yield from expect(tape, ">")
    yield CallStart(name)
    yield Arguments("{")
    is_first = True
    while True:
        yield from take_space(tape)
        if not (yield from take_if(tape, _PARAMETER)):
            break
        key = (yield from whole_up_to(tape, ">")).strip()
        yield Arguments(f"{'' if is_first else ', '}{quoted(key)}: ")
        is_first = False
        yield from take_if(tape, "\n")
        yield from _value(tape, tools[name].get(key))
    if not (yield from comes(tape, END)):
        yield from expect(tape, _FUNCTION_END)
    yield Arguments("}")


def _value(tape: Tape, types: frozenset[str] | None) -> Parts:
    if types == _TEXT:
        yield from spoken(text_up_to(tape, "\n" + _PARAMETER_END, _PARAMETER_END))
        return
    text = yield from whole_up_to(tape, _PARAMETER_END)
    for _ in range(_MAX_TAGS):
        if types is None or "string" in types or not is_beginning_of_json(text):
            break
        text += _PARAMETER_END + (yield from whole_up_to(tape, _PARAMETER_END))
    yield Arguments(_converted(text.removesuffix("\n"), types))


def _converted(text: str, types: frozenset[str] | None) -> str:
    """The JSON that a parameter's text means."""
    found = whole_json(text)
    if types is None:
        return found if found is not None and found[0] in "[{" else quoted(text)
    for one in (found, whole_python(text)):
        if one is not None and _type(one) in types | ({"integer"} if "number" in types else set()):
            return one
    return quoted(text) if found is None or "string" in types else found


def _type(value: str) -> str:
    """The type of a JSON text, by how it begins."""
    named = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}
    return named.get(value[0]) or ("number" if re.search("[.eE]", value) else "integer")
