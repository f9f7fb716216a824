"""Reading an answer that comes in pieces as if it were whole.

A parser is written as a generator over a `Tape`: straight code that looks at the text ahead, takes what it
understands, and yields the parts that became certain, or `None` where it has to see more before it can go on. As no
decision is ever taken on half a token, the parts do not depend on where the text was cut.
"""

import re
from collections.abc import Generator, Iterable, Sequence, Set
from functools import lru_cache

from vmm_server.prompt.formats.base import Part, Text

Pieces = Generator[str | None, None, None]
"""Text as it becomes certain; `None`: more is needed."""
Parts = Generator[Part | None, None, None]
"""The same of parts."""
Asks = Generator[None, None, bool]
"""An answer to a question about the text ahead, which may need more of it."""

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[^\s()\[\]{}<>]*")


class NotACall(Exception):
    """What looked like a call is none, from where the tape stands."""


class Truncated(Exception):
    """The answer ended in the middle of a call."""


class Tape:
    """The text ahead, and what was taken of it since the last part was given out."""

    __slots__ = ("_taken", "is_over", "position", "text")

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        """Of the next character in `text`."""
        self.is_over = False
        """Nothing will be added."""
        self._taken: list[str] = []

    def feed(self, text: str) -> None:
        """Add text."""
        self.text = self.text[self.position :] + text
        self.position = 0

    def take(self, count: int) -> str:
        """The next characters."""
        piece = self.text[self.position : self.position + count]
        self.position += len(piece)
        self._taken.append(piece)
        return piece

    def take_rest(self) -> str:
        """All that is there."""
        return self.take(len(self.text) - self.position)

    def taken(self) -> str:
        """What was taken and stands in no part yet; it is forgotten here."""
        text = "".join(self._taken)
        self._taken.clear()
        return text

    def forget(self) -> None:
        """What was taken is certain: it will not be asked back as text."""
        self._taken.clear()


def comes(tape: Tape, literal: str) -> Asks:
    """Does this text come next? It is not taken."""
    while True:
        ahead = tape.text[tape.position : tape.position + len(literal)]
        if ahead == literal or tape.is_over or not literal.startswith(ahead):
            return ahead == literal
        yield None


def take_if(tape: Tape, literal: str) -> Asks:
    """Take this text if it comes next."""
    if (yield from comes(tape, literal)):
        tape.take(len(literal))
        return True
    return False


def take_end(tape: Tape, literal: str) -> Generator[None, None, None]:
    """Take what ends a call, if it is there, and white space after it. Of a cut-off answer half of it may be there."""
    if not (yield from take_if(tape, literal)) and tape.is_over and literal.startswith(tape.text[tape.position :]):
        tape.take_rest()
    yield from take_space(tape)


def take_space(tape: Tape) -> Generator[None, None, None]:
    """Take white space, up to the next other character or the end."""
    while True:
        match = _SPACE.match(tape.text, tape.position)
        if match is not None and match.end() > tape.position:
            tape.take(match.end() - tape.position)
        if tape.position < len(tape.text) or tape.is_over:
            return
        yield None


def expect(tape: Tape, literal: str) -> Generator[None, None, None]:
    """Take this text. Raises `NotACall` if another comes, `Truncated` at the end."""
    if not (yield from take_if(tape, literal)):
        raise Truncated if tape.is_over and literal.startswith(tape.text[tape.position :]) else NotACall


def next_character(tape: Tape) -> Generator[None, None, str]:
    """The next character; it is not taken. Raises `Truncated` at the end."""
    while tape.position >= len(tape.text):
        if tape.is_over:
            raise Truncated
        yield None
    return tape.text[tape.position]


def take_name(tape: Tape, names: Set[str]) -> Generator[None, None, str]:
    """Take the name of a tool, up to a bracket or white space. Raises `NotACall` where it cannot become one."""
    while True:
        match = _NAME.match(tape.text, tape.position)
        name = match.group() if match is not None else ""
        if tape.position + len(name) < len(tape.text) or tape.is_over:
            break
        if not any(known.startswith(name) for known in names):
            raise NotACall
        yield None
    if name not in names:
        raise Truncated if tape.is_over and tape.position + len(name) == len(tape.text) else NotACall
    tape.take(len(name))
    return name


def text_until(tape: Tape, markers: Iterable[str]) -> Generator[Part | None, None, bool]:
    """Give text out up to the first of the markers, or the end (then false). White space before it stays ahead."""
    pattern = marker_pattern(tuple(markers))
    while True:
        match = pattern.search(tape.text, tape.position)
        is_marker = match is not None and match.lastindex is not None
        if match is None or (tape.is_over and not is_marker):
            text = tape.text[tape.position :]
        else:
            text = tape.text[tape.position : match.start()]
        if is_marker or not tape.is_over:
            text = text.rstrip()
        if text:
            tape.take(len(text))
            tape.forget()
            yield Text(text)
        if is_marker:
            return True
        if tape.is_over:
            return False
        yield None


def attempt(tape: Tape, calls: Parts) -> Parts:
    """Give out the parts of calls, and as text what turns out to be none.

    What a cut-off answer leaves of a call that has begun is given up: it is neither arguments nor text.
    """
    has_begun = False
    try:
        for part in calls:
            if part is not None:
                has_begun = True
                tape.forget()
            yield part
    except NotACall:
        if text := tape.taken():
            yield Text(text)
    except Truncated:
        tape.take_rest()
        if not has_begun:
            yield Text(tape.taken())
    tape.forget()


@lru_cache(maxsize=64)
def marker_pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    """A whole marker (as group 1), or the beginning of one at the end of the text."""
    whole = "|".join(map(re.escape, sorted(markers, key=len, reverse=True)))
    beginnings = sorted({marker[:size] for marker in markers for size in range(1, len(marker))}, key=len, reverse=True)
    partial = "|".join(map(re.escape, beginnings)) or "(?!)"
    return re.compile(rf"({whole})|(?:{partial})\Z")


class TapeParser:
    """A `ToolParser` made of a generator."""

    def __init__(self, tape: Tape, parts: Parts) -> None:
        self._tape = tape
        self._parts = parts

    def push(self, text: str) -> Sequence[Part]:
        """What has become certain."""
        self._tape.feed(text)
        return self._run()

    def finish(self) -> Sequence[Part]:
        """What was held back, when nothing follows."""
        self._tape.is_over = True
        return self._run()

    def _run(self) -> list[Part]:
        parts: list[Part] = []
        for part in self._parts:
            if part is None:
                break
            parts.append(part)
        return parts
