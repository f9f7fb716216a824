"""A form → what is asked for. Pure."""

from dataclasses import dataclass
from typing import IO, Literal, cast

from vmm_server.api.openai.audio.wire import FORMATS, TranscriptionForm
from vmm_server.audio.languages import language_code
from vmm_server.audio.transcript import Task, TranscriptionOptions
from vmm_server.audio.vad import SpeechOptions
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ANYWHERE, Wanted
from vmm_server.transcription import TranscriptionRequest

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]

VAD_FILTER = SpeechOptions(padding_s=0.4, min_silence_s=2.0)
"""What `vad_filter` is in faster-whisper."""
_GRANULARITIES = ("word", "segment")


@dataclass(frozen=True, slots=True)
class Wish:
    """How the answer is to look."""

    format: Format = "json"
    segments: bool = True
    words: bool = False
    stream: bool = False


def transcription_request(
    form: TranscriptionForm, file: IO[bytes], *, task: Task = "transcribe", wanted: Wanted = ANYWHERE
) -> tuple[TranscriptionRequest, Wish]:
    """Speech, written down. Raises `InvalidRequest` and `UnsupportedParameter` naming the field."""
    _refuse(form)
    format = _format(form.response_format)
    granularities = _granularities(form.timestamp_granularities, format)
    wish = Wish(format, "segment" in granularities, "word" in granularities, bool(form.stream))
    if wish.stream and format not in ("json", "text"):
        raise UnsupportedParameter(
            f"stream: events have no {format}", param="stream", hint="leave it out, or response_format"
        )
    defaults = TranscriptionOptions()
    options = TranscriptionOptions(
        language=_language(form),
        task=task,
        prompt=form.prompt,
        temperatures=(form.temperature,) if form.temperature else defaults.temperatures,
        word_timestamps=wish.words,
        seed=defaults.seed if form.seed is None else form.seed,
    )
    request = TranscriptionRequest(
        model=form.model,
        file=file,
        options=options,
        speech=_speech(form),
        speech_param="vad_filter" if form.vad_filter else "chunking_strategy",
        keep_alive=form.keep_alive,
        wanted=wanted,
    )
    return request, wish


def _speech(form: TranscriptionForm) -> SpeechOptions | None:
    given = form.chunking_strategy
    if given is None:
        return VAD_FILTER if form.vad_filter else None
    if form.vad_filter is not None:
        raise InvalidRequest("vad_filter: send this or chunking_strategy, not both", param="vad_filter")
    return SpeechOptions(given.threshold, given.prefix_padding_ms / 1000, given.silence_duration_ms / 1000)


def _format(given: str) -> Format:
    if given == "diarized_json":
        raise UnsupportedParameter(
            "response_format: diarized_json: no model here tells speakers apart",
            param="response_format",
            hint=f"one of {', '.join(FORMATS)}",
        )
    if given not in FORMATS:
        raise InvalidRequest(
            f"response_format: {given[:100]!r} is none of {', '.join(FORMATS)}", param="response_format"
        )
    return cast(Format, given)


def _granularities(given: list[str] | None, format: Format) -> tuple[str, ...]:
    param = "timestamp_granularities"
    if not given:
        return ("segment",)
    for each in given:
        if each not in _GRANULARITIES:
            raise InvalidRequest(f"{param}: {each[:100]!r} is neither word nor segment", param=param)
    if format != "verbose_json":
        raise InvalidRequest(f"{param}: only with response_format verbose_json", param=param)
    return tuple(given)


def _language(form: TranscriptionForm) -> str | None:
    if form.languages is not None and (form.language is not None or len(form.languages) > 1):
        raise UnsupportedParameter(
            "languages: one alone can be told", param="languages", hint="leave it out: the language is heard"
        )
    given, param = (form.languages[0], "languages") if form.languages else (form.language, "language")
    if given is None:
        return None
    code = language_code(given)
    if code is None:
        raise InvalidRequest(
            f"{param}: {given[:100]!r} is no language that is known here",
            param=param,
            hint="its ISO 639-1 code (de), or its English name",
        )
    return code


def _refuse(form: TranscriptionForm) -> None:
    """What cannot be honoured, by name."""
    for each in form.include or ():
        if each != "logprobs":
            raise InvalidRequest(f"include: {each[:100]!r} is not known", param="include")
        raise UnsupportedParameter(
            "include: there are no logprobs of single tokens",
            param="include",
            hint="segments of verbose_json have avg_logprob, words of them their probability",
        )
    if form.keywords:
        raise UnsupportedParameter("keywords: write them into prompt", param="keywords")
    for param in ("known_speaker_names", "known_speaker_references"):
        if getattr(form, param):
            raise UnsupportedParameter(f"{param}: no model here tells speakers apart", param=param)
