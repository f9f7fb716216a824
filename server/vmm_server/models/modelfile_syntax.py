"""How a Modelfile is written: text ↔ instructions, as Ollama's parser/parser.go reads them. Pure.

An instruction stands at the start of a line: a name, for PARAMETER and MESSAGE a second word, and a value. The value is
the rest of the line, or stands in one or three double quotes, over several lines if need be; it ends where the same
quotes end a line. A text with such a line inside cannot be written so. For it there is one form of our own, which
Ollama's parser refuses instead of misreading: `SYSTEM<<END`, the text, and a line `END`, as in a shell.
"""

import codecs
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmm_server.errors import InvalidRequest, UnsupportedParameter

TAKEN = ("from", "parameter", "template", "system", "adapter", "license", "message", "requires")
REFUSED = {
    "renderer": "prompts are written by the model's chat template",
    "parser": "answers are read as the model's chat template shows",
    "draft": "draft models are not run",
}
"""Instructions of Ollama's that cannot be honoured, and why."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_TWO_WORDS = {
    "parameter": "write PARAMETER, a parameter's name and its value",
    "message": "write MESSAGE, a role and a text",
}
_GAP = re.compile(r"(?:\s++|#[^\r\n]*+)++")
"""What may stand between instructions."""
_WORD = re.compile(r"[A-Za-z0-9_]+")
_BLANKS = re.compile(r"[^\S\r\n]+")
_LINE = re.compile(r"[^\r\n]*")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_HEREDOC = re.compile(r"<<([A-Za-z0-9_]+)[^\S\r\n]*(\r\n|\r|\n)")
_CLOSED_BY = {quotes: re.compile(rf"{quotes}[^\S\r\n]*(?=[\r\n]|\Z)") for quotes in ('"""', '"')}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, and where it stood."""

    line: int
    name: str
    """One of `TAKEN`."""
    word: str
    """The second word of PARAMETER and MESSAGE; empty for others."""
    value: str

    def error(self, problem: str, hint: str | None = None) -> InvalidRequest:
        """What is wrong with it, with the place."""
        return _error(self.line, f"{self.name.upper()} {self.word}".rstrip(), problem, hint)


def decode(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark as PowerShell writes it. Raises `InvalidRequest`."""
    encoding, start = next(((name, len(bom)) for bom, name in _BOMS if content.startswith(bom)), ("utf-8", 0))
    try:
        return content[start:].decode(encoding)
    except UnicodeDecodeError as error:
        before = content[start : start + error.start].decode(encoding, "replace")
        raise InvalidRequest(
            f"the Modelfile, line {len(_NEWLINE.findall(before)) + 1}: this is not {encoding.upper()} text",
            param="modelfile",
            hint="save it as UTF-8, or as UTF-16 with a byte order mark",
        ) from error


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions in their order. Raises `InvalidRequest` and `UnsupportedParameter`, naming the line."""
    position, counted, line = 0, 0, 1
    while True:
        if gap := _GAP.match(text, position):
            position = gap.end()
        if position == len(text):
            return
        line += len(_NEWLINE.findall(text, counted, position))
        counted = position
        word = _WORD.match(text, position)
        name = word.group().lower() if word else ""
        if word is None or name not in TAKEN:
            raise _unknown(line, name, _rest_of_line(text, position))
        second, position = "", word.end()
        if name in _TWO_WORDS:
            second, position = _second_word(text, position)
            if not second:
                raise _error(line, name.upper(), "its second word is missing", _TWO_WORDS[name])
        value, position = _value(text, position, line, f"{name.upper()} {second}".rstrip())
        yield Instruction(line, name, second, value)


def write_instruction(name: str, text: str) -> str:
    """One instruction, in the plainest form that is read back as this text. `name` has both words of two."""
    if text and text == text.strip() and not _NEWLINE.search(text) and not text.startswith('"'):
        return f"{name} {text}"
    for quotes in ('"""',) if '"' in text else ('"',):
        end = _CLOSED_BY[quotes].search(text + quotes)
        if end and end.start() == len(text):
            return f"{name} {quotes}{text}{quotes}"
    word = next(word for number in itertools.count() if (word := f"END{number or ''}") not in text)
    return f"{name}<<{word}\n{text}\n{word}"


def close_to(word: str, words: Iterable[str]) -> str:
    """A hint for a word that is not among `words`."""
    known = sorted(words)
    near = difflib.get_close_matches(word[:40], known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _second_word(text: str, position: int) -> tuple[str, int]:
    blanks = _BLANKS.match(text, position)
    word = _WORD.match(text, blanks.end()) if blanks else None
    return (word.group(), word.end()) if word else ("", position)


def _value(text: str, position: int, line: int, where: str) -> tuple[str, int]:
    """The value that begins at `position`, and where it ends."""
    if heredoc := _HEREDOC.match(text, position):
        return _heredoc_value(text, heredoc, line, where)
    blanks = _BLANKS.match(text, position)
    if not blanks:
        stray = _rest_of_line(text, position)
        raise _error(line, where, f"{stray[:40]!r} follows it without a space" if stray else "its value is missing")
    start = blanks.end()
    for quotes, closed in _CLOSED_BY.items():
        if text.startswith(quotes, start):
            begin = start + len(quotes)
            if end := closed.search(text, begin):
                return text[begin : end.start()], end.end()
            raise _error(line, where, f"its text begins with {quotes} and never ends", "put the same quotes at its end")
    rest = _rest_of_line(text, start)
    return rest.strip(), start + len(rest)


def _heredoc_value(text: str, opening: re.Match[str], line: int, where: str) -> tuple[str, int]:
    word, newline = opening.groups()
    closing = re.compile(rf"(?<=[\r\n]){word}[^\S\r\n]*(?=[\r\n]|\Z)").search(text, opening.end())
    if closing is None:
        raise _error(line, where, "its text never ends", f"put a line {word} after it")
    return text[opening.end() : closing.start()].removesuffix(newline), closing.end()


def _rest_of_line(text: str, position: int) -> str:
    rest = _LINE.match(text, position)
    return rest.group() if rest else ""


def _unknown(line: int, name: str, written: str) -> InvalidRequest:
    where = f"the Modelfile, line {line}"
    if name in REFUSED:
        return UnsupportedParameter(
            f"{where}: {name.upper()} is not supported: {REFUSED[name]}", param=name, hint="leave the line out"
        )
    hint = close_to(name.upper(), (taken.upper() for taken in TAKEN))
    return InvalidRequest(f"{where}: {written[:40]!r} begins with no instruction", param="modelfile", hint=hint)


def _error(line: int, where: str, problem: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"the Modelfile, line {line}: {where}: {problem}", param="modelfile", hint=hint)
