"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one tag a call.

Hermes 2 and 3, Qwen 2.5 and 3, QwQ, SmolLM 3 (their chat templates). SmolLM 2 was trained to write one array of
calls in the tag. Also what a model is taught whose template says nothing of tools.
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
    take_space,
    text_until,
)
from vmm_server.requests import Composite, Tool, ToolUse

START = "<tool_call>"
END = "</tool_call>"


class Hermes:
    """The format `hermes`."""

    name = "hermes"
    special_tokens: tuple[str, ...] = (START, END)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, _answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """`<tool_call>` JSON `</tool_call>`, line by line as the templates show it."""

        def body(tool: Tool, parts: lark.Parts) -> str:
            return lark.sequence([lark.quote("\n"), lark.call_object(tool, parts), lark.quote("\n")])

        start, end = spell(START), spell(END)
        return lark.calls(use, body, start=start, between=lark.sequence([end, lark.quote("\n"), start]), end=end)

    def start(self, spell: Spell) -> str:
        """`<tool_call>`."""
        return spell(START)


def _answer(tape: Tape, names: frozenset[str]) -> Parts:
    while (yield from text_until(tape, (START,))):
        yield from attempt(tape, _calls(tape, names))


def _calls(tape: Tape, names: frozenset[str]) -> Parts:
    yield from take_space(tape)
    yield from expect(tape, START)
    yield from call_objects(tape, names)
    yield from take_end(tape, END)
