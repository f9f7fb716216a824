"""Sound files → blocks of mono samples at the file's own rate, by libsndfile or FFmpeg. Blocks: for a thread.

libsndfile reads WAV, FLAC, Ogg and the formats of old workstations; FFmpeg what phones, browsers and cameras make, and
MP3, of which libsndfile's own decoder prints to stderr whatever is odd.
FFmpeg gets a file object, a list of formats that are nothing but themselves, and an opener that refuses: no playlist
(HLS, DASH, concat) is read, and no format that names other files can have them opened.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any, Protocol

import av
import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,gsm,matroska,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,"
    "nistsphere,ogg,qcp,rm,spdif,tak,truehd,tta,voc,w64,wav,webm,wv"
)
"""FFmpeg's demuxers that may be used: each reads one file and opens no other."""
_ESTIMATE = {"aac", "ac3", "amr", "amrnb", "amrwb", "eac3", "gsm", "mp3", "mpeg", "mpegts", "mlp", "truehd", "spdif"}
"""Of these the duration that FFmpeg tells is a guess by their bit rate."""
MIN_RATE, MAX_RATE = 1_000, 768_000
"""Samples a second that a file may have."""
MAX_CHANNELS = 64
_BLOCK_SAMPLES = 1 << 13
"""Of all channels together, read at once; where libsndfile finds damage, the whole block is lost."""
_MIN_GAP_S, _MAX_GAP_S = 0.1, 600.0
"""Gaps between packets that are silence; what is shorter is rounding, what is longer a clock that jumped."""
_TAIL_S = 0.5
"""A file that ends so much before its header says has lost something."""

_STREAMED_BYTES = 0x7FFF0000
"""What writes a WAV into a pipe does not know its length, and puts nearly 2 or 4 GiB into the header."""

Mono = NDArray[np.float32]


class CannotDecode(Exception):
    """Not a sound file of a kind that is known here, or damaged from its beginning; the text says which."""


class Decoder(Protocol):
    """An open file."""

    duration_s: float | None
    """As its header says; `None`: it does not."""
    problem: str | None
    """Once it is read: what was wrong with it, if some of it could be read."""

    def blocks(self) -> Iterator[tuple[int, Mono]]:
        """Rate and samples, piece by piece; once. Raises `CannotDecode` for what a later part of a file turns out."""
        ...

    def close(self) -> None:
        """Idempotent; the file object itself stays open."""
        ...


def open_decoder(file: IO[bytes]) -> Decoder:
    """Whichever library reads the file, from its beginning. Raises `CannotDecode`."""
    file.seek(0)
    head = file.read(3)
    is_mpeg = head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    if not is_mpeg:
        file.seek(0)
        with contextlib.suppress(soundfile.LibsndfileError):
            return SndfileDecoder(file)
    return FFmpegDecoder(file)


