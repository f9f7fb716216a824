"""Segments → subtitles: SubRip (SRT) and WebVTT (W3C, section 4). Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmm_server.audio.transcript import Segment

_SHORTEST_MS = 1
"""A cue that begins and ends in the same millisecond is no cue."""


@dataclass(frozen=True, slots=True)
class _Cue:
    start_ms: int
    end_ms: int
    text: str


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered from 1, `00:00:01,500 --> 00:00:03,000`, a blank line after each."""
    cues = enumerate(_cues(segments), 1)
    return "".join(
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{_arrowless(cue.text)}\n\n"
        for number, cue in cues
    )


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT: `00:00:01.500 --> 00:00:03.000`; `&`, `<` and `>` are escaped."""
    cues = (
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{_escaped(cue.text)}\n\n"
        for cue in _cues(segments)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cues(segments: Sequence[Segment]) -> Iterator[_Cue]:
    """One a segment that has text, in whole milliseconds, none before the last one's end."""
    last_ms = 0
    for segment in segments:
        text = " ".join(segment.text.split())
        if not text:
            continue
        start_ms = max(last_ms, round(segment.start * 1000))
        last_ms = max(start_ms + _SHORTEST_MS, round(segment.end * 1000))
        yield _Cue(start_ms, last_ms, text)


def _clock(milliseconds: int, point: str) -> str:
    """`hh:mm:ss` and the milliseconds; hours have two digits, or more."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _arrowless(text: str) -> str:
    """SRT has no escapes; an arrow would begin a cue."""
    return text.replace("-->", "→")
