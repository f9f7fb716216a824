"""Sound files of every kind → 16 kHz mono samples: as long, as loud and as high as what was written."""

import io
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_server.audio.files import AudioLimits, SoundReader, open_audio
from vmm_server.audio.transcript import SAMPLE_RATE
from vmm_server.errors import InvalidRequest

Signal = NDArray[np.float32]


def tone(seconds: float, rate: int, *, frequency: float = 440.0, channels: int = 1, level: float = 0.5) -> Signal:
    """`[samples, channels]`."""
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def by_libsndfile(signal: Signal, rate: int, format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, signal, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def by_ffmpeg(signal: Signal, rate: int, format: str, codec: str) -> bytes:
    """Encoded in frames of the codec's own length."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = "mono" if signal.shape[1] == 1 else "stereo"
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=stream.codec_context.layout)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(signal.T), format="fltp", layout=stream.codec_context.layout.name
        )
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        for part in fifo.read_many(size, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def read_all(reader: SoundReader, piece: int = SAMPLE_RATE) -> NDArray[np.float32]:
    pieces = []
    while len(samples := reader.read(piece)):
        pieces.append(samples)
    reader.close()
    return np.concatenate([*pieces, np.zeros(0, np.float32)])


def decoded(file: bytes, **limits: Any) -> NDArray[np.float32]:
    return read_all(open_audio(io.BytesIO(file), AudioLimits(**limits)))


def loudest_frequency(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(samples))


def level(samples: NDArray[np.float32]) -> float:
    """Of the middle, as the amplitude of a sine."""
    middle = samples[len(samples) // 4 : len(samples) * 3 // 4].astype(np.float64)
    return float(np.sqrt(2 * np.mean(middle**2)))


LIBSNDFILE = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "PCM_U8"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
    ("AU", "ULAW"),
    ("NIST", "PCM_16"),
]


@pytest.mark.parametrize(("format", "subtype"), LIBSNDFILE)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_libsndfile_writes(format: str, subtype: str | None, channels: int) -> None:
    rate = 48_000 if subtype == "OPUS" else 44_100
    samples = decoded(by_libsndfile(tone(2.0, rate, channels=channels), rate, format, subtype))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=0.04 * SAMPLE_RATE)
    assert level(samples) == pytest.approx(0.5, rel=0.02)
    assert loudest_frequency(samples) == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [
        ("mp4", "aac", 44_100),
        ("adts", "aac", 48_000),
        ("mpegts", "aac", 48_000),
        ("mov", "alac", 44_100),
        ("mp4", "flac", 48_000),
        ("webm", "libopus", 48_000),
        ("ogg", "libopus", 48_000),
        ("mp3", "libmp3lame", 44_100),
        ("avi", "libmp3lame", 44_100),
        ("matroska", "pcm_s24le", 32_000),
        ("matroska", "pcm_f64le", 22_050),
        ("mov", "pcm_u8", 11_025),
    ],
)
def test_what_ffmpeg_writes(format: str, codec: str, rate: int) -> None:
    samples = decoded(by_ffmpeg(tone(2.0, rate, channels=2), rate, format, codec))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=0.06 * SAMPLE_RATE)
    loss = 0.95 if codec == "libmp3lame" else 1.0  # what LAME takes off
    assert level(samples) == pytest.approx(0.5 * loss, rel=0.03)
    assert loudest_frequency(samples) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@given(
    seconds=st.floats(0.2, 1.5),
    frequency=st.floats(100, 3000),
    amplitude=st.floats(0.05, 0.95),
    channels=st.integers(1, 8),
)
def test_length_level_and_pitch_stay(
    rate: int, seconds: float, frequency: float, amplitude: float, channels: int
) -> None:
    signal = tone(seconds, rate, frequency=frequency, channels=channels, level=amplitude)
    samples = decoded(by_libsndfile(signal, rate, "WAV", "FLOAT"))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(len(signal) * SAMPLE_RATE / rate, abs=2)
    assert level(samples) == pytest.approx(amplitude, rel=0.03)
    assert loudest_frequency(samples) == pytest.approx(frequency, abs=1.5 / seconds)


def test_what_is_too_high_for_16_khz_is_gone() -> None:
    """A sweep above the new half of the rate leaves nothing: no aliases above -60 dB."""
    rate, seconds = 44_100, 2.0
    times = np.arange(round(seconds * rate)) / rate
    sweep = 0.9 * np.sin(2 * np.pi * (8500 * times + (12_000 - 8500) / (2 * seconds) * times**2))
    samples = decoded(by_libsndfile(sweep.astype(np.float32)[:, None], rate, "WAV", "FLOAT"))
    inner = samples[800:-800].astype(np.float64)  # the sweep begins and ends at once, which is a click
    assert 20 * np.log10(np.sqrt(np.mean(inner**2)) / (0.9 / np.sqrt(2))) < -60
    kept = decoded(by_libsndfile(tone(1.0, rate, frequency=7000), rate, "WAV", "FLOAT"))
    assert level(kept) == pytest.approx(0.5, rel=0.01)


@given(pieces=st.lists(st.integers(1, 30_000), min_size=1, max_size=8), rate=st.sampled_from([8000, 16_000, 44_100]))
def test_read_in_pieces_it_is_what_soxr_makes_of_the_whole(pieces: list[int], rate: int) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, rate).astype(np.float32)
    reader = open_audio(io.BytesIO(by_libsndfile(noise[:, None], rate, "WAV", "FLOAT")))
    read = [reader.read(piece) for piece in pieces]
    rest = read_all(reader)
    whole = np.clip(soxr.resample(noise, rate, SAMPLE_RATE, "HQ"), -1, 1)
    assert [len(piece) for piece in read[:-1]] == [
        min(piece, max(0, len(whole) - sum(pieces[:index]))) for index, piece in enumerate(pieces[:-1])
    ]
    np.testing.assert_allclose(np.concatenate([*read, rest]), whole, atol=1e-5)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_a_file_is_read_from_its_beginning_to_its_end(format: str) -> None:
    class Counted(io.BytesIO):
        num_seeks = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            self.num_seeks += 1
            return super().seek(offset, whence)

    file = Counted(by_libsndfile(tone(10.0, 44_100), 44_100, format))
    reader = open_audio(file)
    file.num_seeks = 0
    read_all(reader, 4000)
    assert file.num_seeks < 5


def test_the_mean_of_channels_is_heard() -> None:
    left, right = tone(1.0, SAMPLE_RATE, level=0.8), tone(1.0, SAMPLE_RATE, level=0.2)
    samples = decoded(by_libsndfile(np.hstack([left, right]), SAMPLE_RATE, "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, (left + right)[:, 0] / 2, atol=1e-6)


def test_what_is_no_number_is_silence() -> None:
    signal = tone(0.1, SAMPLE_RATE)
    signal[10], signal[20], signal[30], signal[40] = np.nan, np.inf, -np.inf, 1e30
    samples = decoded(by_libsndfile(signal, SAMPLE_RATE, "WAV", "FLOAT"))
    assert np.isfinite(samples).all()
    assert samples[[10, 20, 30, 40]].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_is_a_failure(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes changed, cut out and put in, in files of many kinds."""
    random = np.random.default_rng(seed)
    for whole in DAMAGED:
        file = bytearray(whole())
        for place in random.integers(0, min(len(file), 4000), 1 + seed % 5):
            file[place : place + random.integers(0, 9)] = random.bytes(int(random.integers(0, 9)))
        try:
            samples = decoded(bytes(file), max_seconds=600)
        except InvalidRequest:
            continue
        assert np.abs(samples).max(initial=0) <= 1
    assert capfd.readouterr().err == ""


DAMAGED: list[Callable[[], bytes]] = [
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "WAV", "FLOAT"),
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "CAF", "PCM_16"),
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "AIFF", "PCM_16"),
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "FLAC", "PCM_16"),
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "OGG", "VORBIS"),
    lambda: by_libsndfile(tone(0.3, SAMPLE_RATE), SAMPLE_RATE, "MP3"),
    lambda: by_ffmpeg(tone(0.3, 44_100), 44_100, "mp4", "aac"),
    lambda: by_ffmpeg(tone(0.3, 48_000), 48_000, "webm", "libopus"),
    lambda: by_ffmpeg(tone(0.3, 48_000), 48_000, "mpegts", "aac"),
    lambda: by_ffmpeg(tone(0.3, 48_000), 48_000, "matroska", "pcm_f64le"),
]


