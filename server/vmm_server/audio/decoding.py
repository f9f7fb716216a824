"""Sound files → blocks of mono samples at the file's own rate, by libsndfile or FFmpeg. Blocks: for a thread.

libsndfile (`sndfile`) reads WAV, FLAC, Ogg and the formats of old workstations; FFmpeg (`ffmpeg`) what phones, browsers
and cameras make, and MP3, of which libsndfile's own decoder prints to stderr whatever is odd.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Samples a second that a file may have."""
MAX_CHANNELS = 64
_TAIL_S = 0.5
"""A file that ends so much before its header says has lost something."""

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
    # 16 MB of memory, of which a server that hears nothing has no need
    sndfile, ffmpeg = (import_module(f"vmm_server.audio.{name}") for name in ("sndfile", "ffmpeg"))
    decoder: Decoder | None = None if is_mpeg else sndfile.open_sndfile(file)
    return ffmpeg.FFmpegDecoder(file) if decoder is None else decoder


def check_format(rate: int, channels: int) -> None:
    """Raises `CannotDecode` for what no microphone makes."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise CannotDecode(f"{rate} samples a second; {MIN_RATE} to {MAX_RATE} can be read")
    if not 1 <= channels <= MAX_CHANNELS:
        raise CannotDecode(f"{channels} channels; 1 to {MAX_CHANNELS} can be read")


def mixed(samples: NDArray[np.float32]) -> Mono:
    """`[samples, channels]` → the mean of the channels, at most full scale; what is no number is silence."""
    samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def cut_off(read_s: float, declared_s: float | None) -> str | None:
    """What is wrong with a file that is so much shorter than its header says; `None`: nothing."""
    if declared_s is None or read_s >= declared_s - max(_TAIL_S, 0.02 * declared_s):
        return None
    return f"it ends after {read_s:.1f} s of {declared_s:.1f} s"
