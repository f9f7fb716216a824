"""A window's tokens and their times → words with theirs.

A word is what stands between blanks, or, in languages that have none, a character; punctuation belongs to the word it
is written at. Times are then mended where the alignment is known to err: it stretches words over pauses. The rules are
those of openai-whisper's `timing.py`, and besides, no word begins before the one in front of it has ended.
"""

import codecs
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from vmm_server.audio.alignment import Attention, token_times
from vmm_server.audio.phrases import Phrase
from vmm_server.audio.whisper_tokens import WhisperTokens

WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages whose words have no blanks between them."""
_OPENING = "\"'“¿([{-"
"""Punctuation of the word behind it, where a blank is in front of it."""
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_SENTENCE_END = ".。!！?？"
_MAX_MEDIAN_S = 0.7
"""Of a word's length, for all that words are compared to."""
_MARGIN_S = 0.5
"""By how much a phrase's own times may be off those of its words."""


@dataclass(frozen=True, slots=True)
class TimedWord:
    """Times are seconds from the window's beginning."""

    text: str
    start: float
    end: float
    probability: float
    num_tokens: int


def timed_phrases(
    phrases: Sequence[Phrase], attention: Attention, tokens: WhisperTokens, language: str | None, *, begin: float
) -> list[tuple[Phrase, tuple[TimedWord, ...]]]:
    """Each phrase with its words, and with times that are those of its words.

    `phrases` are all that `attention` was computed of; `begin` is when the last word before them ended, at most 0 if
    that was in another window.
    """
    words = _words(attention, tokens, language)
    lengths = [word.end - word.start for word in words if word.end > word.start]
    usual = min(_MAX_MEDIAN_S, median(lengths)) if lengths else 0.0
    words = _joined(_shortened(words, 2 * usual))
    timed: list[tuple[Phrase, tuple[TimedWord, ...]]] = []
    index = 0
    for phrase in phrases:
        left = sum(token < tokens.end_of_text for token in phrase.tokens)
        mine: list[TimedWord] = []
        while left > 0 and index < len(words):
            mine.append(words[index])
            left -= words[index].num_tokens
            index += 1
        fitted = _fitted([word for word in mine if word.text], phrase, usual, begin)
        if fitted:
            phrase = replace(phrase, start=fitted[0].start, end=fitted[-1].end)
        else:
            phrase = replace(phrase, start=max(begin, phrase.start), end=max(begin, phrase.end))
        begin = phrase.end
        timed.append((phrase, tuple(fitted)))
    return timed


def split_words(pieces: Sequence[bytes], language: str | None) -> Iterator[tuple[str, int]]:
    """Words with their blanks in front, and how many tokens each is; a character of several tokens is never split."""
    by_character = language in WITHOUT_BLANKS
    word, num_tokens = "", 0
    for text, length in _characters(pieces):
        is_new = by_character or text.startswith(" ") or _is_punctuation(text)
        if word and is_new:
            yield word, num_tokens
            word, num_tokens = "", 0
        word += text
        num_tokens += length
    if num_tokens:
        yield word, num_tokens


def _characters(pieces: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Text of tokens, those together that share a character; what is none to its end is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, length = "", 0
    for piece in pieces:
        text += decoder.decode(piece)
        length += 1
        if not decoder.getstate()[0]:
            yield text, length
            text, length = "", 0
    if length:
        yield text + decoder.decode(b"", final=True), length


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and all(unicodedata.category(character).startswith("P") for character in stripped)


def _words(attention: Attention, tokens: WhisperTokens, language: str | None) -> list[TimedWord]:
    times: NDArray[np.float64] = token_times(attention)
    words, first = [], 0
    for text, length in split_words([tokens.text[token] for token in attention.tokens], language):
        last = first + length
        probability = float(np.mean(attention.probabilities[first:last]))
        words.append(TimedWord(text, float(times[first]), float(times[last]), probability, length))
        first = last
    return words


def _shortened(words: Sequence[TimedWord], longest: float) -> list[TimedWord]:
    """A word that is too long at a sentence's border holds the pause there: cut off."""
    mended = list(words)
    for index in range(1, len(mended)):
        word = mended[index]
        if word.end - word.start > longest:
            if word.text.strip() in _SENTENCE_END:
                mended[index] = replace(word, end=word.start + longest)
            elif mended[index - 1].text.strip() in _SENTENCE_END:
                mended[index] = replace(word, start=word.end - longest)
    return mended


def _joined(words: Sequence[TimedWord]) -> list[TimedWord]:
    """Punctuation with its words."""
    joined: list[TimedWord] = []
    for word in words:
        before = joined[-1] if joined else None
        if before is None:
            joined.append(word)
        elif before.text.startswith(" ") and before.text.strip() and before.text.strip() in _OPENING:
            joined[-1] = _both(before, word, word)
        elif word.text and word.text in _CLOSING and not before.text.endswith(" "):
            joined[-1] = _both(before, word, before)
        else:
            joined.append(word)
    return joined


def _both(first: TimedWord, second: TimedWord, spoken: TimedWord) -> TimedWord:
    num_tokens = first.num_tokens + second.num_tokens
    return replace(spoken, text=first.text + second.text, num_tokens=num_tokens)


def _fitted(words: list[TimedWord], phrase: Phrase, usual: float, begin: float) -> list[TimedWord]:
    """Words inside their phrase, one after the other."""
    if not words:
        return words
    first, last = words[0], words[-1]
    if first.end - first.start > 2 * usual and first.end - begin > 4 * usual:
        words[0] = first = replace(first, start=first.end - 2 * usual)  # it holds the pause before it
    if phrase.start < first.end and phrase.start - _MARGIN_S > first.start:
        words[0] = first = replace(first, start=max(0.0, min(first.end - usual, phrase.start)))
    last = words[-1]
    if phrase.end > last.start and phrase.end + _MARGIN_S < last.end:
        words[-1] = replace(last, end=max(last.start + usual, phrase.end))
    fitted = []
    for word in words:
        start = max(begin, word.start)
        begin = max(start, word.end)
        fitted.append(replace(word, start=start, end=begin))
    return fitted
