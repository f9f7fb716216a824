"""Samples → bytes of a sound file, piece by piece: what has been fed can be sent before the rest is known.

Nothing is ever written back, so a header that would tell the length tells that it is unknown, as players of streams
expect it: ffmpeg's own muxers do the same where they cannot seek.
"""

import struct
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import av
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""One channel, `[n]`; what is beyond -1 to 1 is clipped."""
AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)
MEDIA_TYPES: Mapping[AudioFormat, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",  # RFC 7845; audio/opus is that of packets without a container
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_UNKNOWN = 0xFFFFFFFF
"""A length in a RIFF header that is not known."""
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


class Encoder(Protocol):
    """One sound file in the making. Not for two threads at once."""

    def feed(self, samples: Samples) -> bytes:
        """What can be sent of all that was fed so far; it may be nothing."""
        ...

    def finish(self) -> bytes:
        """The rest. Nothing can be fed afterwards."""
        ...


def open_encoder(format: AudioFormat, sample_rate: int) -> Encoder:
    """An encoder of one channel; `sample_rate` in Hz is one that Opus has: 8000, 12000, 16000, 24000 or 48000.

    `pcm` is little-endian signed 16-bit samples and nothing else; `wav` the same behind a header.
    """
    if format in _CONTAINERS:
        return _ContainerEncoder(format, sample_rate)
    return _PcmEncoder(_wav_header(sample_rate) if format == "wav" else b"")


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """`[-1, 1]` → `[-32767, 32767]`, rounded; NaN is silence."""
    return np.rint(np.clip(np.nan_to_num(samples), -1.0, 1.0) * 32767).astype(np.int16)


class _PcmEncoder:
    def __init__(self, header: bytes) -> None:
        self._header = header

    def feed(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm16(samples).astype("<i2").tobytes()

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header


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


class _ContainerEncoder:
    """Formats that ffmpeg encodes."""

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


def _wav_header(sample_rate: int) -> bytes:
    """RIFF/WAVE, one channel, 16 bits (Multimedia Programming Interface 1.0, Microsoft and IBM, 1991)."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN)
