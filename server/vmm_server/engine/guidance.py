"""Constraint → what a runtime that draws tokens itself is told: one schema, regular expression or Lark text. Pure.

`grammar_source` gives llguidance a list of grammars that refer to each other by name. Such runtimes take one text, so
the parts of a `Composite` become rules of it, `%json` and `%lark`, which llguidance keeps apart as it does the members
of a list (its docs/syntax.md, "Inline JSON Schemas" and "Nested grammars").

What is made here was compiled before: its parts cannot end their rule early.
"""

import json
import re

from vmm_adapters.types import Guidance
from vmm_server.engine.constraints import grammar_source
from vmm_server.requests import Choice, Composite, Constraint, Grammar, JsonObject, JsonSchema, Regex

_REFERENCE = re.compile(r'("(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/)|@([a-z][a-z0-9_]*)')
"""Strings and regular expressions (group 1), in which an `@` means nothing; a reference by name (group 2)."""
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
"""What Rust's `regex` reads as more than itself."""
_NEW_OPTIONS = ("json_allowed_escapes", "json_allow_general_unicode_escapes")
"""Of JSON, refused by the llguidance that runtimes have built in. Without them a key may be spelt with \\u."""


def guidance_of(constraint: Constraint | Composite) -> Guidance:
    """The same constraint as one text. Raises `InvalidRequest` where `grammar_source` does."""
    match constraint:
        case JsonObject() | JsonSchema():
            return Guidance("json_schema", _schema(constraint))
        case Regex(pattern):
            return Guidance("regex", pattern)
        case Choice(choices):
            escaped = (_META.sub(r"\\\g<0>", choice) for choice in choices)
            return Guidance("regex", f"({'|'.join(escaped)})")
        case Grammar():
            return Guidance("lark", grammar_source(constraint))
        case Composite():
            return Guidance("lark", _inlined(constraint))


def _schema(constraint: JsonObject | JsonSchema) -> str:
    """With the options that it is enforced under."""
    schema = json.loads(grammar_source(constraint))["grammars"][0]["json_schema"]
    for option in _NEW_OPTIONS:
        schema["x-guidance"].pop(option, None)
    return json.dumps(schema, ensure_ascii=False)


def _inlined(constraint: Composite) -> str:
    """The grammar, with a rule for each of its parts."""
    prefix = "part_"
    while prefix in constraint.lark:
        prefix += "_"
    lark = _REFERENCE.sub(lambda found: found[1] or prefix + found[2], constraint.lark)
    return "\n".join((lark, *(f"{prefix}{name}: {_inline(part)}" for name, part in constraint.parts)))


def _inline(part: Constraint) -> str:
    if isinstance(part, JsonObject | JsonSchema):
        return f"%json {_schema(part)}"
    source = grammar_source(part)
    lark = json.loads(source)["grammars"][0]["lark_grammar"] if isinstance(part, Regex) else source
    return f"%lark {{\n{lark}\n}}"
