"""Values that are not written as JSON, turned into JSON as they come.

Languages differ in their strings, words and keys; commas, colons and brackets they have in common. JSON itself is
understood in all of them, because models fall back to it, and because enforced values are written so.
"""

import json
import re
from collections.abc import Callable, Generator, Mapping
from typing import ClassVar, Protocol

from vmm_server.prompt.formats.json_text import MAX_DEPTH, json_value
from vmm_server.prompt.formats.tape import (
    Asks,
    NotACall,
    Pieces,
    Tape,
    Truncated,
    comes,
    expect,
    marker_pattern,
    next_character,
    take_space,
)

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}


class Language(Protocol):
    """How one family writes values."""

    brackets: Mapping[str, str]
    """Opening → closing; `}` ends an object, everything else an array."""

    def atom(self, tape: Tape) -> Pieces:
        """A string or a word, as JSON."""
        ...

    def key(self, tape: Tape) -> Pieces:
        """The key of an object's member, as a JSON string; its colon is left."""
        ...


def value(tape: Tape, language: Language) -> Pieces:
    """One value as JSON, piece by piece: always the beginning of valid JSON. Raises `NotACall` or `Truncated`."""
    closing: list[str] = []
    while True:
        yield from take_space(tape)
        character = yield from next_character(tape)
        is_empty = character in language.brackets
        if is_empty:
            if len(closing) == MAX_DEPTH:
                raise NotACall
            closing.append(language.brackets[tape.take(1)])
            yield "{" if closing[-1] == "}" else "["
        else:
            yield from language.atom(tape)
        while closing:  # up to where a value is wanted
            is_ended = yield from _next_member(tape, closing[-1], is_empty)
            if not is_ended:
                if not is_empty:
                    yield ", "
                if closing[-1] == "}":
                    yield from language.key(tape)
                    yield from take_space(tape)
                    yield from expect(tape, ":")
                    yield ": "
                break
            yield "}" if closing.pop() == "}" else "]"
            is_empty = False
        if not closing:
            return


def _next_member(tape: Tape, closing: str, is_empty: bool) -> Asks:
    """Take the comma before the next member (false), or the bracket after the last (true), a comma before it too."""
    yield from take_space(tape)
    character = yield from next_character(tape)
    has_comma = character == "," and not is_empty
    if has_comma:
        tape.take(1)
        yield from take_space(tape)
        character = yield from next_character(tape)
    if character == closing:
        tape.take(1)
        return True
    if not has_comma and not is_empty:
        raise NotACall
    return False


def up_to(tape: Tape, *ends: str) -> Pieces:
    """The text up to the first of these, which is taken as well. Raises `Truncated`."""
    pattern = marker_pattern(ends)
    while True:
        match = pattern.search(tape.text, tape.position)
        is_end = match is not None and match.lastindex is not None
        if text := tape.take((len(tape.text) if match is None else match.start()) - tape.position):
            yield text
        if is_end and match is not None:
            tape.take(match.end() - match.start())
            return
        if tape.is_over:
            raise Truncated
        yield None


def whole_up_to(tape: Tape, *ends: str) -> Generator[None, None, str]:
    """The same, once all of it is there."""
    pieces: list[str] = []
    for piece in up_to(tape, *ends):
        if piece is None:
            yield None
        else:
            pieces.append(piece)
    return "".join(pieces)


def text_up_to(tape: Tape, *ends: str) -> Pieces:
    """The same as a JSON string."""
    yield '"'
    for piece in up_to(tape, *ends):
        yield None if piece is None else quoted(piece)[1:-1]
    yield '"'


