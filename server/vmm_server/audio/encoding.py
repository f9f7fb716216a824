"""Samples → bytes of a sound file, piece by piece: what has been fed can be sent before the rest is known.

Nothing is ever written back, so a header that would tell the length tells that it is unknown, as players of streams
expect it: ffmpeg's own muxers do the same where they cannot seek.
"""

import struct
from collections.abc import Mapping
from importlib import import_module
from typing import Literal, Protocol, get_args

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
    if format in ("wav", "pcm"):
        return _PcmEncoder(_wav_header(sample_rate) if format == "wav" else b"")
    # 16 MB of memory, of which a server that does not speak has no need
    encoder: Encoder = import_module("vmm_server.audio.ffmpeg").FFmpegEncoder(format, sample_rate)
    return encoder


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


def _wav_header(sample_rate: int) -> bytes:
    """RIFF/WAVE, one channel, 16 bits (Multimedia Programming Interface 1.0, Microsoft and IBM, 1991)."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN)
