"""libsndfile: WAV, FLAC, Ogg and the formats of old workstations. Imported when it is needed first."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

import soundfile

from vmm_server.audio.decoding import CannotDecode, Decoder, Mono, check_format, cut_off, mixed

_BLOCK_SAMPLES = 1 << 13
"""Of all channels together, read at once; where libsndfile finds damage, the whole block is lost."""
_STREAMED_BYTES = 0x7FFF0000
"""What writes a WAV into a pipe does not know its length, and puts nearly 2 or 4 GiB into the header."""


def open_sndfile(file: IO[bytes]) -> Decoder | None:
    """`None` for a file that it does not know. Raises `CannotDecode`."""
    try:
        return SndfileDecoder(file)
    except soundfile.LibsndfileError:
        return None


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
