"""A sound file → 16 kHz mono samples, in pieces. Blocks: for a thread.

Nothing is ever whole in memory: blocks are decoded, mixed and resampled as they are asked for. A file that is too long
is refused before any work where its header says so, else when it has become too long. A file that is damaged, or cut
off, is read as far as it goes, and `problem` then says so; one of which nothing can be read is refused.
"""

import os
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soxr
from pydantic import ByteSize

from vmm_server.audio.decoding import CannotDecode, Decoder, open_decoder
from vmm_server.audio.transcript import SAMPLE_RATE, Samples
from vmm_server.errors import InvalidRequest

READABLE = "WAV, FLAC, MP3, M4A, MP4, OGG, WebM, AAC, AIFF and AMR are among what can be read"


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What a sound file may be."""

    max_bytes: int = 512 * 1024**2
    max_seconds: float = 4 * 3600.0


def open_audio(file: Path | IO[bytes], limits: AudioLimits | None = None, *, param: str = "file") -> "SoundReader":
    """Sound of a file, from its beginning; of a file object that can seek, which stays the caller's.

    Raises `InvalidRequest` naming `param`: empty, no sound that can be read, damaged, beyond a limit.
    """
    limits = limits or AudioLimits()
    content = file.open("rb") if isinstance(file, Path) else file
    try:
        size = content.seek(0, os.SEEK_END)
        if size == 0:
            raise InvalidRequest(f"{param}: the file is empty", param=param)
        if size > limits.max_bytes:
            limit = ByteSize(limits.max_bytes).human_readable()
            raise InvalidRequest(f"{param}: a file of {size} bytes; the limit is {limit}", param=param)
        try:
            decoder = open_decoder(content)
        except CannotDecode as error:
            raise InvalidRequest(f"{param}: {error}", param=param, hint=READABLE) from error
        return SoundReader(decoder, limits, param, content if isinstance(file, Path) else None)
    except BaseException:
        if isinstance(file, Path):
            content.close()
        raise


class SoundReader:
    """An open file. Implements `AudioReader`; `close` waits for a `read` in another thread."""

    def __init__(self, decoder: Decoder, limits: AudioLimits, param: str, owned: IO[bytes] | None) -> None:
        """Decodes the beginning; closes all of it when that fails."""
        self._decoder = decoder
        self._limits = limits
        self._param = param
        self._owned = owned
        self._pieces = _resampled(decoder.blocks())
        self._pending: list[Samples] = []
        self._num_pending = 0
        self._num_samples = 0
        self._ended = False
        self._closed = False
        self._lock = threading.Lock()
        try:
            if decoder.duration_s is not None and decoder.duration_s > limits.max_seconds:
                raise self._too_long(f"{decoder.duration_s:.0f} s long")
            self._fill(1)
        except BaseException:
            self.close()
            raise

    @property
    def duration_s(self) -> float | None:
        """What the header says; how much there was, once it is read."""
        return self._num_samples / SAMPLE_RATE if self._ended else self._decoder.duration_s

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, as far as it is read."""
        return self._decoder.problem

    def read(self, num_samples: int) -> Samples:
        """See `AudioReader`."""
        with self._lock:
            self._fill(num_samples)
            return self._take(num_samples)

    def close(self) -> None:
        """See `AudioReader`."""
        with self._lock:
            self._pieces.close()
            self._decoder.close()
            self._pending.clear()
            self._num_pending = 0
            self._closed = True
            if self._owned is not None:
                self._owned.close()

    def _take(self, num_samples: int) -> Samples:
        """So many of what is decoded, or all of it."""
        taken: list[Samples] = []
        wanted = num_samples
        while wanted and self._pending:
            piece = self._pending.pop(0)
            if len(piece) > wanted:
                self._pending.insert(0, piece[wanted:])
                piece = piece[:wanted]
            taken.append(piece)
            wanted -= len(piece)
        self._num_pending -= num_samples - wanted
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)

    def _fill(self, num_samples: int) -> None:
        """Decode until so many samples are there, or all."""
        while self._num_pending < num_samples and not self._ended and not self._closed:
            try:
                piece = next(self._pieces, None)
            except CannotDecode as error:
                raise InvalidRequest(f"{self._param}: {error}", param=self._param) from error
            if piece is None:
                self._end()
                return
            self._num_samples += len(piece)
            if self._num_samples > self._limits.max_seconds * SAMPLE_RATE:
                raise self._too_long("too long")
            self._pending.append(piece)
            self._num_pending += len(piece)

    def _end(self) -> None:
        self._ended = True
        if not self._num_samples and self.problem is not None:
            raise InvalidRequest(f"{self._param}: the file is damaged: {self.problem}", param=self._param)

    def _too_long(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._param}: the sound is {what}; the limit is {self._limits.max_seconds:g} s",
            param=self._param,
            hint="cut it into parts; max_audio_seconds is the server's limit",
        )


def _resampled(blocks: Iterator[tuple[int, Samples]]) -> Generator[Samples]:
    """Blocks at 16 kHz, within -1 and 1. The rate may change in between, as a chained Ogg's does."""
    rate, resampler = SAMPLE_RATE, None
    for block_rate, block in blocks:
        if block_rate != rate:
            if resampler is not None:
                yield _clipped(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            rate = block_rate
            resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        yield _clipped(block if resampler is None else resampler.resample_chunk(block))
    if resampler is not None:
        yield _clipped(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _clipped(samples: Samples) -> Samples:
    return np.clip(samples, -1.0, 1.0)