class _Lenient:
    """What libsndfile reads. A seek to nowhere, which a damaged header asks for, stays where it is: an exception in a
    callback would only be printed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """Where it is then."""
        with contextlib.suppress(ValueError, OSError):
            self._file.seek(offset, whence)
        return self._file.tell()


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """Read once and in order. The library seeks after each read of a file that can, which costs, and breaks MP3."""

    def seekable(self) -> bool:
        """Never."""
        return False


class SndfileDecoder:
    """libsndfile's. Raises its `LibsndfileError` for a file that it does not know."""

    def __init__(self, file: IO[bytes]) -> None:
        declared_share = _declared_share(file)
        file.seek(0)
        self._file = _Sequential(_Lenient(file))
        self.problem: str | None = None
        try:
            check_format(self._file.samplerate, self._file.channels)
        except CannotDecode:
            self.close()
            raise
        known = self._file.frames < 2**62  # libsndfile's largest number is its word for unknown
        self.duration_s: float | None = self._file.frames / self._file.samplerate if known else None
        self._declared_s = None if self.duration_s is None else self.duration_s * declared_share

    def blocks(self) -> Iterator[tuple[int, Mono]]:
        """See `Decoder`."""
        rate, num_read = self._file.samplerate, 0
        while True:
            try:
                block = self._file.read(_BLOCK_SAMPLES // self._file.channels, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                self.problem = f"it breaks off after {num_read / rate:.1f} s: {error.error_string}"
                return
            if not len(block):
                break
            num_read += len(block)
            yield rate, _mixed(block)
        self.problem = _cut_off(num_read / rate, self._declared_s)

    def close(self) -> None:
        """See `Decoder`."""
        self._file.close()


class FFmpegDecoder:
    """FFmpeg's, in the calling thread alone."""

    def __init__(self, file: IO[bytes]) -> None:
        counts_frames = _counts_frames(file)
        file.seek(0)
        try:
            self._container = av.open(
                file,
                mode="r",
                options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
                io_open=_refuse,
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError, PermissionError) as error:
            raise CannotDecode("no sound file of a known kind, or damaged at its beginning") from error
        self.problem: str | None = None
        try:
            self._stream = self._find_stream()
        except CannotDecode:
            self.close()
            raise
        duration = self._container.duration
        known = duration is not None and (counts_frames or not {*self._container.format.name.split(",")} & _ESTIMATE)
        self.duration_s: float | None = duration / av.time_base if known else None

    def blocks(self) -> Iterator[tuple[int, Mono]]:
        """See `Decoder`. Where packets are missing, or begin later than the pictures, there is silence."""
        start = self._container.start_time
        position_s, offset_s = 0.0, None if start is None else start / av.time_base
        for frame in self._frames():
            rate = frame.sample_rate
            check_format(rate, frame.layout.nb_channels)
            if frame.time is not None:
                offset_s = frame.time if offset_s is None else offset_s
                gap_s = frame.time - offset_s - position_s
                if _MIN_GAP_S < gap_s <= _MAX_GAP_S:
                    for num_samples in _portions(round(gap_s * rate), rate):
                        yield rate, np.zeros(num_samples, np.float32)
                    position_s += gap_s
                elif abs(gap_s) > _MIN_GAP_S:
                    offset_s += gap_s
            yield rate, _mixed(_interleaved(frame))
            position_s += frame.samples / rate
        if self.problem is None:
            self.problem = _cut_off(position_s, self.duration_s)

    def close(self) -> None:
        """See `Decoder`."""
        self._container.close()

    def _find_stream(self) -> Any:
        found = self._container.streams.best("audio")
        if found is None:
            raise CannotDecode(f"no sound in it: {self._container.format.long_name} without an audio stream")
        context = found.codec_context
        if context is None:
            raise CannotDecode("its sound is of a kind that is not known here")
        context.thread_count = 1
        if context.sample_rate:
            check_format(context.sample_rate, context.channels or 1)
        return found

    def _frames(self) -> Iterator[AudioFrame]:
        """What can be decoded; a packet that cannot is left out."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from packet.decode()
                except av.FFmpegError as error:
                    self.problem = f"parts of it cannot be read: {error.strerror}"
        except av.FFmpegError as error:
            self.problem = f"it breaks off: {error.strerror}"
        except IndexError:  # PyAV's word for a packet of a stream that was not there at the beginning
            self.problem = "it breaks off: another stream begins"


def check_format(rate: int, channels: int) -> None:
    """Raises `CannotDecode` for what no microphone makes."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise CannotDecode(f"{rate} samples a second; {MIN_RATE} to {MAX_RATE} can be read")
    if not 1 <= channels <= MAX_CHANNELS:
        raise CannotDecode(f"{channels} channels; 1 to {MAX_CHANNELS} can be read")


def _counts_frames(file: IO[bytes]) -> bool:
    """Whether an MP3 says in its first frame how many there are: behind ID3v2, whose size has 7 bits a byte."""
    file.seek(0)
    head = file.read(10)
    tag_bytes = 10 + sum(byte << 7 * place for place, byte in enumerate(head[:5:-1])) if head[:3] == b"ID3" else 0
    file.seek(tag_bytes)
    first_frame = file.read(2048)
    return any(name in first_frame for name in (b"Xing", b"Info", b"VBRI"))


def _declared_share(file: IO[bytes]) -> float:
    """How much sound a WAV's header tells of, for each byte there is; 1 where it is whole. libsndfile does not say."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 1.0
    while len(chunk := file.read(8)) == 8 and file.tell() < size:
        num_bytes = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            there = size - file.tell()
            return num_bytes / there if there < num_bytes < _STREAMED_BYTES else 1.0
        file.seek(num_bytes + num_bytes % 2, os.SEEK_CUR)
    return 1.0


def _refuse(url: str, flags: int, options: object) -> IO[bytes]:
    raise PermissionError(f"{url} is not opened")


def _portions(total: int, most: int) -> Iterator[int]:
    """`total` in parts of `most`."""
    while total > 0:
        yield min(total, most)
        total -= most


def _interleaved(frame: AudioFrame) -> NDArray[np.float32]:
    """`[samples, channels]`, full scale at 1."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / np.float32(128.0)
    if np.issubdtype(samples.dtype, np.signedinteger):
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32: `_mixed` sees to it
        return np.asarray(samples, np.float32)


def _mixed(samples: NDArray[np.float32]) -> Mono:
    """`[samples, channels]` → the mean of the channels, at most full scale; what is no number is silence."""
    samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _cut_off(read_s: float, declared_s: float | None) -> str | None:
    if declared_s is None or read_s >= declared_s - max(_TAIL_S, 0.02 * declared_s):
        return None
    return f"it ends after {read_s:.1f} s of {declared_s:.1f} s"
