"""Forms → requests, and segments → events, without a server."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.api.openai.audio.convert import VAD_FILTER, Wish, transcription_request
from vmm_server.api.openai.audio.render import Events, Whole, answer
from vmm_server.api.openai.audio.wire import TranscriptionForm
from vmm_server.audio.transcript import Segment, TranscriptionOptions, Word
from vmm_server.audio.vad import SpeechOptions
from vmm_server.requests import KeepAlive, Wanted
from vmm_server.transcription import TranscriptionRequest

FILE = io.BytesIO()


def asked(**fields: Any) -> tuple[TranscriptionRequest, Wish]:
    return transcription_request(TranscriptionForm.model_validate({"model": "w", **fields}, strict=False), FILE)


def test_a_form_that_says_nothing_leaves_everything_as_whisper_has_it() -> None:
    assert asked() == (TranscriptionRequest("w", FILE), Wish())


def test_what_a_form_says_reaches_the_model() -> None:
    request, wish = asked(
        language="German",
        prompt="Herr Müller",
        temperature="0.4",
        seed="7",
        keep_alive="5m",
        response_format="verbose_json",
        timestamp_granularities=["word"],
        chunking_strategy='{"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 90, "silence_duration_ms": 9}',
    )
    assert request.options == TranscriptionOptions(
        language="de", prompt="Herr Müller", temperatures=(0.4,), seed=7, word_timestamps=True
    )
    assert request.speech == SpeechOptions(0.7, 0.09, 0.009)
    assert request.speech_param == "chunking_strategy"
    assert request.keep_alive == KeepAlive(300.0)
    assert wish == Wish("verbose_json", segments=False, words=True)


def test_a_translation_is_the_same_for_another_task() -> None:
    form = TranscriptionForm.model_validate({"model": "w", "prompt": "Hi", "language": "de", "response_format": "vtt"})
    request, wish = transcription_request(form, FILE, task="translate", wanted=Wanted("CPU"))
    assert request.options == TranscriptionOptions(task="translate", language="de", prompt="Hi")
    assert (request.wanted, wish) == (Wanted("CPU"), Wish("vtt"))


@pytest.mark.parametrize(
    ("fields", "speech", "param"),
    [
        ({}, None, ""),
        ({"vad_filter": "false"}, None, ""),
        ({"vad_filter": "true"}, VAD_FILTER, "vad_filter"),
        ({"chunking_strategy": "auto"}, SpeechOptions(), "chunking_strategy"),
        ({"chunking_strategy": {"type": "server_vad"}}, SpeechOptions(), "chunking_strategy"),
    ],
)
def test_speech_alone_is_asked_for_in_two_ways(fields: dict[str, Any], speech: object, param: str) -> None:
    request, _ = asked(**fields)
    assert request.speech == speech
    assert speech is None or request.speech_param == param


def said(text: str, **fields: Any) -> Segment:
    return Segment(0, 0, 0.0, 1.0, text, (), 0.0, 0.0, 0.0, 0.0, **fields)


@given(st.lists(st.text(" ab\n", max_size=4)))
def test_deltas_joined_are_the_text(texts: list[str]) -> None:
    events = Events()
    sent = [json.loads(event.removeprefix(b"data: ")) for text in texts if (event := events.segment(said(text)))]
    done, end = events.end(1.23, 5).split(b"\n\n")[:2]
    text = json.loads(done.removeprefix(b"data: "))["text"]
    assert text == "".join(event["delta"] for event in sent) == "".join(texts).strip()
    assert all(event["delta"].strip() for event in sent)
    assert end == b"data: [DONE]"


def test_words_have_no_blanks_around_them_and_the_rest_is_as_the_model_says() -> None:
    words = (Word(" Hi", 0.12345, 0.4, 0.9), Word(" you.", 0.4, 1.0, 0.9))
    whole = Whole([said(" Hi you.", words=words), said("")], "transcribe", "yue", 1.23456, 3, ["cut off"])
    body = json.loads(answer(whole, Wish("verbose_json", segments=False, words=True)))
    assert body == {
        "task": "transcribe",
        "language": "cantonese",
        "duration": 1.235,
        "text": "Hi you.",
        "words": [{"word": "Hi", "start": 0.123, "end": 0.4}, {"word": "you.", "start": 0.4, "end": 1.0}],
        "usage": {"type": "duration", "seconds": 1.235},
        "warnings": ["cut off"],
    }


def test_a_language_that_was_not_heard_is_empty() -> None:
    body = json.loads(answer(Whole([], "transcribe", None, 1.0, 0), Wish("verbose_json")))
    assert (body["language"], body["text"], body["segments"]) == ("", "", [])
