"""Leaves out what is between clips of a sound, and finds the times of the whole again."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence

import numpy as np

from vmm_server.audio.transcript import SAMPLE_RATE, AudioReader, Clip, Samples

_PIECE = 30 * SAMPLE_RATE
"""Samples that are skipped at once."""
_TOLERANCE = SAMPLE_RATE // 5
"""A phrase that begins this little before a clip's end begins with the next clip; in samples. So with ends."""
_NOTHING: Samples = np.zeros(0, np.float32)


class ClippedReader:
    """Reads the clips of a sound as one. Times are seconds: of what it reads, and of the whole, `original`."""

    def __init__(self, reader: AudioReader, clips: Sequence[Clip] | None) -> None:
        """`clips` are in order and apart; `None` reads everything."""
        self._reader = reader
        whole = (
            None if clips is None else [(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in clips]
        )
        self._spans = None if whole is None else deque(whole)
        self._starts = [0]
        """Where clips begin, in samples of what is read."""
        self._shifts = [0]
        """What is left out before each."""
        self._num_kept = 0
        self.num_samples = 0
        """Of the whole, read so far."""

    def read(self, num_samples: int) -> Samples:
        """The next samples; fewer only at the end, and then the whole was read. Raises as the reader does."""
        if self._spans is None:
            return self._take(num_samples)
        pieces: list[Samples] = []
        missing = num_samples
        while missing and self._spans:
            start, end = self._spans[0]
            self._skip_to(start)
            shift = self.num_samples - self._num_kept
            piece = self._take(max(0, min(missing, end - self.num_samples)))
            if len(piece) and shift != self._shifts[-1]:
                self._starts.append(self._num_kept)
                self._shifts.append(shift)
            pieces.append(piece)
            missing -= len(piece)
            self._num_kept += len(piece)
            if missing:
                self._spans.popleft()
        if missing:
            self._skip_to(None)
        return np.concatenate(pieces) if pieces else _NOTHING

    def original(self, start: float, end: float) -> tuple[float, float]:
        """Where a phrase is in the whole."""
        first = bisect_right(self._starts, start * SAMPLE_RATE + _TOLERANCE) - 1
        last = max(first, bisect_left(self._starts, end * SAMPLE_RATE - _TOLERANCE) - 1)
        return self._time(max(start, self._starts[first] / SAMPLE_RATE), first), self._time(end, last)

    def original_word(self, start: float, end: float) -> tuple[float, float]:
        """Where a word is in the whole: in the clip that its middle is in, and no longer than it was."""
        clip = bisect_right(self._starts, (start + end) / 2 * SAMPLE_RATE) - 1
        return self._time(start, clip), self._time(end, clip)

    def _time(self, time: float, clip: int) -> float:
        return time + self._shifts[clip] / SAMPLE_RATE

    def _take(self, num_samples: int) -> Samples:
        samples = self._reader.read(num_samples) if num_samples else _NOTHING
        self.num_samples += len(samples)
        return samples

    def _skip_to(self, sample: int | None) -> None:
        """Read up to a sample of the whole, or to its end."""
        while sample is None or self.num_samples < sample:
            wanted = _PIECE if sample is None else min(_PIECE, sample - self.num_samples)
            if len(self._take(wanted)) < wanted:
                return
