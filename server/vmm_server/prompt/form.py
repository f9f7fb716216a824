"""What an answer has to look like: its thinking, its form, the calls it has to or may make, in one grammar.

Thinking is free up to its end marker; from there on every token is under the mask, in the same run. The texts that
mean something to whoever reads the answer (`prompt.answer`, the parsers of `prompt.formats`) are in the grammar as
that reader sees them: a marker that is a special token may also not be spelt letter by letter where it means nothing.
"""

import json
import re
from collections.abc import Collection
from dataclasses import replace
from types import MappingProxyType

from vmm_server.prompt.answer import ThinkingState
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat, Spell, ToolFormat
from vmm_server.requests import Composite, Constraint, JsonObject, JsonSchema, Tool, ToolUse

_ANY = "/(?s:.*)/"
_BARE_OBJECTS = MappingProxyType({"llama3_json": "parameters"})
"""Formats whose calls are objects without anything around them, and the member that has the arguments."""
_OPEN = frozenset(("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"))
"""Where one of these stands in a schema, others than its `properties` may be meant to be there."""
_BLANK = r"BLANK: /[ \n]{0,4}/"
"""What templates put around markers; whoever reads the answer drops it."""


def answer_constraint(
    format: ChatFormat, *, thinking: ThinkingState, tools: ToolUse | None, form: Constraint | None, spell: Spell
) -> Constraint | Composite | None:
    """The constraint of a chat's answer; `None` where nothing is to be enforced.

    Required tools or a form hold from the end of thinking on. With tools that are not required it is the form or
    calls. Strict tools, and calls of which there may be only one, leave the text free until a call begins.
    """
    body = _body(format.tools, tools, form, spell)
    if body is None or format.reasoning is None or thinking is ThinkingState.NONE:
        return body
    if not isinstance(body, Composite):
        body = Composite("start: @form", (("form", body),), body.param)
    thought = _thought(format.reasoning, spell)
    start = f"thought BLANK {_tagged(format.reasoning, spell)}"
    if thinking is ThinkingState.POSSIBLE:
        start = f"answer | BLANK {spell(format.reasoning.start)} {start}"
    return replace(body, lark="\n".join([f"start: {start}", thought, _BLANK, _renamed(body.lark, "answer")]))


def _body(
    format: ToolFormat, tools: ToolUse | None, form: Constraint | None, spell: Spell
) -> Constraint | Composite | None:
    """What comes after thinking."""
    if tools is None or not tools.callable:
        return form
    tools = replace(tools, tools=tuple(map(_closed, tools.callable)))
    if tools.required:
        return _calls(format, tools, spell)
    if form is not None:
        return _form_or_calls(format, tools, form, spell)
    if tools.parallel and not any(tool.strict for tool in tools.callable):
        return None
    return _text_or_calls(format, tools, spell)


def _form_or_calls(format: ToolFormat, tools: ToolUse, form: Constraint, spell: Spell) -> Composite:
    """The form, or calls in its place."""
    if format.name in _BARE_OBJECTS and isinstance(form, JsonSchema | JsonObject):
        calls = _bare_objects(tools, _BARE_OBJECTS[format.name])
    else:
        calls = _calls(format, tools, spell)
    lark = f"start: @form | calls\n{_renamed(calls.lark, 'calls')}"
    return replace(calls, lark=lark, parts=(("form", form), *calls.parts), param=form.param)


def _bare_objects(tools: ToolUse, key: str) -> Composite:
    """One call that is a JSON object and nothing else, written so that another one could stand in its place.

    What two kinds of objects begin with is told apart where both are JSON to llguidance (its docs/syntax.md,
    "Subgrammar details"), and not where one is spelt out.
    """
    parts: list[tuple[str, Constraint]] = []
    for tool in tools.callable:
        members = {"name": {"const": tool.name}, key: _moved(json.loads(tool.parameters), f"#/properties/{key}")}
        schema = {"type": "object", "properties": members, "required": ["name", key], "additionalProperties": False}
        text = json.dumps(schema, ensure_ascii=False)
        parts.append((f"call_{len(parts)}", JsonSchema(text, tool.param, lenient=not tool.strict)))
    return Composite(f"start: {' | '.join(f'@{name}' for name, _ in parts)}", tuple(parts), tools.param)


