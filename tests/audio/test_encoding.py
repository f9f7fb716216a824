"""Sounds that are encoded in pieces are whole files in the end."""

import io
import struct
from itertools import pairwise

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_server.audio.encoding import FORMATS, MEDIA_TYPES, AudioFormat, Samples, open_encoder, to_pcm16

RATE = 24_000
DELAY_S = 0.1
"""Codecs that cut sound into frames begin and end with a little silence."""


def tone(seconds: float, hertz: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def encode(format: AudioFormat, *pieces: Samples) -> bytes:
    encoder = open_encoder(format, RATE)
    return b"".join([*map(encoder.feed, pieces), encoder.finish()])


def decode(sound: bytes) -> tuple[Samples, int]:
    with av.open(io.BytesIO(sound)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].codec_context.sample_rate
    joined = np.concatenate(frames, axis=-1).ravel()
    return (joined / 32768 if joined.dtype == np.int16 else joined).astype(np.float32), rate


def strongest(samples: Samples, rate: int) -> float:
    """The frequency, in Hz, of which there is most."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize("format", [each for each in FORMATS if each != "pcm"])
def test_a_file_has_all_that_was_fed_in_its_order(format: AudioFormat) -> None:
    sound = encode(format, tone(0.7, 440), tone(0.3, 440), tone(1.0, 1000))
    samples, rate = decode(sound)
    assert len(samples) / rate == pytest.approx(2.0, abs=DELAY_S)
    middle = len(samples) // 2
    assert strongest(samples[: middle - rate // 5], rate) == pytest.approx(440, abs=3)
    assert strongest(samples[middle + rate // 5 :], rate) == pytest.approx(1000, abs=3)


@pytest.mark.parametrize("format", ["mp3", "opus", "wav"])
def test_libsndfile_reads_it_too(format: AudioFormat) -> None:
    samples, rate = soundfile.read(io.BytesIO(encode(format, tone(1.5))))
    assert len(samples) / rate == pytest.approx(1.5, abs=DELAY_S)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_fed_can_be_sent_before_the_end(format: AudioFormat) -> None:
    encoder = open_encoder(format, RATE)
    first, second = encoder.feed(tone(2)), encoder.feed(tone(2))
    assert min(len(first), len(second)) > 1000
    assert len(encoder.finish()) < 0.7 * len(second)


@pytest.mark.parametrize("format", ["wav", "flac", "opus", "mp3", "aac"])
def test_what_was_sent_can_be_played_before_the_end(format: AudioFormat) -> None:
    samples, rate = decode(open_encoder(format, RATE).feed(tone(2)))
    assert len(samples) / rate > 1.5


def test_an_encoder_that_is_given_up_leaves_nothing_behind() -> None:
    for format in FORMATS:
        open_encoder(format, RATE).feed(tone(0.1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=5))
def test_lossless_formats_keep_each_sample(lengths: list[int]) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, sum(lengths)).astype(np.float32)
    edges = np.cumsum([0, *lengths])
    pieces = [samples[start:end] for start, end in pairwise(edges)]
    expected = to_pcm16(samples)
    assert encode("pcm", *pieces) == expected.astype("<i2").tobytes()
    assert encode("wav", *pieces)[44:] == expected.astype("<i2").tobytes()
    if len(samples):
        found, rate = decode(encode("flac", *pieces))
        assert rate == RATE
        np.testing.assert_array_equal(np.rint(found * 32768).astype(np.int32), expected)


def test_a_wav_header_leaves_the_length_open() -> None:
    header = encode("wav", tone(0.01))[:44]
    riff, size, wave, form, _, tag, channels, rate, per_second, per_frame, bits, data, length = struct.unpack(
        "<4sI4s4sIHHIIHH4sI", header
    )
    assert (riff, wave, form, data) == (b"RIFF", b"WAVE", b"fmt ", b"data")
    assert size == length == 0xFFFFFFFF
    assert (tag, channels, rate, per_second, per_frame, bits) == (1, 1, RATE, 48_000, 2, 16)


def test_samples_are_clipped_and_what_is_no_number_is_silent() -> None:
    samples = np.array([0, 1, -1, 2, -2, np.nan, 0.5], np.float32)
    assert to_pcm16(samples).tolist() == [0, 32767, -32767, 32767, -32767, 0, 16384]


def test_each_format_has_a_media_type() -> None:
    assert set(MEDIA_TYPES) == set(FORMATS)
