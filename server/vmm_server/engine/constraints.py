"""Constraint → llguidance's grammar: what is taken, and what is refused because it is too big or cannot be enforced."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from vmm_server.errors import InvalidRequest
from vmm_server.requests import Choice, Composite, Constraint, Grammar, JsonObject, JsonSchema, Regex

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMAS_BYTES = 512 * 1024
"""Of all schemas in one grammar: those of the tools, and of the answer."""
MAX_SCHEMA_DEPTH = 4096
"""(Different `$ref`s + 1) x nesting, which is what the compiler's recursion cannot exceed."""
MAX_REGEX_BYTES = 16 * 1024
MAX_CHOICES = 1000
MAX_CHOICE_BYTES = 64 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_GRAMMAR_NODES = 2000
"""Rules, groups and objects of a grammar: each can be one level of recursion."""
_MAX_PLAIN_BYTES = 64 * 1024
_MAX_PLAIN_PROPERTIES = 500
_MAX_PLAIN_PATTERN = 256
_MAX_PLAIN_PATTERN_PROPERTIES = 8
_MAX_PLAIN_MULTIPLE = 1000
"""What `is_costly` calls plain takes less than a second, whatever else it says."""
_JOINING = frozenset(("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf"))
"""Keywords of other schemas that hold as well as what stands beside them; both are made into one."""
_NOTES = frozenset(
    ("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator")
) | frozenset(("enum", "examples", "nullable", "readOnly", "title", "type", "writeOnly", "x-guidance"))
"""Keywords that add nothing to what they are joined with, or only make it less."""
MAX_REASON = 500
"""Characters of llguidance's reason in an error."""

_JSON_OPTIONS: "JsonCompileOptions" = {
    # all of them, because options in the schema itself (x-guidance) could weaken what is promised
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}",  # a model that loops on blanks gets on
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
    # without \u, by which a key could be spelt twice: {"a": 1, "\u0061": "x"} is one property, and not the schema's
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
_LENIENT_OPTIONS: "JsonCompileOptions" = {**_JSON_OPTIONS, "lenient": True, "coerce_one_of": True}
# what those escapes cannot write, in a text and (group 1) as an escape in a pattern: llguidance would leave it out
_CONTROL = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")
_CONTROL_ESCAPE = re.compile(r"\\(?:(x[01]|x7[fF]|x\{|u00[01]|u007[fF]|u\{|U|c|[0-9av])|.)", re.DOTALL)


def grammar_source(constraint: Constraint | Composite) -> str:
    """The grammar as llguidance reads it: JSON. Raises `InvalidRequest`."""
    if not isinstance(constraint, Composite):
        return _source(constraint)
    grammars: list[dict[str, object]] = [{"lark_grammar": constraint.lark}]
    for name, part in constraint.parts:
        source = _source(part)
        is_lark = isinstance(part, Grammar | Choice)  # which stays as it is
        grammar = {"lark_grammar": source} if is_lark else json.loads(source)["grammars"][0]
        grammars.append({**grammar, "name": name})
    return json.dumps({"grammars": grammars})


def _source(constraint: Constraint) -> str:
    param = constraint.param
    # 2 MB of memory, of which a server whose answers are free has no need
    matcher: type[LLMatcher] = import_module("llguidance").LLMatcher
    try:
        match constraint:
            case JsonObject():
                return matcher.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)
            case JsonSchema(schema, lenient=lenient):
                _check_schema(schema, param, lenient)
                options = _LENIENT_OPTIONS if lenient else _JSON_OPTIONS
                return matcher.grammar_from_json_schema(schema, overrides=options)
            case Regex(pattern):
                return matcher.grammar_from_regex(pattern)
            case Choice(choices):
                strings = (json.dumps(choice, ensure_ascii=False) for choice in choices)
                return matcher.grammar_from_lark("start: " + " | ".join(strings))
            case Grammar(text):
                lark = import_module("llguidance.gbnf_to_lark").any_to_lark(text)
                _check_nodes(lark, param)
                return matcher.grammar_from_lark(lark)
    except InvalidRequest:
        raise
    except Exception as error:  # the reader of GBNF raises bare ones
        raise InvalidRequest(f"{param}: {shortened(str(error))}", param=param) from error


def loosest(schema: JsonSchema) -> JsonSchema:
    """Any object, for the schema of one; any JSON for others."""
    wanted = json.loads(schema.schema)
    is_object = isinstance(wanted, dict) and wanted.get("type") == "object"
    return replace(schema, schema='{"type": "object"}' if is_object else "{}")


def check_size(constraint: Constraint | Composite) -> None:
    """Raise `InvalidRequest` for a constraint that is too big, its parts together if it has some."""
    if not isinstance(constraint, Composite):
        _check_size(constraint)
        return
    for _, part in constraint.parts:
        _check_size(part)
    size = sum(
        len(part.schema.encode(errors="surrogatepass")) for _, part in constraint.parts if isinstance(part, JsonSchema)
    )
    if size > MAX_SCHEMAS_BYTES:
        message = f"schemas of {size} bytes, the limit is {MAX_SCHEMAS_BYTES}"
        raise InvalidRequest(f"{constraint.param}: {message}", param=constraint.param)