def test_a_gap_between_packets_is_silence() -> None:
    """A recording that went on after a pause, and one that begins after its pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=SAMPLE_RATE)
        stream.codec_context.layout = "mono"
        loud = np.full((1, SAMPLE_RATE), 10_000, np.int16)
        for second in (0, 3):
            frame = av.AudioFrame.from_ndarray(loud, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, second * SAMPLE_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = decoded(buffer.getvalue())
    seconds = [float(np.abs(samples[start : start + 1600]).mean()) for start in range(8000, len(samples), SAMPLE_RATE)]
    assert len(samples) == 4 * SAMPLE_RATE
    assert [value > 0.1 for value in seconds] == [True, False, False, True]


@pytest.mark.parametrize("num_samples", [0, 1, 2, 100])
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_hardly_any_sound_is_a_sound(num_samples: int, rate: int) -> None:
    samples = decoded(by_libsndfile(np.zeros((num_samples, 1), np.float32), rate, "WAV"))
    assert len(samples) <= num_samples * SAMPLE_RATE / rate + 1


def refused(file: bytes, **limits: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decoded(file, **limits)
    assert caught.value.param == "file"
    return caught.value


WAV = by_libsndfile(tone(5.0, SAMPLE_RATE), SAMPLE_RATE, "WAV")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "is empty"),
        (b"R", "no sound file"),
        (b"It was a dark and stormy night.\n" * 40, "no sound file"),
        (b'{"text": "a"}', "no sound file"),
        (bytes(100_000), "no sound file"),
        (np.random.default_rng(0).bytes(50_000), "no sound file"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;", "no sound file"),
        (WAV[:20], "no sound file"),
        (by_ffmpeg(tone(3.0, 44_100), 44_100, "mp4", "aac")[:20_000], "no sound file"),  # its index is at the end
        (by_libsndfile(np.zeros((100, 65), np.float32), SAMPLE_RATE, "WAV"), "65 channels"),
        (by_libsndfile(np.zeros((100, 1), np.float32), 500, "WAV"), "500 samples a second"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sound_is_refused(file: bytes, said: str) -> None:
    assert said in refused(file).message


def test_a_film_without_sound_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    assert "without an audio stream" in refused(buffer.getvalue()).message


def test_limits_are_named() -> None:
    assert "more" not in refused(WAV, max_bytes=1000).message
    assert "160044 bytes; the limit is 1000B" in refused(WAV, max_bytes=1000).message
    error = refused(WAV, max_seconds=4.5)
    assert "5 s long; the limit is 4.5 s" in error.message
    assert error.hint is not None
    assert "max_audio_seconds" in error.hint
    assert len(decoded(WAV, max_seconds=5)) == 5 * SAMPLE_RATE


def test_a_header_that_says_too_much_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InvalidRequest, match="10 s long"):
        open_audio(io.BytesIO(by_libsndfile(tone(10.0, 8000), 8000, "FLAC")), AudioLimits(max_seconds=5))


def test_without_a_header_the_limit_holds_while_it_is_read() -> None:
    reader = open_audio(io.BytesIO(by_ffmpeg(tone(5.0, 48_000), 48_000, "adts", "aac")), AudioLimits(max_seconds=3))
    assert reader.duration_s is None
    with pytest.raises(InvalidRequest, match="too long; the limit is 3 s"):
        read_all(reader)
    reader.close()


CUT: list[tuple[str, Callable[[], bytes]]] = [
    (
        "flac",
        lambda: by_libsndfile(
            np.random.default_rng(0).normal(0, 0.1, (80_000, 1)).astype(np.float32), SAMPLE_RATE, "FLAC"
        ),
    ),
    ("mp3", lambda: by_libsndfile(tone(5.0, SAMPLE_RATE), SAMPLE_RATE, "MP3")),
    ("wav", lambda: by_libsndfile(tone(5.0, SAMPLE_RATE), SAMPLE_RATE, "WAV")),
    ("webm", lambda: by_ffmpeg(tone(5.0, 48_000), 48_000, "webm", "libopus")),
    ("mkv", lambda: by_ffmpeg(tone(5.0, 44_100), 44_100, "matroska", "aac")),
]


@pytest.mark.parametrize("make", [make for _, make in CUT], ids=[kind for kind, _ in CUT])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes_and_says_so(
    make: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = make()
    complete = open_audio(io.BytesIO(whole))
    read_all(complete)
    assert complete.problem is None
    reader = open_audio(io.BytesIO(whole[: len(whole) // 2]))
    assert len(read_all(reader)) == pytest.approx(2.5 * SAMPLE_RATE, rel=0.2)
    assert reader.problem is not None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("told", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_written_into_a_pipe_is_whole(told: int) -> None:
    whole = by_libsndfile(tone(2.0, SAMPLE_RATE), SAMPLE_RATE, "WAV")
    begin = whole.index(b"data") + 4
    reader = open_audio(io.BytesIO(whole[:begin] + told.to_bytes(4, "little") + whole[begin + 4 :]))
    assert len(read_all(reader)) == 2 * SAMPLE_RATE
    assert reader.problem is None


def test_a_damaged_middle_is_passed_over() -> None:
    whole = bytearray(by_ffmpeg(tone(5.0, 48_000), 48_000, "adts", "aac"))
    whole[len(whole) // 2 : len(whole) // 2 + 300] = bytes(300)
    reader = open_audio(io.BytesIO(bytes(whole)))
    assert len(read_all(reader)) > 4 * SAMPLE_RATE


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mpd", "list.sdp"])
def test_no_file_has_another_one_opened(name: str, tmp_path: Path) -> None:
    """FFmpeg reads these lists, and the files they name, when it may."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(WAV)
    segments = f"#EXTINF:5,\n{secret}\n"
    period = "<Period><AdaptationSet mimeType='audio/wav'><Representation id='1'/></AdaptationSet></Period>"
    mpd = f"<BaseURL>{secret}</BaseURL>{period}"
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n{segments}#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "list.mpd": f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' profiles='x'>{mpd}</MPD>",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    path = tmp_path / name
    path.write_text(lists[name])
    if name == "list.ffconcat":
        with av.open(str(path), options={"safe": "0"}) as container:
            assert container.streams.audio, "a list that FFmpeg would follow"
    with pytest.raises(InvalidRequest, match="no sound file"):
        open_audio(path)


