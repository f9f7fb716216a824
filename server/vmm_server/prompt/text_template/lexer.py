"""Go's template source → tokens, white space at trim markers taken off.

The grammar is that of the documentation of Go's package text/template ("Text and spaces", "Actions") and, for
literals, of Go's language specification.
"""

import re
from bisect import bisect_right
from collections.abc import Generator, Iterator
from enum import Enum
from typing import NamedTuple, NoReturn

from vmm_server.errors import InvalidRequest

MAX_TOKENS = 50_000
"""Tokens a template may have; the longest of today's have about 2,000."""

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""
    (?P<close>[ \t\r\n]+-\}\}|[ \t\r\n]*\}\})
    |(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|`[^`]*`)
    |(?P<character>'(?:[^'\\\n]|\\[^\n])[^'\n]{0,8}')
    |(?P<number>[+-]?(?:\d|\.\d)(?:[eE][+-]|[\w.])*)
    |(?P<field>\.[^\W\d]\w*)
    |(?P<variable>\$\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<symbol>:=|[=|(),.])
    """,
    re.VERBOSE,
)
_AFTER_NAME = re.compile(r"[ \t\r\n.,|:()=]|\}\}|\Z")
_ESCAPE = re.compile(
    rb"""\\(?:([abfnrtv\\'"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))""", re.DOTALL
)
_SIMPLE = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


class Kind(Enum):
    """Of a token."""

    TEXT = "text"
    CLOSE = "close"
    LITERAL = "literal"
    FIELD = "field"
    VARIABLE = "variable"
    WORD = "word"
    SYMBOL = "symbol"
    END = "end"


class Token(NamedTuple):
    """One token; an action's tokens end with a `CLOSE`."""

    kind: Kind
    text: str
    """The text or name itself; a literal as it was written."""
    line: int
    is_spaced: bool = True
    """White space stands before it."""
    value: str | int | float = ""
    """Of a literal."""


def fail(line: int, message: str) -> NoReturn:
    """Raise the error for a template that cannot be parsed."""
    raise InvalidRequest(f"the template cannot be compiled in line {line}: {message}", param="template")


def read_tokens(source: str) -> list[Token]:
    """The tokens. Raises `InvalidRequest` (param `template`) with the line for what is none."""
    tokens: list[Token] = []
    for token in _Lexer(source).tokens():
        if len(tokens) == MAX_TOKENS:
            fail(token.line, f"it has more than {MAX_TOKENS} tokens")
        tokens.append(token)
    return tokens


class _Lexer:
    def __init__(self, source: str) -> None:
        self._source = source
        self._newlines = [match.start() for match in re.finditer("\n", source)]

    def tokens(self) -> Iterator[Token]:
        source, position, trims = self._source, 0, False
        while True:
            start = source.find("{{", position)
            text = source[position:] if start < 0 else source[position:start]
            text = text.lstrip(_SPACE) if trims else text
            inside = start + 2
            if start >= 0 and source[inside : inside + 1] == "-" and source[inside + 1 : inside + 2] in (*_SPACE,):
                text = text.rstrip(_SPACE)
                inside += 2
            if text:
                yield Token(Kind.TEXT, text, self._line(position))
            if start < 0:
                yield Token(Kind.END, "the end", self._line(len(source)))
                return
            if source.startswith("/*", inside):
                position = self._comment(inside)
            else:
                position = yield from self._action(start, inside)
            trims = source.endswith("-}}", 0, position) and source[position - 4] in _SPACE

    def _comment(self, start: int) -> int:
        end = self._source.find("*/", start + 2)
        if end < 0:
            fail(self._line(start), "a comment is not closed")
        match = _TOKEN.match(self._source, end + 2)
        if match is None or match.lastgroup != "close":
            fail(self._line(end), "a comment must be alone in its action: {{/* … */}}")
        return match.end()

    def _action(self, start: int, position: int) -> Generator[Token, None, int]:
        """The action's tokens; returns where it ends."""
        is_spaced = True
        while True:
            match = _TOKEN.match(self._source, position)
            if match is None:
                self._refuse(start, position)
            kind, line = match.lastgroup, self._line(position)
            position = match.end()
            if kind == "space":
                is_spaced = True
                continue
            yield self._token(str(kind), match.group(), line, is_spaced)
            if kind == "close":
                return position
            if kind in ("field", "variable", "word") and not _AFTER_NAME.match(self._source, position):
                self._refuse(start, position)
            is_spaced = False

    def _token(self, kind: str, text: str, line: int, is_spaced: bool) -> Token:
        if kind == "string":
            value = text[1:-1].replace("\r", "") if text[0] == "`" else _unquoted(text, line)
            return Token(Kind.LITERAL, text, line, is_spaced, value)
        if kind == "character":
            character = _unquoted(text, line)
            if len(character) != 1:
                fail(line, f"{text} is not one character")
            return Token(Kind.LITERAL, text, line, is_spaced, ord(character))
        if kind == "number":
            return Token(Kind.LITERAL, text, line, is_spaced, _number(text, line))
        return Token(Kind(kind), text[1:] if kind == "field" else text, line, is_spaced)

    def _refuse(self, start: int, position: int) -> NoReturn:
        rest = self._source[position : position + 1]
        if not rest:
            fail(self._line(start), "an action is not closed")
        if rest in "\"`'":
            fail(self._line(position), f"a text that begins with {rest} is not closed")
        fail(self._line(position), f"{rest!r} cannot stand here in an action")

    def _line(self, position: int) -> int:
        return bisect_right(self._newlines, position - 1) + 1


def _unquoted(text: str, line: int) -> str:
    """A quoted text's meaning. Escapes may spell bytes; those that are no UTF-8 become U+FFFD."""

    def meant(match: re.Match[bytes]) -> bytes:
        simple, octal, byte, short, long, _ = match.groups()
        if simple:
            return bytes((_SIMPLE[simple[0]],))
        code = int(octal, 8) if octal else int(byte or short or long or b"-1", 16)
        if octal or byte:
            if code > 0xFF:
                fail(line, f"{text} holds an escape that is no byte")
            return bytes((code,))
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            fail(line, f"{text} holds an unknown escape")
        return chr(code).encode()

    return _ESCAPE.sub(meant, text[1:-1].encode(errors="replace")).decode(errors="replace")


def _number(text: str, line: int) -> int | float:
    """A number as Go's language spells it: signs, bases, underscores between digits."""
    digits = text.lstrip("+-").lower()
    if re.fullmatch(r"0_?[0-7]+(_[0-7]+)*", digits):
        text = text.replace("0", "0o", 1)  # Go's old way to write base eight
    try:
        is_float = not digits.startswith("0x") and any(mark in digits for mark in ".e")
        value = float(text) if is_float else int(text, 0)
    except ValueError:
        fail(line, f"{text[:40]} is no number that is supported here")
    if value in (float("inf"), float("-inf")) or (isinstance(value, int) and not -(2**63) <= value < 2**64):
        fail(line, f"{text[:40]} is too large a number")
    return value
