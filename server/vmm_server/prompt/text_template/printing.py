"""Go's `print`, `println` and `printf`, after the documentation of its package fmt.

Explicit argument indexes (`%[1]s`) are refused, and so are widths and precisions over `MAX_WIDTH`.
"""

import re
from collections.abc import Callable, Sequence

from vmm_server.prompt.budget import Budget
from vmm_server.prompt.text_template.values import WITH_STRING_METHOD, ExecutionError, is_true, to_text, type_name

MAX_WIDTH = 100_000
"""Templates compute `index + 1` as the length of a text that they pad: widths go as far as conversations do."""

_DIRECTIVE = re.compile(r"%([-+# 0]*)(\*|\d*)(?:\.(\*|\d*))?(.?)", re.DOTALL)
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_BASES = {"d": "d", "x": "x", "X": "X", "o": "o", "b": "b"}


def sprint(values: Sequence[object], budget: Budget) -> str:
    """Texts one after the other, a blank between two values of which neither is a string."""
    parts: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            parts.append(" ")
        parts.append(to_text(value, budget))
    return _joined(parts, "", budget)


def sprintln(values: Sequence[object], budget: Budget) -> str:
    """Texts with blanks between them, and a line's end."""
    return _joined([to_text(value, budget) for value in values], " ", budget) + "\n"


def sprintf(format: str, values: Sequence[object], budget: Budget) -> str:
    """The format with its directives replaced. A wrong one comes out as Go's words for it: `%!d(string=x)`."""
    parts: list[str] = []
    position, rest = 0, list(reversed(values))
    for match in _DIRECTIVE.finditer(format):
        parts.append(format[position : match.start()])
        position = match.end()
        parts.append(_directive(match, rest, budget))
    parts.append(format[position:])
    if rest:
        extra = ", ".join(f"{type_name(value)}={to_text(value, budget)}" for value in reversed(rest))
        parts.append(f"%!(EXTRA {extra})")
    return _joined(parts, "", budget)


def _directive(match: re.Match[str], rest: list[object], budget: Budget) -> str:
    """One directive's text; takes its values off the end of `rest`."""
    flags, told_width, told_precision, verb = match.groups()
    if verb == "%":
        return "%"
    if verb == "[":
        raise ExecutionError(f"printf: {match.group()[:20]!r} is not supported")
    width, precision = (_size(told, rest) for told in (told_width, told_precision))
    if not verb:
        return "%!(NOVERB)"
    if not rest:
        return f"%!{verb}(MISSING)"
    value = rest.pop()
    if width is not None and width < 0:
        flags, width = f"{flags}-", -width
    if precision is not None and precision < 0:
        precision = None
    budget.spend(width or 0)
    return _padded(_formatted(value, verb, flags, precision, budget), value, flags, width or 0)


def _size(told: str | None, rest: list[object]) -> int | None:
    """A width or precision: digits, or `*` for the next value. `None`: there is none."""
    if told is None:
        return None
    size: object = int(told[:9] or 0) if told != "*" else rest.pop() if rest else None
    if not isinstance(size, int) or isinstance(size, bool):
        raise ExecutionError(f"printf: a width is a whole number, not a value of type {type_name(size)}")
    if abs(size) > MAX_WIDTH:
        raise ExecutionError(f"printf: a width is at most {MAX_WIDTH}")
    return size


def quoted(text: str) -> str:
    """A text as Go's `%q` has it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _joined(parts: Sequence[str], separator: str, budget: Budget) -> str:
    budget.spend(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _formatted(value: object, verb: str, flags: str, precision: int | None, budget: Budget) -> str:
    if verb == "v":
        return _signed(to_text(value, budget), value, flags)
    if verb == "T":
        return type_name(value)
    if verb == "s" and isinstance(value, WITH_STRING_METHOD):
        value = to_text(value, budget)
    if isinstance(value, list):
        return f"[{' '.join(_formatted(item, verb, flags, precision, budget) for item in value)}]"
    text = _by_type(value, verb, flags, precision, budget)
    if text is None:
        shown = "<nil>" if value is None else f"{type_name(value)}={to_text(value, budget)}"
        return f"%!{verb}({shown})"
    return _signed(text, value, flags)


def _by_type(value: object, verb: str, flags: str, precision: int | None, budget: Budget) -> str | None:
    """`None`: the verb is not for values of this type."""
    match value:
        case bool():
            return str(is_true(value)).lower() if verb == "t" else None
        case str():
            writers: dict[str, Callable[[str], str]] = {
                "s": str,
                "q": quoted,
                "x": lambda text: text.encode(errors="replace").hex(),
                "X": lambda text: text.encode(errors="replace").hex().upper(),
            }
            budget.check(len(value) * (1 if verb == "s" else 4))
            return writers[verb](value if precision is None else value[:precision]) if verb in writers else None
        case int() if verb in _BASES:
            return format(value, ("#" if "#" in flags and verb != "d" else "") + _BASES[verb])
        case int() if verb in "cUq" and 0 <= value <= 0x10FFFF and not 0xD800 <= value <= 0xDFFF:
            return {"c": chr(value), "U": f"U+{value:04X}", "q": f"'{_escaped(chr(value))}'"}[verb]
        case float() if verb in "eEfFgG":
            if verb in "gG" and precision is None:
                return to_text(value, budget)
            budget.spend(precision or 0)
            return format(value, f".{6 if precision is None else precision}{verb}")
    return None


def _signed(text: str, value: object, flags: str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not text.startswith(("-", "+")):
        return ("+" if "+" in flags else " " if " " in flags else "") + text
    return text


def _padded(text: str, value: object, flags: str, width: int) -> str:
    if "-" in flags:
        return text.ljust(width)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if "0" in flags and is_number and text[:1] in "+- ":
        return text[:1] + text[1:].rjust(width - 1, "0")
    return text.rjust(width, "0" if "0" in flags and is_number else " ")


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