def test_no_thread_and_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    path.write_bytes(by_ffmpeg(tone(1.0, 44_100), 44_100, "mp4", "aac"))

    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) if Path("/proc").exists() else threading.active_count()

    before = num_threads()
    readers = [open_audio(path) for _ in range(4)]
    for reader in readers:
        reader.read(1000)
    assert num_threads() <= before  # those that wrote the file may still be ending
    for reader in readers:
        reader.close()
        reader.close()
        assert len(reader.read(1000)) == 0
    content = io.BytesIO(WAV)
    open_audio(content).close()
    assert not content.closed


def test_it_knows_how_long_the_sound_is() -> None:
    reader = open_audio(io.BytesIO(by_ffmpeg(tone(2.0, 48_000), 48_000, "adts", "aac")))
    assert reader.duration_s is None
    num_samples = len(read_all(reader))
    assert reader.duration_s == num_samples / SAMPLE_RATE
    assert open_audio(io.BytesIO(WAV)).duration_s == 5.0


def test_half_an_hour_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    minute = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 8000).astype(np.float32)
    with soundfile.SoundFile(path, "w", 8000, 1, subtype="ULAW") as file:
        for _ in range(30):
            file.write(minute)
    tracemalloc.start()
    reader = open_audio(path)
    num_samples = 0
    while len(samples := reader.read(30 * SAMPLE_RATE)):
        num_samples += len(samples)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.close()
    assert num_samples == 30 * 60 * SAMPLE_RATE
    assert peak_bytes < 12_000_000
