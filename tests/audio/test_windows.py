"""A sound that is read once, in windows: every sample is in one, and times of clips are those of the whole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.clips import ClippedReader
from vmm_server.audio.features import HOP_LENGTH, WINDOW_FRAMES, WINDOW_SAMPLES
from vmm_server.audio.transcript import SAMPLE_RATE, Clip, Samples
from vmm_server.audio.windows import AUDIBLE, Window, Windows


class Counting:
    """A sound of which each sample is its own number, so that it can be found again."""

    def __init__(self, num_samples: int) -> None:
        self._left = num_samples
        self._next = 0
        self.most = 0
        self.duration_s = None

    def read(self, num_samples: int) -> Samples:
        self.most = max(self.most, num_samples)
        length = min(num_samples, self._left)
        samples = np.arange(self._next, self._next + length, dtype=np.float32)
        self._next += length
        self._left -= length
        return samples

    def close(self) -> None: ...


@given(st.integers(0, 5 * WINDOW_SAMPLES), st.lists(st.integers(1, WINDOW_FRAMES), min_size=1, max_size=8))
def test_windows_have_every_sample_in_its_place_and_hold_no_more_than_one(length: int, advances: list[int]) -> None:
    sound = Counting(length)
    windows = Windows(ClippedReader(sound, None))
    seek = 0
    for advance in [*advances, *[WINDOW_FRAMES] * 7]:
        window = windows.at(seek)
        start = seek * HOP_LENGTH
        if window is None:
            assert length - start < HOP_LENGTH
            break
        np.testing.assert_array_equal(window.samples, np.arange(start, min(start + WINDOW_SAMPLES, length)))
        assert window.num_frames == len(window.samples) // HOP_LENGTH
        seek += min(advance, window.num_frames)
    else:
        pytest.fail("it never ended")
    assert sound.most <= WINDOW_SAMPLES


def test_silence_is_what_nobody_can_hear() -> None:
    samples = np.zeros(WINDOW_SAMPLES, np.float32)
    assert Window(0, WINDOW_FRAMES, samples).is_silent
    samples[1234] = -2 * AUDIBLE
    assert not Window(0, WINDOW_FRAMES, samples).is_silent


def test_a_tail_is_loud_if_it_lasts_and_is_nearly_as_loud_as_what_comes_before() -> None:
    noise = np.random.default_rng(0).standard_normal(1000 * HOP_LENGTH).astype(np.float32)
    quiet, loud = 0.001 * noise, 0.1 * noise
    speaks = [loud[: 500 * HOP_LENGTH], quiet[: 200 * HOP_LENGTH], 0.3 * loud[: 40 * HOP_LENGTH], quiet]
    assert Window(0, 1000, np.concatenate(speaks)[: len(noise)]).is_loud_behind(500)
    assert not Window(0, 1000, np.concatenate([speaks[0], quiet])[: len(noise)]).is_loud_behind(500)
    assert not Window(0, 1000, np.concatenate([quiet[: 950 * HOP_LENGTH], loud])[: len(noise)]).is_loud_behind(950)


@st.composite
def clips(draw: st.DrawFn) -> list[Clip]:
    """In order and apart, in hundredths of a second."""
    borders = sorted(draw(st.sets(st.integers(0, 600), max_size=12)))
    return [(start / 100, end / 100) for start, end in zip(borders[::2], borders[1::2], strict=False)]


@given(clips(), st.integers(0, 5 * SAMPLE_RATE), st.integers(1, SAMPLE_RATE))
def test_clips_are_read_as_one_and_all_else_is_passed_over(spans: list[Clip], length: int, piece: int) -> None:
    reader = ClippedReader(Counting(length), spans)
    pieces = []
    while len(samples := reader.read(piece)):
        pieces.append(samples)
        if len(samples) < piece:
            break
    whole = np.arange(length, dtype=np.float32)
    wanted = [whole[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] for start, end in spans]
    np.testing.assert_array_equal(np.concatenate([*pieces, []]), np.concatenate([*wanted, []]))
    assert len(reader.read(1)) == 0
    assert reader.num_samples == length


@given(clips(), st.lists(st.integers(0, 600), min_size=4, max_size=4))
def test_times_are_found_again_in_the_clips_they_come_from(spans: list[Clip], times: list[int]) -> None:
    reader = ClippedReader(Counting(10 * SAMPLE_RATE), spans)
    kept = len(reader.read(10 * SAMPLE_RATE)) / SAMPLE_RATE
    words = [
        (a / 100, b / 100)
        for a, b in pairwise(sorted(times))
        if a + b > 0 and b / 100 <= kept and (a, b) != (kept, kept)
    ]
    found = [reader.original_word(*word) for word in words]
    for (start, end), (first, last) in zip(words, found, strict=True):
        assert last - first == pytest.approx(end - start)
        middle = (first + last) / 2
        assert any(a - 1e-6 <= middle <= b + 1e-6 for a, b in spans)
    assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(found))
    for word in words:
        first, last = reader.original(*word)
        assert any(a - 1e-6 <= first <= b + 1e-6 for a, b in spans)


def test_a_phrase_at_a_clips_border_belongs_to_the_clip_that_it_is_in() -> None:
    reader = ClippedReader(Counting(10 * SAMPLE_RATE), [(1.0, 2.0), (5.0, 6.0)])
    reader.read(10 * SAMPLE_RATE)
    assert reader.original(0.0, 1.0) == (1.0, 2.0)
    assert reader.original(1.0, 2.0) == (5.0, 6.0)
    assert reader.original(0.9, 1.5) == (5.0, 5.5)  # a timestamp is rough
    assert reader.original(0.5, 1.1) == pytest.approx((1.5, 2.1))
    assert reader.original(0.5, 1.5) == (1.5, 5.5)
