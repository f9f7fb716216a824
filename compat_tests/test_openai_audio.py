"""OpenAI's client has speech written down, in every format, and LangChain's client has a sound heard."""

import io
import re
import warnings
import wave
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai.types.audio import TranscriptionVerbose
from pydantic import SecretStr

MEDIA = Path(__file__).parents[1] / "tests" / "data" / "media"
SPEECH = MEDIA / "0930.wav"
SAID = "he might even have been made amiable himself"
SECONDS = 3.29


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower()).strip()


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_json(client: openai.OpenAI, whisper: str) -> None:
    heard = client.audio.transcriptions.create(model=whisper, file=SPEECH)
    assert plain(heard.text) == SAID
    assert heard.usage is not None
    assert heard.usage.type == "duration"
    assert heard.usage.seconds == pytest.approx(SECONDS, abs=0.1)


def test_a_file_may_come_in_any_way_that_the_client_knows(client: openai.OpenAI, whisper: str) -> None:
    content = SPEECH.read_bytes()
    for file in (
        content,
        io.BytesIO(content),
        ("speech.wav", content),
        ("speech", content, "application/octet-stream"),
    ):
        assert plain(client.audio.transcriptions.create(model=whisper, file=file).text) == SAID


def test_text(client: openai.OpenAI, whisper: str) -> None:
    heard = client.audio.transcriptions.create(model=whisper, file=SPEECH, response_format="text")
    assert isinstance(heard, str)
    assert plain(heard) == SAID
    assert heard.endswith("\n")


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles(client: openai.OpenAI, whisper: str, format: str) -> None:
    heard: object = client.audio.transcriptions.create(model=whisper, file=SPEECH, response_format=format)  # type: ignore[call-overload]
    assert isinstance(heard, str)
    clocks = re.findall(r"^(\S+) --> (\S+)$", heard, re.M)
    assert clocks
    for start, end in clocks:
        assert 0 <= seconds(start) < seconds(end) <= SECONDS + 0.5
    text = " ".join(line for line in heard.splitlines() if line and "-->" not in line and not line.isdigit())
    assert plain(text.removeprefix("WEBVTT")) == SAID


def test_verbose_json_has_the_times_of_segments_and_words(client: openai.OpenAI, whisper: str) -> None:
    heard = client.audio.transcriptions.create(
        model=whisper, file=SPEECH, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert isinstance(heard, TranscriptionVerbose)
    assert (heard.language, plain(heard.text)) == ("english", SAID)
    assert float(heard.duration) == pytest.approx(SECONDS, abs=0.1)
    assert heard.words is not None
    assert heard.segments is not None
    assert [plain(word.word) for word in heard.words] == SAID.split()
    times = [time for word in heard.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < 0.6
    assert 2.3 < times[-1] <= SECONDS
    assert "".join(segment.text for segment in heard.segments).strip() == heard.text
    segment = heard.segments[0]
    assert segment.avg_logprob < 0
    assert 0 <= segment.no_speech_prob < 0.6
    assert segment.tokens


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI, whisper: str) -> None:
    *deltas, done = client.audio.transcriptions.create(model=whisper, file=SPEECH, stream=True)
    assert done.type == "transcript.text.done"
    assert plain(done.text) == SAID
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 100


def test_options_that_the_client_nests(client: openai.OpenAI, whisper: str, vad: str) -> None:
    own: Any = {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 500}
    for strategy in ("auto", own):
        heard = client.audio.transcriptions.create(
            model=whisper, file=SPEECH, chunking_strategy=strategy, temperature=0, language="en", prompt="Jane Austen."
        )
        assert plain(heard.text) == SAID


def test_silence_is_nothing(client: openai.OpenAI, whisper: str, vad: str) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000 * 3))
    for options in ({}, {"chunking_strategy": "auto"}):
        heard = client.audio.transcriptions.create(
            model=whisper, file=("silence.wav", buffer.getvalue()), extra_body=options
        )
        assert heard.text == ""


def test_mistakes_are_the_clients_own_errors(client: openai.OpenAI, whisper: str) -> None:
    wrong: list[tuple[str, dict[str, object]]] = [
        ("file", {"file": ("speech.wav", b"This is a text.")}),
        ("file", {"file": ("speech.wav", b"")}),
        ("language", {"language": "de"}),
        ("response_format", {"response_format": "diarized_json"}),
        ("include", {"include": ["logprobs"]}),
        ("timestamp_granularities", {"timestamp_granularities": ["word"]}),
    ]
    for param, options in wrong:
        given: dict[str, object] = {"model": whisper, "file": SPEECH, **options}
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(**given)  # type: ignore[call-overload]
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="whisper-9", file=SPEECH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer clients': OpenAI's own models translate no more
        with pytest.raises(openai.BadRequestError, match="does not support translation"):
            client.audio.translations.create(model=whisper, file=SPEECH)


def test_a_chat_model_cannot_hear(base_url: str, model: str) -> None:
    """LangChain's sound parts, of a message, as OpenAI's and as its own."""
    parts: list[dict[str, object]] = [
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "audio", "base64": "UklGRg==", "mime_type": "audio/wav"},
    ]
    chat = ChatOpenAI(model=model, base_url=f"{base_url}/v1", api_key=SecretStr("unused"), max_retries=0)
    for part in parts:
        message = HumanMessage([{"type": "text", "text": "What is said?"}, part])
        with pytest.raises(openai.BadRequestError, match="input_audio"):
            chat.invoke([message])
