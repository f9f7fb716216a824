"""The values that templates see, and what Go makes of them: fields, truth, names of types, texts.

Go's types stand for themselves in Python: `nil` is `None`, a slice a list, a map a dictionary. What has a `String`
method in Ollama's code (tools, arguments, a property's type) is one of the classes here.

Maps keep the order in which the client wrote them, in JSON and in loops, where Go sorts the keys: models learned
properties in their own order.
"""

import json
import math
from collections.abc import Mapping
from decimal import Decimal

from vmm_server.prompt.budget import Budget, measure

_NO_VALUE = "<no value>"


class ExecutionError(Exception):
    """The template failed on what it was given."""


class Struct(dict[str, object]):
    """A value with a fixed set of fields. It prints as the JSON that stands for it."""

    def __init__(self, type_name: str, fields: Mapping[str, object], json_value: object) -> None:
        super().__init__(fields)
        self.type_name = type_name
        self.json_value = json_value


class JsonMap(dict[str, object]):
    """A map that prints as JSON."""


class JsonList(list[object]):
    """A slice that prints as JSON."""


class TypeNames(list[object]):
    """A property's type: one name, which it prints as, or several."""


WITH_STRING_METHOD = (Struct, JsonMap, JsonList, TypeNames)
"""What is a text to `%s`."""


def field(value: object, name: str) -> object:
    """`value.name`; `None` for a key that a map does not have. Raises `ExecutionError`."""
    if isinstance(value, Struct):
        if name not in value:
            raise ExecutionError(f"there is no field {name} in a {value.type_name}")
        return value[name]
    if isinstance(value, dict):
        return value.get(name)
    raise ExecutionError(f"there is no field {name} in a value of type {type_name(value)}")


def is_true(value: object) -> bool:
    """Go's truth: not the zero number, not nil, not empty."""
    return True if isinstance(value, Struct) else bool(value)


def type_name(value: object) -> str:
    """What Go calls the value's type."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Struct():
            return value.type_name
        case dict():
            return "map[string]interface {}"
        case _:
            return "[]interface {}"


def show(value: object, budget: Budget) -> str:
    """How an action prints the value."""
    return _NO_VALUE if value is None else to_text(value, budget)


def to_text(value: object, budget: Budget) -> str:
    """The value as Go's `%v` has it."""
    if isinstance(value, str):
        return value
    budget.check(measure(value))
    text = _text(value)
    budget.spend(len(text))
    return text


def _text(value: object) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case float():
            return _float_text(value)
        case Struct() | JsonMap() | JsonList():
            return _json(value)
        case TypeNames() if len(value) == 1:
            return _text(value[0])
        case dict():
            return f"map[{' '.join(f'{key}:{_text(value[key])}' for key in sorted(value))}]"
        case list():
            return f"[{' '.join(map(_text, value))}]"
        case _:
            return str(value)


def to_json(value: object, budget: Budget) -> str:
    """JSON without blanks, as Go writes it, but with `<`, `>` and `&` as they are."""
    budget.check(measure(value))
    text = _json(value)
    budget.spend(len(text))
    return text


def _json(value: object) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Struct):
        return _plain(value.json_value)
    if isinstance(value, TypeNames) and len(value) == 1:
        return value[0]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _float_text(value: float) -> str:
    """The shortest digits that say the number, with an exponent below 1e-4 and from 1e+06 on."""
    if not math.isfinite(value):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
    number = Decimal(repr(value)).normalize()
    exponent = number.adjusted() if number else 0
    if -4 <= exponent < 6:
        return f"{number:f}"
    digits = "".join(map(str, number.as_tuple().digits))
    mantissa = digits[0] + (f".{digits[1:]}" if digits[1:] else "")
    return f"{'-' if number.is_signed() else ''}{mantissa}e{exponent:+03d}"
