"""`[get_weather(city="Paris", days=3), now()]`: a Python list of calls with keyword arguments.

Llama 3.2 and 4 as Meta documents their function calling (llama.com, "Prompt formats"; Llama 4 may put the list
between `<|python_start|>` and `<|python_end|>`), Gemma 3 as Google documents it, LFM 2 in `<|tool_call_start|>`.
"""

import re
from collections.abc import Generator, Sequence

from vmm_server.prompt.formats import lark, schemas
from vmm_server.prompt.formats.base import Arguments, CallStart, Spell, ToolParser
from vmm_server.prompt.formats.json_text import spoken
from vmm_server.prompt.formats.literals import python_value, quoted
from vmm_server.prompt.formats.tape import (
    NotACall,
    Parts,
    Tape,
    TapeParser,
    attempt,
    expect,
    next_character,
    take_end,
    take_if,
    take_name,
    take_space,
    text_until,
)
from vmm_server.requests import Composite, Tool, ToolUse

_KEYWORD = re.compile(r"[^\W\d]\w*")
_WRAPPERS = {"<|python_start|>": "<|python_end|>", "<|tool_call_start|>": "<|tool_call_end|>"}


class Pythonic:
    """The format `pythonic`."""

    name = "pythonic"
    special_tokens: tuple[str, ...] = (*_WRAPPERS, *_WRAPPERS.values())

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """The list; arguments are written as JSON where Python's literals are the same, or by `**` as a whole."""

        def body(tool: Tool, parts: lark.Parts) -> str:
            properties = schemas.properties(tool)
            if properties is None or not all(one.name.isidentifier() for one in properties):
                schema = parts.add(schemas.of_object(tool))
                return lark.sequence([lark.quote(f"{tool.name}(**"), schema, lark.quote(")")])
            items = [
                (lark.sequence([lark.quote(f"{one.name}="), _value(one, parts)]), one.is_required) for one in properties
            ]
            listed = parts.listed(items, lark.quote(", "))
            return lark.sequence([lark.quote(f"{tool.name}("), listed, lark.quote(")")])

        return lark.calls(use, body, start=lark.quote("["), between=lark.quote(", "), end=lark.quote("]"))

    def start(self, spell: Spell) -> str:
        """`[`."""
        return lark.quote("[")


def _value(one: schemas.Property, parts: lark.Parts) -> str:
    if one.schema.get("type") == "boolean" and one.is_plain:
        return lark.one_of(("True", "False"))
    return parts.add(one.json)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, ("[", *_WRAPPERS))):
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    end: str | None = None
    for start in _WRAPPERS:
        if (yield from take_if(tape, start)):
            end = _WRAPPERS[start]
            yield from take_space(tape)
    yield from expect(tape, "[")
    while True:
        yield from take_space(tape)
        yield from _call(tape, names)
        tape.forget()
        yield from take_space(tape)
        if (yield from next_character(tape)) != ",":
            break
        tape.take(1)
    yield from expect(tape, "]")
    tape.forget()
    yield from take_space(tape)
    if end is not None:
        yield from take_end(tape, end)


def _call(tape: Tape, names: frozenset[str]) -> Parts:
    name = yield from take_name(tape, names)
    yield from expect(tape, "(")
    yield from take_space(tape)
    if (yield from take_if(tape, "**")):
        yield from take_space(tape)
        if (yield from next_character(tape)) != "{":
            raise NotACall
        yield CallStart(name)
        yield from spoken(python_value(tape))
        yield from take_space(tape)
        yield from expect(tape, ")")
        return
    yield CallStart(name)
    yield Arguments("{")
    is_first = True
    while (yield from next_character(tape)) != ")":
        key = yield from _keyword(tape)
        yield Arguments(f"{'' if is_first else ', '}{quoted(key)}: ")
        is_first = False
        yield from spoken(python_value(tape))
        yield from take_space(tape)
        if (yield from next_character(tape)) == ",":
            tape.take(1)
            yield from take_space(tape)
        elif (yield from next_character(tape)) != ")":
            raise NotACall
    tape.take(1)
    yield Arguments("}")


def _keyword(tape: Tape) -> Generator[None, None, str]:
    """Take `name=`."""
    while True:
        match = _KEYWORD.match(tape.text, tape.position)
        if tape.is_over or (match is not None and match.end() < len(tape.text)):
            break
        if match is None and tape.position < len(tape.text):
            raise NotACall
        yield None
    if match is None:
        raise NotACall
    keyword = tape.take(len(match.group()))
    yield from take_space(tape)
    yield from expect(tape, "=")
    yield from take_space(tape)
    return keyword
