"""`[TOOL_CALLS]`, then an array of objects, or (since 2025) a name, `[ARGS]` and an object.

`[TOOL_CALLS] [{"name": …, "arguments": {…}, "id": …}]` is what Mistral's tokenisers v3 to v7 write,
`[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}` v11 and `[TOOL_CALLS]name[ARGS]{…}` v13, one after the other for several
calls (mistral-common, tokens/tokenizers/instruct.py).
"""

from collections.abc import Sequence

from vmm_server.prompt.formats import lark, schemas
from vmm_server.prompt.formats.base import CallStart, Spell, ToolParser
from vmm_server.prompt.formats.json_text import call_objects, json_value, spoken
from vmm_server.prompt.formats.literals import whole_up_to
from vmm_server.prompt.formats.tape import (
    NotACall,
    Parts,
    Tape,
    TapeParser,
    attempt,
    expect,
    next_character,
    take_if,
    take_name,
    take_space,
    text_until,
)
from vmm_server.requests import Composite, Tool, ToolUse

START = "[TOOL_CALLS]"
CALL_ID = "[CALL_ID]"
ARGS = "[ARGS]"


class Mistral:
    """The format `mistral`."""

    name = "mistral"
    special_tokens: tuple[str, ...] = (START, CALL_ID, ARGS)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """The newer way if the model has a token for it, else an array."""
        start = spell(START)
        if (args := spell(ARGS)) == lark.quote(ARGS):
            array = lark.sequence([start, '" "? "["'])
            return lark.calls(use, lark.call_object, start=array, between=lark.quote(", "), end=lark.quote("]"))

        def body(tool: Tool, parts: lark.Parts) -> str:
            return lark.sequence([lark.quote(tool.name), args, parts.add(schemas.of_object(tool))])

        return lark.calls(use, body, start=start, between=start)

    def start(self, spell: Spell) -> str:
        """`[TOOL_CALLS]`."""
        return spell(START)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, (START,))):
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    yield from expect(tape, START)
    yield from take_space(tape)
    if (yield from next_character(tape)) in "[{":
        yield from call_objects(tape, names)
    else:
        name = yield from take_name(tape, names)
        if (yield from take_if(tape, CALL_ID)):
            yield from whole_up_to(tape, ARGS)
        else:
            yield from take_if(tape, ARGS)
        yield from take_space(tape)
        if (yield from next_character(tape)) != "{":
            raise NotACall
        yield CallStart(name)
        yield from spoken(json_value(tape))
    yield from take_space(tape)
