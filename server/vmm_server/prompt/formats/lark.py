"""Grammars of tool calls, as Lark for llguidance."""

import json
from collections.abc import Callable, Sequence

from vmm_server.requests import Composite, JsonSchema, Tool, ToolUse

MAX_CALLS = 8
"""In one enforced answer: a model that only repeats itself gets to an end."""

Body = Callable[[Tool, str], str]
"""(tool, `@name` of its arguments' schema) -> one call, as Lark."""


def quote(text: str) -> str:
    """A text as a Lark string; nothing is nothing."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def calls(use: ToolUse, body: Body, *, start: str, between: str, end: str = "") -> Composite:
    """`start`, one call or up to `MAX_CALLS` with `between` between them, `end`: all of them Lark.

    The rule `start` begins with `start`, so that a grammar can be made of it for what follows a `start` in a text.
    """
    rules: list[str] = []
    parts: list[tuple[str, JsonSchema]] = []
    for index, tool in enumerate(use.callable):
        name = f"arguments_{index}"
        rule = body(tool, f"@{name}")
        rules.append(f"call_{index}: {rule}")
        if f"@{name}" in rule:
            parts.append((name, JsonSchema(object_schema(tool), tool.param)))
    repeated = f"({between} call){{0,{MAX_CALLS - 1}}}" if use.parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(rules)))
    return Composite(
        "\n".join([f"start: {sequence([start, 'call', repeated, end])}", f"call: {names}", *rules]),
        tuple(parts),
        use.param,
    )


def object_schema(tool: Tool) -> str:
    """The schema of a tool's arguments, which are always an object, also where the schema does not say so."""
    schema = json.loads(tool.parameters)
    if not isinstance(schema, dict):
        schema = {}
    return tool.parameters if schema.get("type") == "object" else json.dumps({**schema, "type": "object"})


def sequence(items: Sequence[str]) -> str:
    """Lark items one after the other, without the empty ones."""
    return " ".join(item for item in items if item)
