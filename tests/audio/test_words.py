"""When words were said: the path through attention, and words made of tokens."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.audio.alignment import Attention, first_columns, median_of_seven, token_times
from vmm_server.audio.phrases import Phrase
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.audio.words import split_words, timed_phrases

TEXT = (" He", " made", " himself", ".", ' "', "Go", ",", " ten", " Ä"[:2], "!")
TOKENS = WhisperTokens(
    end_of_text=len(TEXT),
    start_of_transcript=20,
    start_of_previous=21,
    no_speech=22,
    no_timestamps=23,
    languages={},
    tasks={},
    suppressed=(),
    text=tuple(text.encode() for text in TEXT),
)
BEGIN = TOKENS.timestamp_begin


def least_cost(cost: NDArray[np.float32]) -> float:
    """Of all paths, by the plainest dynamic programming."""
    rows, columns = cost.shape
    sums = np.full((rows + 1, columns + 1), np.inf)
    sums[0, 0] = 0.0
    for row in range(rows):
        for column in range(columns):
            before = min(sums[row, column], sums[row, column + 1], sums[row + 1, column])
            sums[row + 1, column + 1] = cost[row, column] + before
    return float(sums[-1, -1])


def path_cost(cost: NDArray[np.float32], first: NDArray[np.int64]) -> float:
    """Of the cheapest path that enters each row where `first` says."""
    ends = [*first[1:], cost.shape[1]]
    total = 0.0
    for row, (start, end) in enumerate(zip(first, ends, strict=True)):
        stays = cost[row, start : max(end, start + 1)].sum()
        also = cost[row, start : end + 1].sum() if end < cost.shape[1] and row + 1 < len(first) else np.inf
        total += min(stays, also)
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 24))
def test_the_path_goes_forwards_and_is_the_cheapest(seed: int, rows: int, columns: int) -> None:
    cost = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    first = first_columns(cost)
    assert first[0] == 0
    assert (np.diff(first) >= 0).all()
    assert first[-1] < columns
    assert path_cost(cost, first) == pytest.approx(least_cost(cost), abs=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(4, 30))
def test_the_median_is_that_of_seven(seed: int, length: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 3, length)).astype(np.float32)
    padded = np.pad(values, [(0, 0), (0, 0), (3, 3)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 7, axis=-1)
    np.testing.assert_array_equal(median_of_seven(values), np.median(windows, axis=-1))


def attention_at(starts: list[int], tokens: tuple[int, ...], num_frames: int) -> Attention:
    """As of a model that looks at each token's frames and nowhere else; the last of `starts` is where all end."""
    weights = np.full((2, 1 + len(tokens) + 1, num_frames), 1e-3, np.float32)
    for row, (start, end) in enumerate(zip(starts, [*starts[1:], num_frames], strict=True)):
        weights[:, 1 + row, start:end] = 1.0
    weights[:, 0, :3] = 1.0
    return Attention(tokens, (0.5,) * len(tokens), weights, num_given=1)


def test_tokens_begin_where_the_model_looks_for_them() -> None:
    times = token_times(attention_at([0, 20, 50, 70], (0, 1, 2), 100))
    np.testing.assert_allclose(times, [0.0, 0.4, 1.0, 1.4], atol=0.061)


def test_words_have_their_punctuation_and_blanks_and_lie_one_behind_the_other() -> None:
    tokens = (0, 1, 2, 3, 4, 5, 6, 7, 3)
    phrases = [Phrase(0.0, 1.6, (BEGIN, 0, 1, 2, 3, BEGIN + 80)), Phrase(1.6, 4.0, (BEGIN + 80, 4, 5, 6, 7, 3))]
    attention = attention_at([0, 20, 50, 75, 80, 90, 120, 125, 150, 155], tokens, 200)
    timed = timed_phrases(phrases, attention, TOKENS, "en", begin=0.0)
    words = [word for _, words in timed for word in words]
    assert [word.text for word in words] == [" He", " made", " himself.", ' "Go,', " ten."]
    assert ["".join(word.text for word in each) for _, each in timed] == [" He made himself.", ' "Go, ten.']
    assert [phrase.start for phrase, _ in timed] == [timed[0][1][0].start, timed[1][1][0].start]
    assert all(word.start <= word.end for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))


@given(st.lists(st.integers(0, 199), min_size=10, max_size=10), st.floats(-5, 5))
def test_no_word_begins_before_the_last_one_has_ended(starts: list[int], begin: float) -> None:
    tokens = (0, 1, 2, 3, 4, 5, 6, 7, 3)
    phrases = [Phrase(0.0, 1.6, (BEGIN, 0, 1, 2, 3, BEGIN + 80)), Phrase(1.6, 4.0, (BEGIN + 80, 4, 5, 6, 7, 3))]
    timed = timed_phrases(phrases, attention_at(sorted(starts), tokens, 200), TOKENS, "en", begin=begin)
    times = [begin, *(time for _, words in timed for word in words for time in (word.start, word.end))]
    assert times == sorted(times)
    assert sum(word.num_tokens for _, words in timed for word in words) == len(tokens)


def test_what_follows_the_last_whole_phrase_has_no_words_yet() -> None:
    phrases = [Phrase(0.0, 1.0, (BEGIN, 0, 1, BEGIN + 50))]
    [(_, words)] = timed_phrases(phrases, attention_at([0, 20, 50, 90], (0, 1, 2), 100), TOKENS, "en", begin=0.0)
    assert [word.text for word in words] == [" He", " made"]


@given(st.text(max_size=20), st.integers(1, 4), st.sampled_from(["en", "zh"]))
def test_a_character_is_never_split(text: str, size: int, language: str) -> None:
    """Whatever bytes tokens stand for."""
    encoded = text.encode()
    pieces = [encoded[index : index + size] for index in range(0, len(encoded), size)]
    words = list(split_words(pieces, language))
    assert "".join(word for word, _ in words) == text
    assert sum(num_tokens for _, num_tokens in words) == len(pieces)


def test_what_is_no_text_is_replaced_and_loses_nothing_else() -> None:
    assert list(split_words([b" a", b"\xff", b" b", b"\xe4"], "en")) == [(" a�", 2), (" b�", 2)]


def test_without_blanks_each_character_is_a_word() -> None:
    pieces = ["我".encode()[:2], "我".encode()[2:], "们".encode(), "。".encode()]
    assert list(split_words(pieces, "zh")) == [("我", 2), ("们", 1), ("。", 1)]
    assert [word for word, _ in split_words(pieces, "en")] == ["我们", "。"]
