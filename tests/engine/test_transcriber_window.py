"""Which attempt at a window is taken."""

import pytest

from vmm_server.audio.transcript import TranscriptionOptions
from vmm_server.engine.transcriber_window import WindowText, best, is_good

LOOP, SAID_TWICE, GUESS, WILD_GUESS = (-0.1, 15.0), (-0.2, 2.55), (-1.3, 1.2), (-3.5, 1.2)
"""Log-probability and compression ratio."""


def text(logprob: float, ratio: float) -> WindowText:
    return WindowText((), "en", 0.0, logprob, logprob, ratio, no_speech_prob=0.0)


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
    assert not any(is_good(each, options) for each in texts)
    assert best(texts, options) == best(texts[::-1], options) == text(*taken)
