"""FFmpeg: what libsndfile does not read, and what speech is sent as. Imported when it is needed first.

It gets a file object, a list of formats that are nothing but themselves, and an opener that refuses: no playlist (HLS,
DASH, concat) is read, and no format that names other files can have them opened.
"""

from collections.abc import Iterator, Mapping
from typing import IO, Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from vmm_server.audio.decoding import CannotDecode, Mono, check_format, cut_off, mixed
from vmm_server.audio.encoding import AudioFormat, Samples, to_pcm16

FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,gsm,matroska,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,"
    "nistsphere,ogg,qcp,rm,spdif,tak,truehd,tta,voc,w64,wav,webm,wv"
)
"""FFmpeg's demuxers that may be used: each reads one file and opens no other."""
_ESTIMATE = {"aac", "ac3", "amr", "amrnb", "amrwb", "eac3", "gsm", "mp3", "mpeg", "mpegts", "mlp", "truehd", "spdif"}
"""Of these the duration that FFmpeg tells is a guess by their bit rate."""
_MIN_GAP_S, _MAX_GAP_S = 0.1, 600.0
"""Gaps between packets that are silence; what is shorter is rounding, what is longer a clock that jumped."""
_CONTAINERS: Mapping[AudioFormat, tuple[str, str, str, Mapping[str, str]]] = {
    "mp3": (
        "mp3",
        "libmp3lame",
        "s16p",
        {"write_xing": "0", "id3v2_version": "0"},
    ),  # a Xing header would count the frames
    "opus": ("ogg", "libopus", "s16", {"page_duration": "200000"}),  # microseconds; a page is sent when it is full
    "aac": ("adts", "aac", "fltp", {}),
    "flac": ("flac", "flac", "s16", {}),
}
"""ffmpeg's muxer, encoder, sample format and the muxer's options."""


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
            yield rate, mixed(_interleaved(frame))
            position_s += frame.samples / rate
        if self.problem is None:
            self.problem = cut_off(position_s, self.duration_s)

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


class _Sink:
    """What ffmpeg writes to: bytes that are taken away as they come. It has no `seek`, and so is never gone back in."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class FFmpegEncoder:
    """Formats with a codec: see `Encoder`."""

    def __init__(self, format: AudioFormat, sample_rate: int) -> None:
        muxer, codec, sample_format, options = _CONTAINERS[format]
        self._sample_rate = sample_rate
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format=muxer, options=dict(options))
        self._stream: Any = self._container.add_stream(codec, rate=sample_rate, layout="mono", format=sample_format)
        self._num_fed = 0

    def feed(self, samples: Samples) -> bytes:
        if len(samples):
            frame = av.AudioFrame.from_ndarray(to_pcm16(samples)[None], format="s16", layout="mono")
            frame.sample_rate = self._sample_rate
            frame.pts = self._num_fed
            self._num_fed += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


def _counts_frames(file: IO[bytes]) -> bool:
    """Whether an MP3 says in its first frame how many there are: behind ID3v2, whose size has 7 bits a byte."""
    file.seek(0)
    head = file.read(10)
    tag_bytes = 10 + sum(byte << 7 * place for place, byte in enumerate(head[:5:-1])) if head[:3] == b"ID3" else 0
    file.seek(tag_bytes)
    first_frame = file.read(2048)
    return any(name in first_frame for name in (b"Xing", b"Info", b"VBRI"))


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
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32: `mixed` sees to it
        return np.asarray(samples, np.float32)
