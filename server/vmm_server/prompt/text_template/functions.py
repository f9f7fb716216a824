"""The functions of Go's templates, but for `and` and `or`, which look at no more arguments than they need.

Left out, since no template for a model uses them: `call`, `html`, `js`, `urlquery`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmm_server.prompt.budget import Budget
from vmm_server.prompt.text_template.printing import sprint, sprintf, sprintln
from vmm_server.prompt.text_template.values import ExecutionError, Struct, is_true, type_name

_COMPARED_AT_ONCE = 16
"""Characters of two texts that are compared in the time that one takes to be built."""


@dataclass(frozen=True, slots=True)
class TemplateFunction:
    """A function and how many arguments it takes."""

    call: Callable[..., object]
    """With the rendering's budget, then the arguments. Raises `ExecutionError`."""
    least: int
    most: int | None


def _length(budget: Budget, value: object) -> int:
    if isinstance(value, str):
        budget.spend(len(value))
        return len(value.encode(errors="replace"))
    if isinstance(value, list) or (isinstance(value, dict) and not isinstance(value, Struct)):
        return len(value)
    raise ExecutionError(f"len of a value of type {type_name(value)}")


def _index(budget: Budget, value: object, *indexes: object) -> object:
    for index in indexes:
        if isinstance(value, dict) and not isinstance(value, Struct):
            if not isinstance(index, str):
                raise ExecutionError(f"index of a map by a value of type {type_name(index)}")
            value = value.get(index)
        elif isinstance(value, list | str):
            budget.spend(len(value) if isinstance(value, str) else 0)
            items = value.encode(errors="replace") if isinstance(value, str) else value
            position = _position(index)
            if not 0 <= position < len(items):
                raise ExecutionError(f"index out of range: {position}")
            value = items[position]
        else:
            raise ExecutionError(f"index of a value of type {type_name(value)}")
    return value


def _slice(budget: Budget, value: object, *indexes: object) -> object:
    """A part of a list, or of a text by its bytes: what they cut apart becomes U+FFFD."""
    if not isinstance(value, list | str):
        raise ExecutionError(f"slice of a value of type {type_name(value)}")
    if isinstance(value, str) and len(indexes) == 3:
        raise ExecutionError("slice of a string takes two indexes")
    items = value.encode(errors="replace") if isinstance(value, str) else value
    limits = [_position(index) for index in indexes]
    start, stop, most = [*limits, *(0, len(items), len(items))[len(limits) :]]
    if not 0 <= start <= stop <= most <= len(items):
        raise ExecutionError(f"slice indexes out of range: {' '.join(map(str, limits))}")
    budget.spend(stop - start)
    part = items[start:stop]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def _position(index: object) -> int:
    if isinstance(index, int) and not isinstance(index, bool):
        return index
    raise ExecutionError(f"an index is a whole number, not a value of type {type_name(index)}")


def _printf(budget: Budget, format: object, *values: object) -> str:
    if not isinstance(format, str):
        raise ExecutionError(f"printf's format is a string, not a value of type {type_name(format)}")
    return sprintf(format, values, budget)


def _basic(value: object) -> type | None:
    """The kind by which values are compared; `None`: they are not."""
    return next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)


def _equal(budget: Budget, first: object, *others: object) -> bool:
    """Whether it equals any of the others."""
    return any(_are_equal(budget, first, other) for other in others)


def _are_equal(budget: Budget, first: object, second: object) -> bool:
    if first is None or second is None:
        return first is second
    for value in (first, second):
        if _basic(value) is None:
            raise ExecutionError(f"a value of type {type_name(value)} cannot be compared")
    _check_kinds(budget, first, second)
    return first == second


def _less(budget: Budget, first: object, second: object) -> bool:
    for value in (first, second):
        if _basic(value) in (None, bool):
            raise ExecutionError(f"a value of type {type_name(value)} has no order")
    _check_kinds(budget, first, second)
    less: bool = first < second  # type: ignore[operator]  # two numbers of one type, or two strings
    return less


def _check_kinds(budget: Budget, first: object, second: object) -> None:
    if _basic(first) is not _basic(second):
        raise ExecutionError(f"a {type_name(first)} and a {type_name(second)} cannot be compared")
    if isinstance(first, str) and isinstance(second, str):
        budget.spend(min(len(first), len(second)) // _COMPARED_AT_ONCE)


BUILTINS: Mapping[str, TemplateFunction] = MappingProxyType(
    {
        "not": TemplateFunction(lambda _, value: not is_true(value), 1, 1),
        "eq": TemplateFunction(_equal, 2, None),
        "ne": TemplateFunction(lambda budget, first, second: not _are_equal(budget, first, second), 2, 2),
        "lt": TemplateFunction(_less, 2, 2),
        "le": TemplateFunction(lambda budget, first, second: not _less(budget, second, first), 2, 2),
        "gt": TemplateFunction(lambda budget, first, second: _less(budget, second, first), 2, 2),
        "ge": TemplateFunction(lambda budget, first, second: not _less(budget, first, second), 2, 2),
        "len": TemplateFunction(_length, 1, 1),
        "index": TemplateFunction(_index, 1, None),
        "slice": TemplateFunction(_slice, 1, 4),
        "print": TemplateFunction(lambda budget, *values: sprint(values, budget), 0, None),
        "println": TemplateFunction(lambda budget, *values: sprintln(values, budget), 0, None),
        "printf": TemplateFunction(_printf, 1, None),
    }
)
LAZY = frozenset(("and", "or"))
"""Decided by `execution.py`."""
