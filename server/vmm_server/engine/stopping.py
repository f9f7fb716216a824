"""Tokens → the text that may be shown: incremental detokenising, then stop strings."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_NUM_CONTEXT_TOKENS = 8
_MAX_WINDOW_TOKENS = 24
_MAX_HELD_TOKENS = 8  # a character has 4 bytes: what is not whole after 8 tokens never will be


def special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that are never shown (`<|im_end|>` and the like)."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


class Detokenizer:
    """Decodes one sequence as it grows, in constant time a token.

    Only a window of the last tokens is decoded, and what of its text was given out is remembered by length.
    The window begins with tokens that are out already, because a token's text can depend on the ones before it:
    SentencePiece drops the space at the start of a text, and only there. Bytes that do not make a character yet
    decode as U+FFFD, and with byte fallback so do all the bytes right before them: trailing ones are held back.
    """

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int], prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window = [i for i in prompt[-2 * _NUM_CONTEXT_TOKENS :] if i not in special][-_NUM_CONTEXT_TOKENS:]
        while _REPLACEMENT in self._decode(self._window):  # begins or ends inside a character
            del self._window[0]
        self._num_shown = len(self._decode(self._window))
        self._num_held_tokens = 0

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; may be empty."""
        if token_id in self._special:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(_REPLACEMENT):
            self._num_held_tokens, end = 0, len(text)
        elif self._num_held_tokens < _MAX_HELD_TOKENS:
            self._num_held_tokens, end = self._num_held_tokens + 1, len(text.rstrip(_REPLACEMENT))
        else:
            end = len(text) - 1  # broken for good, but the last byte may begin something new
        piece = text[self._num_shown : end]
        self._num_shown = max(end, self._num_shown)
        if len(self._window) >= _MAX_WINDOW_TOKENS and self._num_held_tokens in (0, _MAX_HELD_TOKENS):
            self._shorten(text)
        return piece

    def _shorten(self, text: str) -> None:
        """Drop tokens from the front of the window, where that does not cut a character in two."""
        num_held = len(text) - self._num_shown
        for start in range(len(self._window) - _NUM_CONTEXT_TOKENS, 0, -1):
            rest = self._decode(self._window[start:])
            if text.endswith(rest) and len(rest) > num_held:
                del self._window[:start]
                self._num_shown = len(rest) - num_held
                return

    def flush(self) -> str:
        """What is still held back: a character that never became whole."""
        text = self._decode(self._window)
        piece = text[self._num_shown :]
        self._num_shown = len(text)
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class StopStrings:
    """Ends a text before the first stop string in it.

    What could be the beginning of a stop string is held back, so at most `max(len(stop)) - 1` characters. Of
    several matches the one that is complete first counts, so it does not matter how the text was cut into pieces.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """The part of the text so far that can be shown now."""
        if not self._stop:
            return text
        text = self._held + text
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if matches:
            end, _, self.found = min(matches)
            self._held = ""
            return text[: end - len(self.found)]
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                self._held = text[start:]
                return text[:start]
        self._held = ""
        return text

    def flush(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """The text of one answer: what to show after each token, and whether a stop string was met."""

    def __init__(self, detokenizer: Detokenizer, stop: Iterable[str]) -> None:
        self._detokenizer = detokenizer
        self._stop = StopStrings(stop)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.found

    @property
    def is_stopped(self) -> bool:
        """A stop string was met; nothing more is shown."""
        return self._stop.found is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text to show after this token. Without `may_stop` a stop string passes (`min_tokens`)."""
        text = self._detokenizer.push(token_id)
        return self._stop.push(text) if may_stop else text

    def flush(self) -> str:
        """The rest, when the answer is over; empty after a stop string."""
        if self.is_stopped:
            return ""
        text = self._stop.push(self._detokenizer.flush())
        return text if self.is_stopped else text + self._stop.flush()