def is_costly(constraint: Constraint | Composite) -> bool:
    """Whether nothing but trying tells what it takes to compile it. For a constraint whose size was checked.

    Lexers and parsers are bounded when they are made and when they run; what is not bounded is how schemas are joined,
    intersections of patterns, remainders by large numbers, and repetitions of repetitions.
    """
    match constraint:
        case Composite(parts=parts):
            return any(is_costly(part) for _, part in parts)
        case Grammar():
            return True
        case Regex(pattern):
            return _is_costly_pattern(pattern)
        case JsonSchema(schema):
            return len(schema) > _MAX_PLAIN_BYTES or any(map(_is_costly_node, _nodes(schema)))
        case _:
            return False


def _nodes(schema: str) -> Iterator[dict[str, object]]:
    """All objects within a schema, in no order; what is no JSON has none."""
    try:
        waiting: list[object] = [json.loads(schema)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_costly_node(node: dict[str, object]) -> bool:
    joined = node.keys() & _JOINING
    pattern, multiple = node.get("pattern"), node.get("multipleOf")
    properties, patterns = node.get("properties"), node.get("patternProperties")
    return (
        "allOf" in joined
        or len(joined) > 1
        or bool(joined and node.keys() - _JOINING - _NOTES)
        or (isinstance(pattern, str) and _is_costly_pattern(pattern))
        or (isinstance(multiple, int | float) and not abs(multiple) <= _MAX_PLAIN_MULTIPLE)
        or (isinstance(properties, dict) and len(properties) > _MAX_PLAIN_PROPERTIES)
        or (isinstance(patterns, dict) and len(patterns) > _MAX_PLAIN_PATTERN_PROPERTIES)
        or (isinstance(patterns, dict) and any(map(_is_costly_pattern, patterns)))
    )


def _is_costly_pattern(pattern: str) -> bool:
    return len(pattern) > _MAX_PLAIN_PATTERN or pattern.count("{") > 1


def _check_size(constraint: Constraint) -> None:
    match constraint:
        case JsonObject():
            return
        case JsonSchema(text, param):
            limit = MAX_SCHEMA_BYTES
        case Regex(text, param):
            limit = MAX_REGEX_BYTES
        case Grammar(text, param):
            limit = MAX_GRAMMAR_BYTES
        case Choice(choices, param):
            if not 1 <= len(choices) <= MAX_CHOICES:
                raise InvalidRequest(f"{param}: {len(choices)} choices, 1 to {MAX_CHOICES} are taken", param=param)
            text, limit = "".join(choices), MAX_CHOICE_BYTES
    size = len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise InvalidRequest(f"{param}: {size} bytes, the limit is {limit}", param=param)
    if isinstance(constraint, Grammar):
        _check_nodes(text, param)


def _check_schema(schema: str, param: str, lenient: bool) -> None:
    """Raise `InvalidRequest` for what llguidance would not notice: too deep for a stack, or not to be enforced."""
    references: set[str] = set()
    depth, level = 0, [json.loads(schema)]
    while level:
        depth += 1
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                references.update(target for key, target in value.items() if key == "$ref" and isinstance(target, str))
                below.extend(value.values())
                if not lenient:
                    _check_min_properties(value, param)
                    _check_characters(value, param)
            elif isinstance(value, list):
                below.extend(value)
        level = below
    if (1 + len(references)) * depth > MAX_SCHEMA_DEPTH:
        message = f"{len(references)} references at a nesting of {depth}, their product may be {MAX_SCHEMA_DEPTH}"
        raise InvalidRequest(f"{param}: {message}", param=param)


def _check_min_properties(schema: dict[str, object], param: str) -> None:
    """Properties are counted as they are written, and nothing keeps a free one from being written twice."""
    fewest, required = schema.get("minProperties"), schema.get("required")
    if isinstance(fewest, int) and fewest > (len(required) if isinstance(required, list) else 0):
        reason = f"minProperties: {fewest} is more than the required properties, and cannot be enforced"
        raise InvalidRequest(f"{param}: {reason}", param=param)


def _check_characters(schema: dict[str, object], param: str) -> None:
    """Control characters without a short escape cannot be written."""
    texts = [*schema, *_strings(schema.values())]
    pattern, properties = schema.get("pattern"), schema.get("patternProperties")
    patterns = [pattern] if isinstance(pattern, str) else []
    patterns.extend(properties if isinstance(properties, dict) else ())
    escapes = (match[1] for text in patterns for match in _CONTROL_ESCAPE.finditer(text))
    if any(map(_CONTROL.search, texts)) or any(escapes):
        raise InvalidRequest(f"{param}: control characters cannot be enforced, but \\b \\t \\n \\f \\r", param=param)


def _strings(values: Iterable[object]) -> Iterator[str]:
    """Those among the values, and in arrays among them."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _strings(value)


def _check_nodes(text: str, param: str) -> None:
    """Raise `InvalidRequest` for a grammar that would need too much of the compiler's stack."""
    nodes = sum(text.count(character) for character in ":([{")
    if nodes > MAX_GRAMMAR_NODES:
        message = f"{nodes} rules, groups and objects, the limit is {MAX_GRAMMAR_NODES}"
        raise InvalidRequest(f"{param}: {message}", param=param)


def shortened(reason: str) -> str:
    """A reason as a line of an error."""
    text = " ".join(reason.split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"
