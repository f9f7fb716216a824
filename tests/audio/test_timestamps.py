"""Whatever a model's logits are, its timestamps come in pairs and never go back; and what is made of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.phrases import MIN_ADVANCE_FRAMES, Phrase, Phrases, split_window
from vmm_server.audio.timestamps import TimestampRules
from vmm_server.audio.whisper_tokens import MAX_INITIAL_TIMESTAMP, WhisperTokens

TEXT = tuple(f" {letter}".encode() for letter in "abcdefghij")
TOKENS = WhisperTokens(
    end_of_text=10,
    start_of_transcript=11,
    start_of_previous=12,
    no_speech=13,
    no_timestamps=14,
    languages={},
    tasks={},
    suppressed=(3, 4),
    text=TEXT,
    max_length=16,
)
BEGIN = TOKENS.timestamp_begin
VOCAB = BEGIN + 1501
END = TOKENS.end_of_text


def at(time: float) -> int:
    return BEGIN + round(time / 0.02)


def allowed(sampled: list[int], logits: np.ndarray | None = None) -> set[int]:
    row = np.zeros((1, VOCAB), np.float32) if logits is None else logits[None].copy()
    TimestampRules(TOKENS).apply(row, [sampled])
    return set(np.flatnonzero(row[0] > -np.inf).tolist())


@given(st.integers(0, 2**32 - 1), st.floats(0, 40))
def test_timestamps_pair_up_and_never_go_back(seed: int, eagerness: float) -> None:
    random = np.random.default_rng(seed)
    rules = TimestampRules(TOKENS)
    sampled: list[int] = []
    for _ in range(40):
        logits = (10 * random.standard_normal((1, VOCAB))).astype(np.float32)
        logits[:, :BEGIN] += eagerness
        rules.apply(logits, [sampled])
        token = int(logits[0].argmax())
        assert logits[0, token] > -np.inf
        if token == END:
            break
        sampled.append(token)
    times = [token for token in sampled if token >= BEGIN]
    assert times == sorted(times)
    assert sampled[0] in range(BEGIN, BEGIN + MAX_INITIAL_TIMESTAMP + 1)
    assert not {3, 4, *range(END + 1, BEGIN)} & {*sampled}
    is_time = "".join("t" if token >= BEGIN else "w" for token in sampled)
    assert "ttt" not in is_time
    assert "wtw" not in is_time
    phrases = split_window(sampled, 3000, TOKENS)
    assert 0 < phrases.num_frames <= 3000
    assert [token for phrase in phrases.phrases for token in phrase.tokens] == sampled[: _whole(sampled)]
    assert all(first.end <= second.start for first, second in zip(phrases.phrases, phrases.phrases[1:], strict=False))


def _whole(sampled: list[int]) -> int:
    """Tokens up to the end of the last whole phrase; all of them, where nothing follows it."""
    is_time = [token >= BEGIN for token in sampled]
    borders = [index for index in range(1, len(sampled)) if is_time[index - 1] and is_time[index]]
    return borders[-1] if borders and is_time[-2:] != [False, True] else len(sampled)


def test_a_window_begins_with_a_timestamp_of_its_first_second() -> None:
    assert allowed([]) == {*range(BEGIN, BEGIN + 51)}


def test_words_follow_a_phrases_first_timestamp_or_nothing_does() -> None:
    assert allowed([at(1)]) == {*range(END + 1)} - {3, 4}


def test_behind_a_phrase_comes_the_next_one_no_earlier_or_the_end() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[END] = 9.0
    assert allowed([at(0), 1, at(2)], logits) == {END, *range(at(2), VOCAB)}


def test_a_phrase_takes_time() -> None:
    times = np.zeros(VOCAB, np.float32)
    times[BEGIN:] = 9.0
    assert allowed([at(0), 1, at(2), at(2), 1], times) == {*range(at(2) + 1, VOCAB)}


def test_timestamps_come_where_all_of_them_are_likelier_than_any_word() -> None:
    logits = np.full(VOCAB, -20.0, np.float32)
    logits[5] = 2.0
    logits[at(4) :] = 0.0
    assert 5 not in allowed([at(0), 1], logits)
    logits[5] = 8.0
    assert 5 in allowed([at(0), 1], logits)


def test_a_window_that_ends_with_one_timestamp_is_done_with() -> None:
    first, second = (at(0), 1, at(2)), (at(2.5), 2, at(5))
    found = split_window([*first, *second], 3000, TOKENS)
    assert found == Phrases((Phrase(0.0, 2.0, first), Phrase(2.5, 5.0, second)), 3000, 500)


def test_what_is_cut_off_is_heard_again() -> None:
    found = split_window([at(0), 1, at(2), at(2.5), 2, at(5), at(5), 3], 3000, TOKENS)
    assert [phrase.end for phrase in found.phrases] == [2.0, 5.0]
    assert found.num_frames == 500


def test_a_window_always_gets_on() -> None:
    assert split_window([at(0), 1, at(0.02), at(0.02), 2], 3000, TOKENS).num_frames == MIN_ADVANCE_FRAMES
    assert split_window([at(0), 1, at(0.02), at(0.02), 2], 7, TOKENS).num_frames == 7


@pytest.mark.parametrize(
    ("sampled", "end"), [([at(0), 1, 2], 12.0), ([at(0), 1, at(5)], 5.0), ([at(0), 1, at(29)], 12.0), ([], 12.0)]
)
def test_one_phrase_is_all_of_the_window(sampled: list[int], end: float) -> None:
    phrases = (Phrase(0.0, end, tuple(sampled)),)
    assert split_window(sampled, 1200, TOKENS) == Phrases(phrases, 1200, round(100 * end))
