"""Segments as subtitles: what players read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.subtitles import to_srt, to_vtt
from vmm_server.audio.transcript import Segment


def said(text: str, start: float, end: float) -> Segment:
    return Segment(0, 0, start, end, text, (), 0.0, 0.0, 0.0, 0.0)


TIMES = st.floats(0, 400_000, allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SEGMENTS = st.lists(st.builds(said, TEXTS, TIMES, TIMES), max_size=8)
CLOCK = {",": r"(\d\d+):([0-5]\d):([0-5]\d),(\d{3})", ".": r"(\d\d+):([0-5]\d):([0-5]\d)\.(\d{3})"}


def cues(text: str, point: str) -> list[tuple[int, int]]:
    """Starts and ends in milliseconds, in their order."""
    clock = CLOCK[point]
    found = []
    for match in re.finditer(rf"^{clock} --> {clock}$", text, re.M):
        hours, minutes, seconds, thousandths, *rest = map(int, match.groups())
        later = rest[0] * 3_600_000 + rest[1] * 60_000 + rest[2] * 1000 + rest[3]
        found.append((hours * 3_600_000 + minutes * 60_000 + seconds * 1000 + thousandths, later))
    return found


def test_srt() -> None:
    segments = [said(" Hello,\nyou.", 0.0, 1.5004), said(" Bye <now> --> & then", 3661.0, 3662.2)]
    assert to_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello, you.\n\n2\n01:01:01,000 --> 01:01:02,200\nBye <now> → & then\n\n"
    )


def test_vtt() -> None:
    segments = [said(" Hello.", 0.0, 1.5), said(" Bye <now> --> & then", 360_000.0, 360_001.0)]
    assert to_vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n"
        "100:00:00.000 --> 100:00:01.000\nBye &lt;now&gt; --&gt; &amp; then\n\n"
    )


def test_what_has_no_text_is_no_cue() -> None:
    assert to_srt([]) == to_srt([said(" \n", 0, 1)]) == ""
    assert to_vtt([]) == to_vtt([said(" ", 0, 1)]) == "WEBVTT\n\n"
    assert to_srt([said("", 0, 1), said("a", 1, 2)]).startswith("1\n00:00:01,000")


@pytest.mark.parametrize(("write", "point"), [(to_srt, ","), (to_vtt, ".")])
@given(segments=SEGMENTS)
def test_cues_never_overlap_end_before_they_begin_or_break_the_file(
    write: object, point: str, segments: list[Segment]
) -> None:
    assert callable(write)
    text = write(segments)
    found = cues(text, point)
    assert len(found) == sum(bool(segment.text.split()) for segment in segments) == text.count(" --> ")
    last = 0
    for start, end in found:
        assert last <= start < end
        last = end
    blocks = [block for block in text.removeprefix("WEBVTT\n\n").split("\n\n") if block]
    assert len(blocks) == len(found), "a blank line ends a cue"