def _closed(tool: Tool) -> Tool:
    """The tool without arguments that its schema does not name, if it names any: a model that may invent some does."""
    schema = json.loads(tool.parameters)
    if "properties" not in schema or not schema.keys().isdisjoint(_OPEN):
        return tool
    return replace(tool, parameters=json.dumps({**schema, "additionalProperties": False}, ensure_ascii=False))


def _moved(schema: object, root: str) -> object:
    """A schema that stands at `root` of another: what refers to itself still does."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _calls(format: ToolFormat, tools: ToolUse, spell: Spell) -> Composite:
    """Calls as the model writes them. Only a strict tool's schema is one that has to be enforced to the letter."""
    calls = format.grammar(tools, spell)
    strict = {tool.param for tool in tools.callable if tool.strict}
    parts = ((name, part if part.param in strict else _lenient(part)) for name, part in calls.parts)
    return replace(calls, parts=tuple(parts))


def _lenient(part: Constraint) -> Constraint:
    return replace(part, lenient=True) if isinstance(part, JsonSchema) else part


def _text_or_calls(format: ToolFormat, tools: ToolUse, spell: Spell) -> Composite:
    """Any text, which ends or is followed by calls: where it spells the beginning of one, a call follows."""
    calls = _calls(format, tools, spell)
    start, literal = _start(format, spell)
    markers = {literal, *map(json.dumps, format.special_tokens)}
    if format.name in _BARE_OBJECTS:
        markers.add(r'/\{[ \t\n\r]+"/')  # read as a beginning, but not written as one
    text = f"TEXT: {_without(markers)}"
    if start != literal:  # a special token: the text ends by itself where it comes
        return replace(calls, lark=f"start: TEXT calls?\n{text}\n{_renamed(calls.lark, 'calls')}")
    begun = _renamed(calls.lark, "calls").replace(literal, "", 1)
    text_to_start = f"text[suffix={literal}]: {_without(markers - {literal})}"
    return replace(calls, lark=f"start: TEXT | text calls\n{text}\n{text_to_start}\n{begun}")


def _start(format: ToolFormat, spell: Spell) -> tuple[str, str]:
    """How a call begins: as the model writes it, and as whoever reads it sees it."""
    spelt: list[str] = []

    def listening(text: str) -> str:
        spelt.append(text)
        return spell(text)

    start = format.start(listening)
    return start, json.dumps(spelt[-1]) if spelt else start


def _without(literals: Collection[str]) -> str:
    """Any text that holds none of these, Lark strings and patterns."""
    return f"{_ANY} & ~({_ANY} ({' | '.join(sorted(literals))}) {_ANY})" if literals else _ANY


def _thought(format: ReasoningFormat, spell: Spell) -> str:
    """The rule `thought`: any text up to the end marker, and that."""
    literal = json.dumps(format.end)
    if (end := spell(format.end)) == literal:
        return f"thought[suffix={literal}]: {_ANY}"
    return f"thought: THOUGHT {end}\nTHOUGHT: {_without((literal,))}"


def _tagged(format: ReasoningFormat, spell: Spell) -> str:
    """The answer, with or without what the model puts around one that follows thinking."""
    if format.answer is None:
        return "answer"
    start, end = map(spell, format.answer)
    return f"(answer | {start} BLANK answer BLANK {end})"


def _renamed(lark: str, name: str) -> str:
    """A grammar whose `start` has another name."""
    return re.sub(r"\A\s*start:", f"{name}:", lark)
