"""Grammars of tool calls, as Lark for llguidance (its docs/syntax.md)."""

import json
from collections.abc import Callable, Sequence

from vmm_server.prompt.formats import schemas
from vmm_server.prompt.formats.base import Spell
from vmm_server.requests import Composite, JsonSchema, Tool, ToolUse

MAX_CALLS = 8
"""In one enforced answer: a model that only repeats itself gets to an end."""

_ANY = "/(?s:.*)/"


class Parts:
    """What the rule of one call refers to: schemas, and rules of its own."""

    def __init__(self, index: int, param: str) -> None:
        self._index = index
        self._param = param
        self.schemas: list[tuple[str, JsonSchema]] = []
        self.rules: list[str] = []

    def add(self, schema: str) -> str:
        """JSON that a schema describes."""
        name = f"schema_{self._index}_{len(self.schemas)}"
        self.schemas.append((name, JsonSchema(schema, self._param)))
        return f"@{name}"

    def listed(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Items (Lark, is it required) in their order, with a separator between those that are there."""
        if not items:
            return ""

        def rest(position: int, has_items: bool) -> str:
            return f"rest_{self._index}_{position}_{int(has_items)}" if position < len(items) else '""'

        for position, (item, is_required) in enumerate(items):
            for has_items in (False, True):
                taken = sequence([separator if has_items else "", item, rest(position + 1, True)])
                left_out = "" if is_required else f" | {rest(position + 1, has_items)}"
                self.rules.append(f"{rest(position, has_items)}: {taken}{left_out}")
        return rest(0, False)


Body = Callable[[Tool, Parts], str]
"""One call as Lark."""


def quote(text: str) -> str:
    """A text as a Lark string; nothing is nothing."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def sequence(items: Sequence[str]) -> str:
    """Lark items one after the other, without the empty ones."""
    return " ".join(item for item in items if item)


def one_of(texts: Sequence[str]) -> str:
    """Any of these texts."""
    return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + ")"


def call_object(tool: Tool, parts: Parts, *, key: str = "arguments", begun: str = "") -> str:
    """A call as a JSON object, from after what is there already (`begun`)."""
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": '
    return sequence([quote(head.removeprefix(begun)), parts.add(schemas.of_object(tool)), quote("}")])


def text_up_to(end: str, spell: Spell) -> tuple[str, ...]:
    """The rule `argument_text`: any text up to `end`, and that."""
    literal = quote(end)
    if (spelt := spell(end)) == literal:
        return (f"argument_text[suffix={literal}]: {_ANY}",)
    return (
        f"argument_text: ARGUMENT_TEXT {spelt}",
        f"ARGUMENT_TEXT: {_ANY} & ~({_ANY} {literal} {_ANY})",
    )


def calls(use: ToolUse, body: Body, *, start: str, between: str, end: str = "", rules: Sequence[str] = ()) -> Composite:
    """`start`, one call or up to `MAX_CALLS` with `between` between them, `end`: all of them Lark.

    The rule `start` begins with `start`, so that a grammar can be made of it for what follows a `start` in a text.
    `rules` are those that a body refers to.
    """
    lines: list[str] = []
    found: list[tuple[str, JsonSchema]] = []
    for index, tool in enumerate(use.callable):
        parts = Parts(index, tool.param)
        lines += [f"call_{index}: {body(tool, parts)}", *parts.rules]
        found += parts.schemas
    repeated = f"({between} call){{0,{MAX_CALLS - 1}}}" if use.parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(use.callable)))
    lark = [f"start: {sequence([start, 'call', repeated, end])}", f"call: {names}", *lines, *rules]
    return Composite("\n".join(lark), tuple(found), use.param)
