"""Which attempt at a window is taken."""

import pytest

from vmm_server.audio.transcript import TranscriptionOptions
from vmm_server.engine.transcriber_window import WindowText, best, is_good

LOOP, SAID_TWICE, GUESS, WILD_GUESS = (-0.1, 15.0), (-0.2, 2.55), (-1.3, 1.2), (-3.5, 1.2)
"""Log-probability and compression ratio."""


def text(logprob: float, ratio: float, no_speech_prob: float = 0.0) -> WindowText:
    return WindowText((), "en", 0.0, logprob, logprob, ratio, no_speech_prob)


@pytest.mark.parametrize(
    ("attempts", "taken"),
    [
        ([SAID_TWICE, WILD_GUESS], SAID_TWICE),
        ([SAID_TWICE, GUESS], SAID_TWICE),
        ([LOOP, GUESS], GUESS),
        ([LOOP, WILD_GUESS], WILD_GUESS),
        ([GUESS, WILD_GUESS], GUESS),
        ([LOOP], LOOP),
    ],
)
def test_of_attempts_none_of_which_is_good(attempts: list[tuple[float, float]], taken: tuple[float, float]) -> None:
    options = TranscriptionOptions()
    texts = [text(*each) for each in attempts]
    assert not any(is_good([each], options) for each in texts)
    assert best(texts, options) == best(texts[::-1], options) == text(*taken)


def test_a_good_attempt_is_the_last_but_what_is_a_little_repetitive_and_likelier_is_taken() -> None:
    options = TranscriptionOptions()
    said_twice, good = text(-0.15, 2.41), text(-0.34, 2.36)
    assert is_good([said_twice, good], options)
    assert best([said_twice, good], options) == said_twice
    assert best([text(*LOOP), good], options) == good


def test_a_wild_guess_after_words_that_were_sure_is_no_silence() -> None:
    options = TranscriptionOptions()
    said_twice, guess = text(-0.19, 2.66, 0.7), text(-4.63, 0.62, 0.7)
    assert not is_good([said_twice, guess], options)
    assert best([said_twice, guess], options) == said_twice
    assert is_good([guess], options)