def quoted(text: str) -> str:
    """A text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def word(text: str) -> str | None:
    """`True`, `null`, `3.5` as JSON; `None` for anything else."""
    if text in _WORDS:
        return _WORDS[text]
    return text if _NUMBER.fullmatch(text) else None


class Python:
    """Python's literals."""

    brackets: Mapping[str, str] = {"[": "]", "{": "}", "(": ")"}
    _WORD = re.compile(r"[-+.\w]*")
    _ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[^xuU])", re.DOTALL)
    _HALF_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]?|u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7})?")
    _SHORT: ClassVar = {
        "n": "\n",
        "t": "\t",
        "r": "\r",
        "b": "\b",
        "f": "\f",
        "0": "\0",
        "a": "\a",
        "v": "\v",
        "\n": "",
    }

    def atom(self, tape: Tape) -> Pieces:
        """A string, a number, `True`, `False` or `None`."""
        if (yield from next_character(tape)) in "'\"":
            yield from self._string(tape)
            return
        while True:
            match = self._WORD.match(tape.text, tape.position)
            end = match.end() if match is not None else tape.position
            if end < len(tape.text) or tape.is_over:
                break
            yield None
        text = tape.text[tape.position : end]
        found = word(text) or _python_number(text)
        if found is None:
            raise Truncated if end == len(tape.text) else NotACall
        tape.take(len(text))
        yield found

    def key(self, tape: Tape) -> Pieces:
        """A string."""
        if (yield from next_character(tape)) not in "'\"":
            raise NotACall
        yield from self._string(tape)

    def _string(self, tape: Tape) -> Pieces:
        quote = yield from next_character(tape)
        if (yield from comes(tape, quote * 3)):
            quote *= 3
        tape.take(len(quote))
        yield '"'
        plain = re.compile(rf"[^\\{quote[0]}]+")
        while True:
            if (match := plain.match(tape.text, tape.position)) is not None:
                yield quoted(tape.take(match.end() - match.start()))[1:-1]
            character = yield from next_character(tape)
            if character == "\\":
                yield from self._escape(tape)
            elif character == quote[0]:
                if (yield from comes(tape, quote)):
                    tape.take(len(quote))
                    yield '"'
                    return
                if tape.is_over and len(tape.text) - tape.position < len(quote):
                    raise Truncated
                yield quoted(tape.take(1))[1:-1]

    def _escape(self, tape: Tape) -> Pieces:
        while True:
            match = self._ESCAPE.match(tape.text, tape.position)
            if match is not None:
                break
            if self._HALF_ESCAPE.fullmatch(tape.text, tape.position) is None:  # of nothing: a backslash
                tape.take(1)
                yield "\\\\"
                return
            if tape.is_over:
                raise Truncated
            yield None
        code = tape.take(match.end() - match.start())[1:]
        if code[0] == "u":  # as it is: two of them may be one character
            yield "\\" + code
        elif code[0] in "xU":
            number = int(code[1:], 16)
            yield quoted(chr(number) if number < 0x110000 else "\\" + code)[1:-1]
        elif code in "\\'\"/":
            yield quoted(code)[1:-1]
        elif code != "\n":  # a line that goes on
            yield quoted(self._SHORT.get(code, "\\" + code))[1:-1]


def _python_number(text: str) -> str | None:
    """What Python takes for a number and JSON does not: `1_000`, `.5`, `+3`."""
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return repr(number) if number - number == 0 else None


PYTHON = Python()


def python_value(tape: Tape) -> Pieces:
    """A Python literal as JSON."""
    return value(tape, PYTHON)


def whole_json(text: str) -> str | None:
    """The text if it is JSON as a whole."""
    try:
        return _whole(text, json_value)
    except Truncated:
        return None


def is_beginning_of_json(text: str) -> bool:
    """Is it the beginning of an object or array, and not all of it?"""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        _whole(text, json_value)
    except Truncated:
        return True
    return False


def whole_python(text: str) -> str | None:
    """A Python literal as JSON if the text is one as a whole."""
    try:
        return _whole(text, python_value)
    except Truncated:
        return None


def _whole(text: str, read: Callable[[Tape], Pieces]) -> str | None:
    """What `read` makes of the text, if it takes all of it. Raises `Truncated`."""
    tape = Tape()
    tape.feed(text.strip())
    tape.is_over = True
    try:
        found = "".join(filter(None, read(tape)))
    except NotACall:
        return None
    return found if tape.position == len(tape.text) else None
