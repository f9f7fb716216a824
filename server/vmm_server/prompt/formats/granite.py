"""`<|tool_call|>[{"name": …, "arguments": {…}}]`: IBM's Granite 3, by its chat templates.

3.1 writes `<tool_call>[…]` where it has no such token. (Granite 4 is `hermes`.)
"""

from collections.abc import Sequence

from vmm_server.prompt.formats import lark
from vmm_server.prompt.formats.base import Spell, ToolParser
from vmm_server.prompt.formats.json_text import call_objects
from vmm_server.prompt.formats.tape import Parts, Tape, TapeParser, attempt, take_end, take_if, take_space, text_until
from vmm_server.requests import Composite, Tool, ToolUse

START = "<|tool_call|>"
TAG = "<tool_call>"
_TAG_END = "</tool_call>"


class Granite:
    """The format `granite`."""

    name = "granite"
    special_tokens: tuple[str, ...] = (START, TAG, _TAG_END)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """An array after the token or the tag."""
        start = lark.sequence([self.start(spell), lark.quote("[")])
        return lark.calls(use, lark.call_object, start=start, between=lark.quote(", "), end=lark.quote("]"))

    def start(self, spell: Spell) -> str:
        """`<|tool_call|>` if that is a token."""
        start = spell(START)
        return start if start != lark.quote(START) else spell(TAG)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, (START, TAG))):
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    if not (yield from take_if(tape, START)):
        yield from take_if(tape, TAG)
    yield from call_objects(tape, names)
    yield from take_end(tape, _TAG_END)
