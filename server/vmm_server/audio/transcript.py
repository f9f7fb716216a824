"""What goes into a transcription and what comes out of it: samples and options in, timed segments out.

Nothing here computes. `models.whisper.ReadyTranscriber` takes an `AudioReader` and `TranscriptionOptions` and gives a
`Transcript`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples a second of all sound that is heard."""

Samples = NDArray[np.float32]
"""float32 `[samples]`, mono, 16 kHz, within -1 and 1."""
Task = Literal["transcribe", "translate"]
Clip = tuple[float, float]
"""Start and end in seconds of the original sound."""


class AudioReader(Protocol):
    """Sound that is read once, from its beginning. Its methods block: they are called in threads, one at a time."""

    @property
    def duration_s(self) -> float | None:
        """What the file says; `None`: not known before its end."""
        ...

    def read(self, num_samples: int) -> Samples:
        """The next samples; fewer than asked for, or none, only at the end.

        Raises `InvalidRequest` for a file that turns out to be damaged or too long.
        """
        ...

    def close(self) -> None:
        """Give up what it holds. Idempotent; nothing is read afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class TranscriptionOptions:
    """What a request may say of its transcript. Numbers are those of openai-whisper."""

    language: str | None = None
    """ISO 639-1 (`de`), or as Whisper calls it (`german`, `yue`); `None`: heard in the first window that has sound."""
    task: Task = "transcribe"
    prompt: str | None = None
    """Text as if it had been said before every window: names, spelling, style."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in turn, until a window's text passes the two tests below; one alone is taken as it comes."""
    word_timestamps: bool = False
    compression_ratio_threshold: float = 2.4
    """More says that the text repeats itself."""
    logprob_threshold: float = -1.0
    """A mean log-probability below it says that the text is a guess."""
    no_speech_threshold: float = 0.6
    """A window that is silence with more probability, and of which the text is a guess, has no text."""
    condition_on_previous_text: bool = False
    """Whether a window is heard in the context of what was said before it, and not of the prompt alone.

    Names are then spelt the same throughout, but what a window gets wrong leads the next ones astray: of 144 sentences
    of two speakers in any order, tiny.en lost or doubled 12 where windows meet with context and 1 without. transformers
    leaves it out too, openai-whisper does not."""
    seed: int = 0
    """Of what is drawn above temperature 0: the same sound gives the same text."""
    clips: tuple[Clip, ...] | None = None
    """Where somebody speaks, in order and apart; the rest is not heard. `None`: all of it. Times of the transcript are
    those of the original sound either way."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its punctuation."""

    word: str
    """With its leading blank, as Whisper has it: words joined are the segment's text."""
    start: float
    """In seconds of the original sound, as `end`."""
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A phrase between two of Whisper's timestamps."""

    id: int
    """Counts from 0."""
    seek: int
    """Where its window began, in frames of 10 ms."""
    start: float
    """In seconds of the original sound, as `end`."""
    end: float
    text: str
    """With its leading blank: segments joined are the text."""
    tokens: tuple[int, ...]
    """With its timestamps."""
    temperature: float
    """Of its window, as the next three."""
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None
    """`None`: not asked for."""


class Transcript(Protocol):
    """Segments as they are heard, in order. It owns the reader, and closes it at its end.

    Iterating raises `GenerationFailed`, or `PlacementFailed` if nothing was said yet; `ShuttingDown`; and what the
    reader raises. The sound is read no faster than segments are taken.
    """

    @property
    def language(self) -> str | None:
        """Its code (`en`); known with the first segment, and at the end if there was any sound."""
        ...

    @property
    def duration_s(self) -> float | None:
        """Of the whole sound, clipped or not; at the end, before that what the reader says."""
        ...

    @property
    def num_tokens(self) -> int:
        """Drawn so far, special ones and those of given-up attempts included."""
        ...

    @property
    def queued_s(self) -> float | None:
        """How long the first window waited for those of others; `None` until it is known."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Segment: ...

    async def aclose(self) -> None:
        """End it at once: its place in the batch is free, the reader is closed. Idempotent."""
        ...
