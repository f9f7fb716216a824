"""`<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`: Phi-4-mini, by its chat template.

It also writes `functools[…]`, which Microsoft's first examples of it asked for.
"""

from collections.abc import Sequence

from vmm_server.prompt.formats import lark
from vmm_server.prompt.formats.base import Spell, ToolParser
from vmm_server.prompt.formats.json_text import call_objects
from vmm_server.prompt.formats.tape import (
    Parts,
    Tape,
    TapeParser,
    attempt,
    expect,
    take_end,
    take_if,
    take_space,
    text_until,
)
from vmm_server.requests import Composite, Tool, ToolUse

START = "<|tool_call|>"
END = "<|/tool_call|>"
_WORD = "functools"


class Phi:
    """The format `phi`."""

    name = "phi"
    special_tokens: tuple[str, ...] = (START, END)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """An array between the tags."""
        start = lark.sequence([spell(START), lark.quote("[")])
        end = lark.sequence([lark.quote("]"), spell(END)])
        return lark.calls(use, lark.call_object, start=start, between=lark.quote(", "), end=end)

    def start(self, spell: Spell) -> str:
        """`<|tool_call|>`."""
        return spell(START)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, (START, _WORD + "["))):
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    if not (yield from take_if(tape, START)):
        yield from expect(tape, _WORD)
    yield from call_objects(tape, names)
    yield from take_end(tape, END)
