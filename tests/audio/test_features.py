"""Spectrograms against those of transformers, and what they are made of."""

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_server.audio.features import WINDOW_FRAMES, WINDOW_SAMPLES, LogMel, mel_filters
from vmm_server.audio.transcript import Samples

DATA = Path(__file__).parents[1] / "data"
FRAMES = np.r_[0:6, 6:2994:83, 2994:3000]
"""Those that are kept: the first and last ones, and one of 83 between them."""


def clip() -> Samples:
    with wave.open(str(DATA / "media" / "0870.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("name", ["clip", "full", "short"])
def test_they_are_those_of_transformers(name: str, num_mel_bins: int) -> None:
    """`WhisperFeatureExtractor(feature_size=num_mel_bins)` of transformers 5.23, on numpy."""
    samples = {"clip": clip(), "full": np.tile(clip(), 5)[:WINDOW_SAMPLES], "short": clip()[20000:20100]}[name]
    features = LogMel(num_mel_bins)(samples)
    assert features.shape == (num_mel_bins, WINDOW_FRAMES)
    assert features.dtype == np.float32
    reference = np.load(DATA / "whisper_log_mel.npz")[f"{name}_{num_mel_bins}"]
    np.testing.assert_allclose(features[:, FRAMES], reference, atol=1e-4)


@given(st.integers(0, 1000), st.integers(0, WINDOW_SAMPLES))
@settings(max_examples=15)
def test_silence_behind_the_sound_is_as_good_as_none(seed: int, length: int) -> None:
    sound = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    silence = np.zeros(WINDOW_SAMPLES - length, np.float32)
    np.testing.assert_allclose(LogMel(80)(sound), LogMel(80)(np.concatenate((sound, silence))), atol=1e-5)


def test_bands_cover_what_can_be_heard_with_an_area_of_one() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, 201)
    np.testing.assert_allclose(filters[40:].sum(axis=1) * 40.0, 1.0, atol=0.1)  # narrow ones are sampled too coarsely
    assert (filters[:, 1:-1].sum(axis=0) > 0).all()
