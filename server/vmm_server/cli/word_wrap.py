"""Lines that break between words, for text that comes in pieces. Pure.

Text is written as it comes, so that a slow model's words appear letter by letter. A word that reaches the edge is taken
back (cursor left, erase to the end of the line) and written again on the next line.
"""

from prompt_toolkit.utils import get_cwidth

_TAB = 8


class WordWrap:
    """What to write for each piece of a text, on a terminal of so many columns."""

    def __init__(self, columns: int) -> None:
        self._edge = max(columns - 1, 1)  # the last column stays free: there a cursor's place differs by terminal
        self._column = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """The text, with the breaks and the steps back that it needs."""
        return "".join(self._write(character) for character in text)

    def _write(self, character: str) -> str:
        if character == "\n":
            self._column, self._word = 0, ""
            return character
        width = _TAB - self._column % _TAB if character == "\t" else get_cwidth(character)
        if self._column + width > self._edge:
            return self._break(character, width)
        self._column += width
        # a line may break on either side of a wide character: such scripts have no spaces
        self._word = "" if character.isspace() or width > 1 else self._word + character
        return character

    def _break(self, character: str, width: int) -> str:
        """A line's end: instead of the space that is next, between wide characters, or before the word so far."""
        if character.isspace():
            self._column, self._word = 0, ""
            return "\n"
        word = "" if width > 1 else self._word
        back = get_cwidth(word)
        if back == self._column:  # the word is as long as the line: it breaks where it is
            word = back_up = ""
            back = 0
        else:
            back_up = f"\x1b[{back}D\x1b[K" if back else ""
        self._column = back + width
        self._word = "" if width > 1 else word + character
        return f"{back_up}\n{word}{character}"
