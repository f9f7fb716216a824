"""What one rendering of a chat template may use up, and how large things are before they are built."""

from collections.abc import Callable, Mapping, Sized
from typing import Any

from jinja2 import TemplateRuntimeError

MAX_TEXT = 8 * 2**20
MAX_WORK = 64 * 2**20
MAX_CPU_S = 5.0
MAX_BITS = 4096

ITEM_SIZE = 16
"""What an item of a list counts as, in characters."""

_MAX_PRECISION = 64


class TemplateTooCostly(TemplateRuntimeError):
    """A rendering would go over one of the bounds."""


class Budget:
    """What is left for one rendering."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._work = MAX_WORK
        self._clock = clock
        self._deadline = clock() + MAX_CPU_S

    def tick(self) -> None:
        """Refuse to go on after the time is up."""
        if self._clock() > self._deadline:
            raise TemplateTooCostly(f"it runs for more than {MAX_CPU_S:g} seconds")

    def check(self, amount: int) -> None:
        """Refuse to build something of this size."""
        if amount > MAX_TEXT:
            raise TemplateTooCostly(f"it builds a text of more than {MAX_TEXT} characters")

    def spend(self, amount: int) -> None:
        """Take what was built off the budget."""
        self.check(amount)
        self._work -= amount
        if self._work < 0:
            raise TemplateTooCostly(f"it builds more than {MAX_WORK} characters in all")


def measure(value: object) -> int:
    """About how long `str(value)` would be, or just over `MAX_TEXT`. Shared parts count each time they appear."""
    if isinstance(value, str):
        return len(value)
    total, stack = 0, [value]
    while stack and total <= MAX_TEXT:
        part = stack.pop()
        if isinstance(part, str):
            total += len(part)
        elif isinstance(part, Mapping):
            stack.extend(part.keys())
            stack.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            stack.extend(part)
        total += ITEM_SIZE
    return total


def join_size(value: Any, d: Any = "", *_: Any, **__: Any) -> int:
    """Characters that `value|join(d)` adds between its items."""
    return len(value) * len(str(d)) if isinstance(value, Sized) else 0


def replace_size(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    """At most the length of `text.replace(old, new)`."""
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _indent_size(text: Any, width: int | str = 4, *_: Any, **__: Any) -> int:
    return len(str(text)) + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width))


def _round_size(_: Any, precision: int = 0, *__: Any, **___: Any) -> int:
    return 0 if abs(precision) <= _MAX_PRECISION else MAX_TEXT + 1  # it computes 10 ** precision


RESULT_SIZES: dict[str, Callable[..., int]] = {
    "indent": _indent_size,
    "join": join_size,
    "replace": replace_size,
    "round": _round_size,
}
"""How long a filter's result will be, by its name and from its arguments (Jinja's names for them)."""


def check_bits(bits: int) -> None:
    """Refuse to compute a whole number of this many bits."""
    if bits > MAX_BITS:
        raise TemplateTooCostly(f"it computes a number of more than {MAX_BITS} bits")


def num_bits(value: object) -> int:
    """Bits of a whole number; 0 for anything else."""
    return value.bit_length() if isinstance(value, int) else 0
