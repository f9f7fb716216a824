"""A window's tokens → phrases with their times, and where the next window begins.

The next window begins where the last phrase that is whole ends: what follows it was cut off, and is heard again. A
window that ends with one timestamp, not two, has no more speech, and is done with (openai-whisper's `transcribe`);
but models leave out a last phrase now and then, so it is said how far they got.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vmm_server.audio.whisper_tokens import FRAMES_PER_TIMESTAMP, TIMESTAMP_S, WhisperTokens

MIN_ADVANCE_FRAMES = 20
"""A window begins this much after the one before it at least, whatever the model says: else an hour of sound could come
to any number of windows."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Tokens from one timestamp to another. Times are seconds from the window's beginning."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Phrases:
    """All of a window."""

    phrases: tuple[Phrase, ...]
    num_frames: int
    """From this window's beginning to that of the next one."""
    num_heard_frames: int
    """To the end of what was said, where nothing more was; else the same."""


def split_window(sampled: Sequence[int], num_frames: int, tokens: WhisperTokens) -> Phrases:
    """Phrases of a window of `num_frames` frames; some may say nothing, or take no time."""
    begin = tokens.timestamp_begin
    window_s = num_frames * TIMESTAMP_S / FRAMES_PER_TIMESTAMP
    is_timestamp = [token >= begin for token in sampled]
    ends_once = is_timestamp[-2:] == [False, True]
    borders = [index for index in range(1, len(sampled)) if is_timestamp[index - 1] and is_timestamp[index]]
    if not borders:
        last = max((token - begin for token in sampled if token >= begin), default=0)
        end = last * TIMESTAMP_S if last else window_s
        return Phrases((Phrase(0.0, min(end, window_s), tuple(sampled)),), num_frames, _frames(end, num_frames))
    if ends_once:
        borders.append(len(sampled))
    pieces = [tuple(sampled[first:last]) for first, last in zip([0, *borders], borders, strict=False)]
    phrases = tuple(
        Phrase((piece[0] - begin) * TIMESTAMP_S, min((piece[-1] - begin) * TIMESTAMP_S, window_s), piece)
        for piece in pieces
    )
    if ends_once:
        return Phrases(phrases, num_frames, _frames(phrases[-1].end, num_frames))
    advance = _frames(phrases[-1].end, num_frames)
    return Phrases(phrases, advance, advance)


def _frames(time: float, num_frames: int) -> int:
    """From the window's beginning to a time in it; never less than `MIN_ADVANCE_FRAMES`."""
    return min(max(round(time * FRAMES_PER_TIMESTAMP / TIMESTAMP_S), MIN_ADVANCE_FRAMES), num_frames)
