"""Segments → OpenAI's answers: JSON, text, subtitles, events. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from vmm_server.api.framing import sse_event
from vmm_server.api.openai.audio.convert import Wish
from vmm_server.audio.languages import LANGUAGES
from vmm_server.audio.subtitles import to_srt, to_vtt
from vmm_server.audio.transcript import Segment

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
MEDIA_TYPES = {"json": JSON, "verbose_json": JSON, "text": TEXT, "srt": TEXT, "vtt": TEXT}
DONE = b"data: [DONE]\n\n"
_POSITIONS_PER_S = 50
"""Of Whisper's encoder: what counts as tokens of sound."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A transcript from its beginning to its end."""

    segments: Sequence[Segment]
    task: str
    language: str | None
    """A code."""
    duration_s: float
    num_tokens: int
    warnings: Sequence[str] = ()
    """What is missing, and why."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(segment.text for segment in self.segments).strip()


def answer(whole: Whole, wish: Wish) -> bytes:
    """The body of a whole answer."""
    if wish.format == "text":
        return f"{whole.text}\n".encode()
    if wish.format == "srt":
        return to_srt(whole.segments).encode()
    if wish.format == "vtt":
        return to_vtt(whole.segments).encode()
    body = _short(whole) if wish.format == "json" else _verbose(whole, wish)
    return msgspec.json.encode(body | ({"warnings": whole.warnings} if whole.warnings else {}))


def _short(whole: Whole) -> dict[str, object]:
    return {"text": whole.text, "usage": _seconds(whole)}


def _verbose(whole: Whole, wish: Wish) -> dict[str, object]:
    """OpenAI has the language's name here, not its code; words without blanks around them."""
    body: dict[str, object] = {
        "task": whole.task,
        "language": "english" if whole.task == "translate" else LANGUAGES.get(whole.language or "", ""),
        "duration": _rounded(whole.duration_s),
        "text": whole.text,
    }
    if wish.segments:
        body["segments"] = [_segment(segment) for segment in whole.segments]
    if wish.words:
        body["words"] = [
            {"word": word.word.strip(), "start": _rounded(word.start), "end": _rounded(word.end)}
            for segment in whole.segments
            for word in segment.words or ()
        ]
    return body | {"usage": _seconds(whole)}


def _segment(segment: Segment) -> dict[str, object]:
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": _rounded(segment.start),
        "end": _rounded(segment.end),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _seconds(whole: Whole) -> dict[str, object]:
    return {"type": "duration", "seconds": _rounded(whole.duration_s)}


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


@dataclass(slots=True)
class Events:
    """A transcript as events. Their deltas, joined, are the text at the end."""

    _parts: list[str] = field(default_factory=list)
    _blanks: str = ""
    """Held back: the text does not end with any."""

    def segment(self, segment: Segment) -> bytes:
        """`transcript.text.delta`, with the segment's times in seconds; nothing where it has no text."""
        text = self._blanks + segment.text if self._parts else segment.text.lstrip()
        delta = text.rstrip()
        self._blanks = text[len(delta) :]
        if not delta:
            return b""
        self._parts.append(delta)
        times = {"start": _rounded(segment.start), "end": _rounded(segment.end)}
        return sse_event({"type": "transcript.text.delta", "delta": delta, **times})

    def end(self, duration_s: float, num_tokens: int, warnings: Sequence[str] = ()) -> bytes:
        """`transcript.text.done`, and the end of the stream."""
        num_heard = math.ceil(duration_s * _POSITIONS_PER_S)
        usage = {
            "type": "tokens",
            "input_tokens": num_heard,
            "input_token_details": {"audio_tokens": num_heard, "text_tokens": 0},
            "output_tokens": num_tokens,
            "total_tokens": num_heard + num_tokens,
        }
        event = {"type": "transcript.text.done", "text": "".join(self._parts), "usage": usage}
        return sse_event(event | ({"warnings": warnings} if warnings else {})) + DONE
