"""`{"name": …, "parameters": {…}}`, bare or after `<|python_tag|>`; several are parted by `; ` or line breaks.

Llama 3.1, 3.2 and 3.3 by their chat templates, which ask for just that. The models also begin with `"type"` at times,
and put a sentence first; so a call may begin anywhere, but only its own keys make it one.
"""

from collections.abc import Sequence

from vmm_server.prompt.formats import lark
from vmm_server.prompt.formats.base import Spell, ToolParser
from vmm_server.prompt.formats.json_text import call_objects
from vmm_server.prompt.formats.tape import Parts, Tape, TapeParser, attempt, take_if, take_space, text_until
from vmm_server.requests import Composite, Tool, ToolUse

START = '{"'
TAG = "<|python_tag|>"
_FIRST_KEYS = frozenset({"name", "type", "function", "parameters", "arguments"})


class Llama3Json:
    """The format `llama3_json`."""

    name = "llama3_json"
    special_tokens: tuple[str, ...] = (TAG,)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """Objects parted by `; `."""

        def body(tool: Tool, parts: lark.Parts) -> str:
            return lark.call_object(tool, parts, key="parameters", begun=START)

        start = lark.quote(START)
        return lark.calls(use, body, start=start, between=lark.sequence([lark.quote("; "), start]))

    def start(self, spell: Spell) -> str:
        """`{"`."""
        return lark.quote(START)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, (TAG, "{"))):  # blanks may follow, where the grammar's `start` has none
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    yield from take_if(tape, TAG)
    yield from call_objects(tape, names, ";,", _FIRST_KEYS)
    yield from take_space(tape)
