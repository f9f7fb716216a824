"""Taking a model's thinking off its answer, and counting its tokens."""

import re
from collections.abc import Callable, Iterable
from enum import Enum

from vmm_server.prompt.formats.base import ReasoningFormat
from vmm_server.prompt.formats.tape import marker_pattern


class _At(Enum):
    """Where a `ThinkingReader` stands."""

    BEGINNING = 0
    MARKER = 1
    """Right after the start marker."""
    THOUGHT = 2
    END = 3
    """After the end marker."""
    TAG = 4
    """Right after the tag that some put before what follows."""
    ANSWER = 5


class ThinkingReader:
    """Takes the thinking off the beginning of a text. White space around it and its markers belongs to neither."""

    def __init__(self, format: ReasoningFormat, *, is_open: bool) -> None:
        """`is_open`: the prompt ends in the middle of the thinking."""
        self._start = format.start
        self._end = marker_pattern((format.end,))
        self._tag, tag_end = format.answer or ("", "")
        self._tag_end = marker_pattern((tag_end,))
        self.was_found = is_open
        self.is_over = False
        """What follows needs no reading."""
        self._at = _At.BEGINNING
        self._held = ""

    def push(self, text: str, is_last: bool) -> tuple[str, str]:
        """(thinking, other text) that became certain. The last push releases what was held back."""
        self._held += text
        if self._at is _At.BEGINNING and not self._begin(is_last):
            return "", ""
        thought = answer = ""
        if self._at in (_At.MARKER, _At.THOUGHT):
            thought = self._up_to(self._end, _At.MARKER, is_last)
        if self._at is _At.END:
            self._find_tag(is_last)
        if self._at in (_At.TAG, _At.ANSWER):
            answer = self._up_to(self._tag_end, _At.TAG, is_last)
            self._pass_tag(is_last)
        if self.is_over:
            answer, self._held = answer + self._held, ""
        return thought, answer

    def _begin(self, is_last: bool) -> bool:
        """Find out whether the text begins with thinking; false: not yet. The marker may come again after a prompt
        that ends with it."""
        text = self._held.lstrip()
        if len(text) < len(self._start) and self._start.startswith(text) and not is_last:
            return False
        if text.startswith(self._start):
            self.was_found = True
            self._held = text[len(self._start) :]
        if self.was_found:
            self._at = _At.MARKER
        else:
            self.is_over = True
        return True

    def _up_to(self, end: re.Pattern[str], beginning: _At, is_last: bool) -> str:
        """The text before an end marker, as far as it is certain, without the white space around it."""
        text = self._held.lstrip() if self._at is beginning else self._held
        match = end.search(text)
        if match is not None and match.lastindex is not None:
            self._held = text[match.end() :]
            self._at = _At.END
            return text[: match.start()].rstrip()
        before = text if match is None else text[: match.start()]
        certain = text if is_last else before.rstrip()
        self._held = text[len(certain) :]
        if certain:
            self._at = _At(beginning.value + 1)
        return certain

    def _find_tag(self, is_last: bool) -> None:
        """After thinking: is what follows in a tag of its own?"""
        text = self._held = self._held.lstrip()
        if len(text) < len(self._tag) and self._tag.startswith(text) and not is_last:
            return
        if self._tag and text.startswith(self._tag):
            self._held = text[len(self._tag) :]
            self._at = _At.TAG
        else:
            self.is_over = bool(text)

    def _pass_tag(self, is_last: bool) -> None:
        """After that tag, if it has ended, nothing is read any more."""
        if self._at is _At.END:
            self._tag = ""
            self._find_tag(is_last)


class TokenCounter:
    """Counts the tokens of thinking: all up to the one that completes the end marker, told by their bytes, because
    a delta's text may come later than its tokens."""

    def __init__(self, end: str, token_bytes: Callable[[int], bytes]) -> None:
        self._end = end.encode()
        self._token_bytes = token_bytes
        self._tail = b""
        self._is_over = False
        self.count = 0

    def push(self, token_ids: Iterable[int]) -> None:
        """Count the next ones."""
        if self._is_over:
            return
        for token_id in token_ids:
            self.count += 1
            self._tail += self._token_bytes(token_id)
            if self._end in self._tail:
                self._is_over = True
                return
            self._tail = self._tail[-len(self._end) :]
