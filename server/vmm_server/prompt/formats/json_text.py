"""JSON that a model writes: read as it comes, passed on as it is, and stopped where it is no JSON any more.

Two things that models often get wrong inside strings are mended: raw control characters (line breaks above all) and
backslashes that escape nothing.
"""

import json
import re
from collections.abc import Generator, Set

from vmm_server.prompt.formats.base import Arguments, CallStart
from vmm_server.prompt.formats.tape import (
    NotACall,
    Parts,
    Pieces,
    Tape,
    Truncated,
    next_character,
    take_if,
    take_space,
)

MAX_DEPTH = 200
"""Of objects and arrays in each other; readers of JSON recurse."""

_SPACE = re.compile(r"[ \t\n\r]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_LITERAL = re.compile(r"(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\Z")
_WORD = re.compile(r"[-+.\w]+")
_NAME = ("name", "function")
_ARGUMENTS = ("arguments", "parameters")
_CLOSING = {"{": "}", "[": "]"}


def json_value(tape: Tape) -> Pieces:
    """One value, piece by piece: always the beginning of valid JSON. Raises `NotACall` or `Truncated`."""
    open_brackets: list[str] = []
    wants = "value"
    while True:
        character = yield from next_character(tape)
        if (match := _SPACE.match(tape.text, tape.position)) is not None:
            yield tape.take(match.end() - match.start())
            continue
        if character in _CLOSING and wants.startswith("value"):
            if len(open_brackets) == MAX_DEPTH:
                raise NotACall
            open_brackets.append(character)
            yield tape.take(1)
            wants = "key or end" if character == "{" else "value or end"
            continue
        if open_brackets and character == _CLOSING[open_brackets[-1]] and wants.endswith("end"):
            yield tape.take(1)
            open_brackets.pop()
        elif character == '"' and wants.startswith(("key", "value")):
            yield from _string(tape)
            if wants.startswith("key"):
                wants = ":"
                continue
        elif wants.startswith("value"):
            yield from _literal(tape)
        elif character == ":" == wants:
            yield tape.take(1)
            wants = "value"
            continue
        elif character == "," and wants == "comma or end":
            yield tape.take(1)
            wants = "key" if open_brackets[-1] == "{" else "value"
            continue
        else:
            raise NotACall
        if not open_brackets:
            return
        wants = "comma or end"


def whole_value(tape: Tape) -> Generator[None, None, str]:
    """The text of one value, once all of it is there."""
    pieces: list[str] = []
    for piece in json_value(tape):
        if piece is None:
            yield None
        else:
            pieces.append(piece)
    return "".join(pieces)


def spoken(pieces: Pieces) -> Parts:
    """Pieces of JSON as arguments of the call that has begun."""
    for piece in pieces:
        yield None if piece is None else Arguments(piece)


def call_object(tape: Tape, names: Set[str], first: Set[str] | None = None, *, is_inner: bool = False) -> Parts:
    """`{"name": …, "arguments": {…}}`, in any order; `parameters` means the same as `arguments`.

    Other members are read over, but only the keys in `first` may come first. A call without arguments has none:
    `{}`. Arguments may also be JSON in a string, and the whole may stand in `function`, as tools are told.
    """
    name: str | None = None
    held: str | None = None
    is_given = False
    if not (yield from take_if(tape, "{")):
        raise NotACall
    is_first = True
    while not (yield from _at_end(tape, is_first, is_given)):
        key = json.loads((yield from _key(tape)))
        if is_first and first is not None and key not in first:
            raise NotACall
        is_first = False
        if key == "function" and name is None and not is_inner and (yield from next_character(tape)) == "{":
            yield from call_object(tape, names, is_inner=True)
            is_given = True
        elif key in _NAME and name is None and not is_given:
            name = yield from _name(tape, names)
        elif key in _ARGUMENTS and not is_given:
            if name is not None and (yield from next_character(tape)) == "{":
                yield CallStart(name)
                is_given = True
                yield from spoken(json_value(tape))
            else:
                held = _as_object((yield from whole_value(tape)))
        else:
            value = yield from whole_value(tape)
            if key == "type" and value != '"function"':  # an answer in JSON, which is not to be held back
                raise NotACall
        if name is not None and held is not None and not is_given:
            yield CallStart(name)
            yield Arguments(held)
            is_given = True
    if not is_given:
        if name is None:
            raise NotACall
        yield CallStart(name)
        yield Arguments("{}")


def call_objects(tape: Tape, names: Set[str], separators: str = ",", first: Set[str] | None = None) -> Parts:
    """One call object, several that are parted by separators or white space, or an array of them."""
    yield from take_space(tape)
    is_array = yield from take_if(tape, "[")
    while True:
        yield from take_space(tape)
        yield from call_object(tape, names, first)
        tape.forget()
        while True:
            yield from take_space(tape)
            try:
                character = yield from next_character(tape)
            except Truncated:
                return
            if character not in separators:
                break
            tape.take(1)
        if character != "{":
            break
    if is_array:
        yield from take_if(tape, "]")
    tape.forget()


def _at_end(tape: Tape, is_first: bool, may_lack: bool) -> Generator[None, None, bool]:
    """Between two members of an object: take the comma, or the brace that ends it, which models forget at times."""
    yield from take_space(tape)
    character = yield from next_character(tape)
    if character == "}":
        tape.take(1)
        return True
    if not is_first:
        if character != ",":
            if may_lack:
                return True
            raise NotACall
        tape.take(1)
        yield from take_space(tape)
    return False


def _name(tape: Tape, names: Set[str]) -> Generator[None, None, str]:
    if (yield from next_character(tape)) != '"':
        raise NotACall
    name = str(json.loads((yield from whole_value(tape))))
    if name not in names:
        raise NotACall
    return name


def _key(tape: Tape) -> Generator[None, None, str]:
    """A member's key and colon."""
    if (yield from next_character(tape)) != '"':
        raise NotACall
    key = yield from whole_value(tape)
    yield from take_space(tape)
    if (yield from next_character(tape)) != ":":
        raise NotACall
    tape.take(1)
    yield from take_space(tape)
    return key


def _as_object(text: str) -> str:
    """Arguments as an object that may have been written as JSON in a string, or left out. Raises `NotACall`."""
    if text.startswith('"'):
        inner = Tape()
        inner.feed(json.loads(text).strip() or "{}")
        inner.is_over = True
        try:
            text = "".join(filter(None, json_value(inner)))
        except Truncated as error:
            raise NotACall from error
        if inner.position < len(inner.text):
            raise NotACall
    if text == "null":
        return "{}"
    if not text.startswith("{"):
        raise NotACall
    return text


def _string(tape: Tape) -> Pieces:
    yield tape.take(1)
    while True:
        if (match := _PLAIN.match(tape.text, tape.position)) is not None:
            yield tape.take(match.end() - match.start())
        character = yield from next_character(tape)
        if character == '"':
            yield tape.take(1)
            return
        if character == "\\":
            yield from _escape(tape)
        elif character < " ":
            yield json.dumps(tape.take(1))[1:-1]


def _escape(tape: Tape) -> Pieces:
    while True:
        if (match := _ESCAPE.match(tape.text, tape.position)) is not None:
            yield tape.take(match.end() - match.start())
            return
        ahead = tape.text[tape.position : tape.position + 6]
        if re.fullmatch(r"\\(?:u[0-9a-fA-F]{0,3})?", ahead) is None:
            break
        if tape.is_over:
            raise Truncated
        yield None
    tape.take(1)
    if ahead[1] == "'":
        yield tape.take(1)
    else:
        yield "\\\\"


def _literal(tape: Tape) -> Pieces:
    """A number, `true`, `false` or `null`: certain when something else follows."""
    while True:
        match = _WORD.match(tape.text, tape.position)
        if match is None:
            raise NotACall
        if match.end() < len(tape.text) or tape.is_over:
            break
        yield None
    if _LITERAL.match(match.group()) is None:
        raise Truncated if match.end() == len(tape.text) else NotACall
    yield tape.take(match.end() - match.start())
