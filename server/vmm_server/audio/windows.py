"""Windows of 30 s over a sound that is read once: no more of it is held than one window."""

from dataclasses import dataclass

import numpy as np

from vmm_server.audio.clips import ClippedReader
from vmm_server.audio.features import HOP_LENGTH, WINDOW_SAMPLES
from vmm_server.audio.transcript import Samples

AUDIBLE = 1e-4
"""A window with no sample above it is silence, and is not asked for words: -80 dB, three steps of 16 bits."""


MIN_TAIL_FRAMES = 100
"""Of what follows the last phrase: less is not asked for words of its own."""
_TAIL_RANGE_DB = 20.0
"""How much quieter than what was heard a phrase may be that was left out."""
_MIN_LOUD_FRAMES = 30
"""Of it, in a phrase."""
_LOUD_PERCENTILE = 90


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of sound."""

    seek: int
    """Where it begins, in frames."""
    num_frames: int
    """Whole ones; fewer than 3000 only in the last window."""
    samples: Samples

    @property
    def is_silent(self) -> bool:
        """Whether nothing can be heard in it."""
        return not (np.abs(self.samples) > AUDIBLE).any()

    def is_loud_behind(self, frame: int) -> bool:
        """Whether what follows a frame may be a phrase that was left out: it is long enough, and nearly as loud as
        what comes before it."""
        if self.num_frames - frame < MIN_TAIL_FRAMES:
            return False
        frames = self.samples[: self.num_frames * HOP_LENGTH].reshape(-1, HOP_LENGTH)
        level = 10.0 * np.log10(np.square(frames).mean(axis=1) + AUDIBLE**2)
        least = np.percentile(level[:frame], _LOUD_PERCENTILE) - _TAIL_RANGE_DB
        return int((level[frame:] > least).sum()) >= _MIN_LOUD_FRAMES


class Windows:
    """Reads windows in order, each beginning where the one before it is said to end."""

    def __init__(self, reader: ClippedReader) -> None:
        self._reader = reader
        self._seek = 0
        self._held: Samples = np.zeros(0, np.float32)
        """Samples from `_seek` on."""
        self._is_whole = False
        """Whether there is nothing left to read."""

    def at(self, seek: int) -> Window | None:
        """The window that begins at a frame at or after the last one; `None`: less than a frame is left there.

        Blocks; raises as the reader does.
        """
        passed = (seek - self._seek) * HOP_LENGTH
        held = self._held[passed:]
        missing = WINDOW_SAMPLES - len(held)
        if missing and not self._is_whole:
            skipped = passed - len(self._held)
            if skipped > 0:
                raise ValueError(f"frame {seek} is behind the window that was read last")
            more = self._reader.read(missing)
            self._is_whole = len(more) < missing
            held = np.concatenate((held, more))
        self._seek, self._held = seek, held
        num_frames = len(held) // HOP_LENGTH
        return Window(seek, num_frames, held) if num_frames else None
