"""Probabilities of speech → spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.vad import SpeechOptions, SpeechSpans

FRAME_S = 0.032
BARE = SpeechOptions(padding_s=0.0, min_silence_s=0.1, min_speech_s=0.2)


def spans(options: SpeechOptions, *runs: tuple[float, int]) -> list[tuple[int, int]]:
    """Of runs of (probability, frames); in frames."""
    found = SpeechSpans(options)
    for probability, count in runs:
        found.add([probability] * count)
    length = sum(count for _, count in runs)
    return [(round(start / FRAME_S), round(end / FRAME_S)) for start, end in found.found(length * FRAME_S)]


def test_speech_is_what_lies_between_pauses() -> None:
    assert spans(BARE, (0.1, 10), (0.9, 20), (0.1, 30), (0.8, 40), (0.0, 5)) == [(10, 30), (60, 100)]


def test_speech_may_go_to_the_end() -> None:
    assert spans(BARE, (0.1, 10), (0.9, 20)) == [(10, 30)]
    assert spans(BARE, (0.9, 20), (0.1, 2)) == [(0, 20)]


def test_a_short_pause_and_a_short_sound_are_nothing() -> None:
    assert spans(BARE, (0.9, 20), (0.1, 3), (0.9, 20)) == [(0, 43)]
    assert spans(BARE, (0.1, 10), (0.9, 5), (0.1, 30)) == []


def test_between_the_thresholds_speech_goes_on_but_does_not_begin() -> None:
    assert spans(BARE, (0.9, 20), (0.4, 30), (0.1, 10)) == [(0, 50)]
    assert spans(BARE, (0.4, 50)) == []


def test_padding_joins_what_it_makes_touch_and_stays_within_the_sound() -> None:
    padded = SpeechOptions(padding_s=10 * FRAME_S, min_silence_s=0.1, min_speech_s=0.2)
    assert spans(padded, (0.9, 20), (0.1, 15), (0.9, 20), (0.1, 5)) == [(0, 60)]
    assert spans(padded, (0.1, 30), (0.9, 20), (0.1, 30), (0.9, 10)) == [(20, 60), (70, 90)]


@pytest.mark.parametrize(("threshold", "found"), [(0.0, [(0, 50)]), (1.0, [])])
def test_thresholds_at_the_ends_of_their_range(threshold: float, found: list[tuple[int, int]]) -> None:
    assert spans(SpeechOptions(threshold, 0.0, 0.1, 0.2), (0.5, 50)) == found


@given(
    probabilities=st.lists(st.floats(0, 1), max_size=200),
    cut=st.integers(0, 200),
    threshold=st.floats(0, 1),
    padding_s=st.floats(0, 1),
    min_silence_s=st.floats(0, 2),
)
def test_spans_are_in_order_apart_within_the_sound_and_the_same_in_pieces(
    probabilities: list[float], cut: int, threshold: float, padding_s: float, min_silence_s: float
) -> None:
    options = SpeechOptions(threshold, padding_s, min_silence_s)
    duration_s = max(0.0, len(probabilities) * FRAME_S - 0.01)
    whole, pieces = SpeechSpans(options), SpeechSpans(options)
    whole.add(probabilities)
    pieces.add(probabilities[:cut])
    pieces.add(probabilities[cut:])
    found = whole.found(duration_s)
    assert pieces.found(duration_s) == found
    last_s = -1.0
    for start_s, end_s in found:
        assert last_s < start_s < end_s <= duration_s
        assert start_s >= 0
        last_s = end_s
