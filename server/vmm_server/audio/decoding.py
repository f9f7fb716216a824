"""Sound files → blocks of mono samples at the file's own rate, by libsndfile or FFmpeg. Blocks: for a thread.

libsndfile reads WAV, FLAC, Ogg and the formats of old workstations; FFmpeg (`ffmpeg`) what phones, browsers and cameras
make, and MP3, of which libsndfile's own decoder prints to stderr whatever is odd.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from typing import IO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Samples a second that a file may have."""
MAX_CHANNELS = 64
_BLOCK_SAMPLES = 1 << 13
"""Of all channels together, read at once; where libsndfile finds damage, the whole block is lost."""
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
    # 16 MB of memory, of which a server that hears nothing has no need
    decoder: Decoder = import_module("vmm_server.audio.ffmpeg").FFmpegDecoder(file)
    return decoder


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
            yield rate, mixed(block)
        self.problem = cut_off(num_read / rate, self._declared_s)

    def close(self) -> None:
        """See `Decoder`."""
        self._file.close()


def check_format(rate: int, channels: int) -> None:
    """Raises `CannotDecode` for what no microphone makes."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise CannotDecode(f"{rate} samples a second; {MIN_RATE} to {MAX_RATE} can be read")
    if not 1 <= channels <= MAX_CHANNELS:
        raise CannotDecode(f"{channels} channels; 1 to {MAX_CHANNELS} can be read")


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


def mixed(samples: NDArray[np.float32]) -> Mono:
    """`[samples, channels]` → the mean of the channels, at most full scale; what is no number is silence."""
    samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def cut_off(read_s: float, declared_s: float | None) -> str | None:
    """What is wrong with a file that is so much shorter than its header says; `None`: nothing."""
    if declared_s is None or read_s >= declared_s - max(_TAIL_S, 0.02 * declared_s):
        return None
    return f"it ends after {read_s:.1f} s of {declared_s:.1f} s"
