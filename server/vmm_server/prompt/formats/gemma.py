"""`<start_function_call>call:name{city:<escape>Paris<escape>,days:3}<end_function_call>`: FunctionGemma.

By Google's "FunctionGemma formatting and best practices" (ai.google.dev). Texts stand between two of one token, words
and numbers stand bare, objects and arrays in each other. Gemma 4 writes the same with other tokens. (Gemma 3 has no
format of its own: Google documents `pythonic` or JSON, whatever the prompt asks for.)
"""

import re
from collections.abc import Mapping, Sequence

from vmm_server.prompt.formats import lark, schemas
from vmm_server.prompt.formats.base import CallStart, Spell, ToolParser
from vmm_server.prompt.formats.json_text import json_value, spoken
from vmm_server.prompt.formats.literals import quoted, text_up_to, value, word
from vmm_server.prompt.formats.tape import (
    NotACall,
    Parts,
    Pieces,
    Tape,
    TapeParser,
    Truncated,
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

_KEY = re.compile(r"[\w.$/-]+")
_BARE = re.compile(r"[^,\[\]{}<>]+")


class Gemma:
    """The formats `gemma` and `gemma4`."""

    brackets: Mapping[str, str] = {"[": "]", "{": "}"}

    def __init__(self, name: str, start: str, end: str, quote: str) -> None:
        self.name = name
        self.special_tokens: tuple[str, ...] = (start, end, quote)
        self._start, self._end, self._quote = start, end, quote

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        tape = Tape()
        return TapeParser(tape, self._answer(tape, frozenset(tool.name for tool in tools)))

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """Texts in their tokens, and everything else as JSON, which is nearly the same."""
        quote = spell(self._quote)

        def argument(one: schemas.Property, parts: lark.Parts) -> str:
            if one.is_text:
                text = lark.sequence([quote, "argument_text"])
            elif one.choices is not None and not any(self._quote in choice for choice in one.choices):
                text = lark.sequence([quote, lark.one_of(one.choices), quote])
            else:
                text = parts.add(one.json)
            return lark.sequence([lark.quote(f"{one.name}:"), text])

        def body(tool: Tool, parts: lark.Parts) -> str:
            properties = schemas.properties(tool)
            if properties is None or not all(_KEY.fullmatch(one.name) for one in properties):
                return lark.sequence([lark.quote(f"call:{tool.name}"), parts.add(schemas.of_object(tool))])
            items = [(argument(one, parts), one.is_required) for one in properties]
            listed = parts.listed(items, lark.quote(","))
            return lark.sequence([lark.quote(f"call:{tool.name}{{"), listed, lark.quote("}")])

        start, end = spell(self._start), spell(self._end)
        rules = lark.text_up_to(self._quote, spell)
        return lark.calls(use, body, start=start, between=lark.sequence([end, start]), end=end, rules=rules)

    def start(self, spell: Spell) -> str:
        """`<start_function_call>`."""
        return spell(self._start)

    def atom(self, tape: Tape) -> Pieces:
        """A text, a word or a number; what is none of them is a text without its tokens."""
        if (yield from next_character(tape)) == '"':
            yield from json_value(tape)
            return
        if (yield from take_if(tape, self._quote)):
            yield from text_up_to(tape, self._quote)
            return
        while True:
            match = _BARE.match(tape.text, tape.position)
            if match is None:
                raise NotACall
            if match.end() < len(tape.text):
                break
            if tape.is_over:
                raise Truncated
            yield None
        text = tape.take(len(match.group())).strip()
        yield word(text) or quoted(text)

    def key(self, tape: Tape) -> Pieces:
        """A bare word, or a text."""
        character = yield from next_character(tape)
        if character == '"' or (yield from comes(tape, self._quote)):
            yield from self.atom(tape)
            return
        while True:
            match = _KEY.match(tape.text, tape.position)
            if match is None:
                raise NotACall
            if match.end() < len(tape.text):
                break
            if tape.is_over:
                raise Truncated
            yield None
        yield quoted(tape.take(len(match.group())))

    def _answer(self, tape: Tape, names: frozenset[str]) -> Parts:
        while (yield from text_until(tape, (self._start,))):
            yield from attempt(tape, self._calls(tape, names))

    def _calls(self, tape: Tape, names: frozenset[str]) -> Parts:
        yield from take_space(tape)
        yield from expect(tape, self._start)
        yield from take_space(tape)
        yield from expect(tape, "call:")
        yield from take_space(tape)
        name = yield from take_name(tape, names)
        yield from take_space(tape)
        if (yield from next_character(tape)) != "{":
            raise NotACall
        yield CallStart(name)
        yield from spoken(value(tape, self))
        yield from take_space(tape)
        yield from take_end(tape, self._end)
