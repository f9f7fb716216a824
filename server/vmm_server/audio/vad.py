"""Probabilities of speech → where somebody speaks. Pure.

A state machine with two thresholds, as silero-vad's `get_speech_timestamps`: speech begins with a frame above the upper
one, and ends where frames are below the lower one for as long as a pause has to be.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vmm_server.audio.transcript import SAMPLE_RATE, Clip

FRAME_SAMPLES = 512
"""Samples that one probability is of."""
_HYSTERESIS = 0.15
"""How far the lower threshold is below the upper one."""


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What counts as speech. Defaults are those of OpenAI's `server_vad`."""

    threshold: float = 0.5
    """0 to 1; more leaves out more."""
    padding_s: float = 0.3
    """Kept before and after what is found."""
    min_silence_s: float = 0.2
    """A shorter pause is part of the speech."""
    min_speech_s: float = 0.25
    """What is shorter is a click or a cough."""


class SpeechSpans:
    """Takes probabilities of frames in order; knows at the end where speech was."""

    def __init__(self, options: SpeechOptions) -> None:
        self._options = options
        self._spans: list[Clip] = []
        self._num_frames = 0
        self._start_s: float | None = None
        self._pause_s: float | None = None
        """Where the pause began that may end the speech."""

    def add(self, probabilities: Iterable[float]) -> None:
        """Of the next frames."""
        options = self._options
        for probability in probabilities:
            now_s = self._num_frames * FRAME_SAMPLES / SAMPLE_RATE
            self._num_frames += 1
            if probability >= options.threshold:
                self._pause_s = None
                if self._start_s is None:
                    self._start_s = now_s
            elif self._start_s is not None and probability < max(options.threshold - _HYSTERESIS, 0.01):
                if self._pause_s is None:
                    self._pause_s = now_s
                if now_s - self._pause_s >= options.min_silence_s:
                    self._end(self._pause_s)

    def found(self, duration_s: float) -> tuple[Clip, ...]:
        """Spans with their padding, in order, apart, and within a sound that is so long."""
        if self._start_s is not None:
            self._end(duration_s if self._pause_s is None else self._pause_s)
        padded: list[Clip] = []
        for start_s, end_s in self._spans:
            start_s, end_s = (
                max(0.0, start_s - self._options.padding_s),
                min(duration_s, end_s + self._options.padding_s),
            )
            if padded and start_s <= padded[-1][1]:
                padded[-1] = (padded[-1][0], end_s)
            elif start_s < end_s:
                padded.append((start_s, end_s))
        return tuple(padded)

    def _end(self, end_s: float) -> None:
        if self._start_s is not None and end_s - self._start_s >= self._options.min_speech_s:
            self._spans.append((self._start_s, end_s))
        self._start_s = self._pause_s = None
