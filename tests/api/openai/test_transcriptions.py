"""`/v1/audio/transcriptions` and `/v1/audio/translations` over a model that says which seconds have sound."""

import io
import json
from typing import Any

import av
import httpx
import numpy as np
import pytest
import soundfile
from tests.api.fake_audio import sound

RATE = 16_000
ROUTE = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"


def post(server: Any, file: bytes | None = None, route: str = ROUTE, **fields: Any) -> httpx.Response:
    files = {"file": ("speech.wav", sound(1, 0, 1) if file is None else file, "audio/wav")}
    response: httpx.Response = server.client.post(route, data={"model": "whisper:tiny.en", **fields}, files=files)
    return response


def test_json_is_the_text_and_how_much_was_heard(audio_server: Any) -> None:
    response = post(audio_server)
    assert response.json() == {"text": "second 0. second 2.", "usage": {"type": "duration", "seconds": 3.0}}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-vmm-model"] == "whisper:tiny.en"
    assert response.headers["x-vmm-device"] == "CPU"
    assert response.headers["x-vmm-queue-ms"] == "250"
    assert "x-vmm-warning" not in response.headers


@pytest.mark.parametrize(
    ("format", "body"),
    [
        ("text", "second 0. second 2.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\nsecond 0.\n\n2\n00:00:02,000 --> 00:00:03,000\nsecond 2.\n\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nsecond 0.\n\n00:00:02.000 --> 00:00:03.000\nsecond 2.\n\n"),
    ],
)
def test_text_and_subtitles_are_plain_text(audio_server: Any, format: str, body: str) -> None:
    response = post(audio_server, response_format=format)
    assert response.text == body
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_verbose_json_has_segments(audio_server: Any) -> None:
    body = post(audio_server, response_format="verbose_json").json()
    segments = body.pop("segments")
    assert body == {
        "task": "transcribe",
        "language": "english",
        "duration": 3.0,
        "text": "second 0. second 2.",
        "usage": {"type": "duration", "seconds": 3.0},
    }
    assert segments[1] == {
        "id": 1,
        "seek": 200,
        "start": 2.0,
        "end": 3.0,
        "text": " second 2.",
        "tokens": [7, 2],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 0.8,
        "no_speech_prob": 0.125,
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["word"], {"words"}),
        (["segment"], {"segments"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
def test_granularities_say_which_times_there_are(
    audio_server: Any, name: str, given: list[str], shown: set[str]
) -> None:
    fields: dict[str, Any] = {name: given}
    body = post(audio_server, response_format="verbose_json", **fields).json()
    assert body.keys() & {"words", "segments"} == shown
    if "words" in shown:
        assert body["words"][:2] == [
            {"word": "second", "start": 0.0, "end": 0.5},
            {"word": "0.", "start": 0.5, "end": 1.0},
        ]


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_has_a_delta_for_each_segment_and_the_whole_text_at_its_end(audio_server: Any) -> None:
    response = post(audio_server, stream="true")
    *deltas, done = events(response)
    assert deltas == [
        {"type": "transcript.text.delta", "delta": "second 0.", "start": 0.0, "end": 1.0},
        {"type": "transcript.text.delta", "delta": " second 2.", "start": 2.0, "end": 3.0},
    ]
    assert done == {
        "type": "transcript.text.done",
        "text": "second 0. second 2.",
        "usage": {
            "type": "tokens",
            "input_tokens": 150,
            "input_token_details": {"audio_tokens": 150, "text_tokens": 0},
            "output_tokens": 4,
            "total_tokens": 154,
        },
    }
    assert response.headers["x-vmm-queue-ms"] == "250"


def test_silence_has_no_text(audio_server: Any) -> None:
    silence = sound(0, 0)
    assert post(audio_server, silence).json()["text"] == ""
    assert post(audio_server, silence, response_format="text").text == "\n"
    assert post(audio_server, silence, response_format="srt").text == ""
    assert post(audio_server, silence, response_format="vtt").text == "WEBVTT\n\n"
    assert post(audio_server, silence, response_format="verbose_json").json()["segments"] == []
    (done,) = events(post(audio_server, silence, stream="true"))
    assert done["text"] == ""


def test_one_sample_is_a_sound(audio_server: Any) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1), RATE, format="WAV")
    assert post(audio_server, buffer.getvalue()).json()["text"] == ""


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_a_file_too_large_for_memory_is_heard_from_the_disk(audio_server: Any, format: str) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    soundfile.write(buffer, rng.uniform(-0.5, 0.5, 45 * RATE), RATE, format=format)
    assert len(buffer.getvalue()) > 2**20
    for fields in ({}, {"vad_filter": "true"}):
        assert post(audio_server, buffer.getvalue(), **fields).json()["usage"]["seconds"] == 45.0


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_other_formats_and_rates_say_the_same(audio_server: Any, format: str, rate: int) -> None:
    body = post(audio_server, sound(1, 0, 1, rate=rate, format=format)).json()
    assert body["text"] == "second 0. second 2."
    assert body["usage"]["seconds"] == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("language", ["es", "Spanish", "ES"])
def test_a_language_is_a_code_or_a_name(audio_server: Any, language: str) -> None:
    body = post(audio_server, model="whisper:small", language=language, response_format="verbose_json").json()
    assert (body["language"], body["text"]) == ("spanish", "segundo 0. segundo 2.")


def test_empty_fields_are_not_there(audio_server: Any) -> None:
    body = post(audio_server, language="", prompt="", temperature="", response_format="", stream="").json()
    assert body["text"] == "second 0. second 2."


def test_a_translation_is_english(audio_server: Any) -> None:
    body = post(audio_server, route=TRANSLATIONS, model="whisper:small", response_format="verbose_json").json()
    assert (body["task"], body["language"], body["text"]) == ("translate", "english", "second 0. second 2.")
    assert post(audio_server, route=TRANSLATIONS, model="whisper:small").json()["text"] == "second 0. second 2."


def test_only_speech_is_heard_and_times_stay_those_of_the_file(audio_server: Any) -> None:
    quiet = {"type": "server_vad", "prefix_padding_ms": 0, "silence_duration_ms": 100, "threshold": 0.5}
    file = sound(0, 0, 1, 0, 0, 1)
    fields: dict[str, Any] = {"response_format": "verbose_json"}
    spellings: list[dict[str, Any]] = [
        {"chunking_strategy": "auto"},
        {"chunking_strategy": json.dumps(quiet)},
        {f"chunking_strategy[{name}]": str(value) for name, value in quiet.items()},
        {"vad_filter": "true"},
    ]
    for spelling in spellings:
        body = post(audio_server, file, **fields, **spelling).json()
        assert [segment["start"] for segment in body["segments"]] == [2.0, 5.0], spelling
        assert body["duration"] == 6.0
    assert post(audio_server, sound(0, 0), chunking_strategy="auto").json()["text"] == ""


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": "diarized_json"}, "response_format", "speakers"),
    ({"response_format": "xml"}, "response_format", "'xml' is none of json, text, srt, verbose_json, vtt"),
    ({"temperature": "1.5"}, "temperature", "less than or equal to 1"),
    ({"temperature": "warm"}, "temperature", "number"),
    ({"temperature": "nan"}, "temperature", "finite"),
    ({"language": "klingon"}, "language", "'klingon' is no language"),
    ({"language": "de"}, "language", "English alone"),
    ({"languages[]": ["en", "de"]}, "languages", "one alone"),
    ({"timestamp_granularities[]": ["word"]}, "timestamp_granularities", "only with response_format verbose_json"),
    (
        {"timestamp_granularities[]": ["letter"], "response_format": "verbose_json"},
        "timestamp_granularities",
        "'letter' is neither",
    ),
    ({"include[]": ["logprobs"]}, "include", "no logprobs"),
    ({"include[]": ["gold"]}, "include", "'gold'"),
    ({"keywords[]": ["VMM"]}, "keywords", "prompt"),
    ({"known_speaker_names[]": ["Ada"]}, "known_speaker_names", "speakers"),
    ({"stream": "true", "response_format": "srt"}, "stream", "no srt"),
    ({"stream": "perhaps"}, "stream", "boolean"),
    ({"chunking_strategy": "manual"}, "chunking_strategy", "must be auto, or an object"),
    ({"chunking_strategy": '{"type": "semantic"}'}, "chunking_strategy.type", "'server_vad'"),
    ({"chunking_strategy": '{"type": '}, "chunking_strategy", "must be auto, or an object"),
    ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "2"}, "chunking_strategy.threshold", ""),
    ({"chunking_strategy": "auto", "vad_filter": "1"}, "vad_filter", "not both"),
    ({"keep_alive": "soon"}, "keep_alive", "duration"),
    ({"device": "QUANTUM"}, "device", "cannot run on"),
    ({"model": ["a", "b"]}, "model", "string"),
    ({"model": "smollm3"}, "model", "not found"),
    ({"model": "echo"}, "model", "does not support transcription"),
    ({"seed": "-1"}, "seed", "greater"),
]


@pytest.mark.parametrize(("fields", "param", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(audio_server: Any, fields: dict[str, Any], param: str, said: str) -> None:
    response = post(audio_server, **fields)
    error = response.json()["error"]
    assert response.status_code == (404 if "not found" in said else 400)
    assert (error["param"], error["type"]) == (
        param,
        "not_found_error" if "not found" in said else "invalid_request_error",
    )
    assert said in error["message"]


def test_clients_whose_base_url_lacks_v1_find_the_routes(audio_server: Any) -> None:
    assert post(audio_server, route="/audio/transcriptions").json()["text"] == "second 0. second 2."


def test_a_translation_needs_a_model_that_translates(audio_server: Any) -> None:
    error = post(audio_server, route=TRANSLATIONS).json()["error"]
    assert error["message"] == '"whisper:tiny.en" does not support translation'


def test_file_and_model_are_needed(audio_server: Any) -> None:
    client = audio_server.client
    error = client.post(ROUTE, files={"file": ("a.wav", sound(1))}).json()["error"]
    assert (error["param"], error["message"]) == ("model", "model: field required")
    error = client.post(ROUTE, files={"model": (None, "whisper:tiny.en")}).json()["error"]
    assert (error["param"], error["message"]) == ("file", "file: field required")
    error = client.post(ROUTE, files={"model": (None, "whisper:tiny.en"), "file": (None, "speech.wav")}).json()["error"]
    assert (error["param"], error["message"]) == ("file", "file: must be a file, not text")
    two = [("model", (None, "whisper:tiny.en")), ("file", ("a.wav", sound(1))), ("file", ("b.wav", sound(1)))]
    error = client.post(ROUTE, files=two).json()["error"]
    assert (error["param"], error["message"]) == ("file", "file: more than 1 file in a request")


def test_json_is_no_form(audio_server: Any) -> None:
    response = audio_server.client.post(ROUTE, json={"model": "whisper:tiny.en", "file": "UklGRg=="})
    assert response.status_code == 400
    assert "must be multipart/form-data, not application/json" in response.json()["error"]["message"]


BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "the file is empty"),
    (b"This is a text, whatever it is called.\n" * 100, "no sound file"),
    (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "no sound file"),
    (b"ffconcat version 1.0\nfile /etc/passwd\n", "no sound file"),
    (bytes(5000), "no sound file"),
    (sound(1)[:30], "no sound file"),
    (sound(*[0] * 61, rate=8000), "61 s long; the limit is 60 s"),
    (sound(*[0] * 100), "more than 2.9MiB, which is the limit"),
]


@pytest.mark.parametrize(("file", "said"), BAD_FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_files_that_cannot_be_heard_are_refused(audio_server: Any, file: bytes, said: str) -> None:
    for fields in ({}, {"stream": "true"}, {"chunking_strategy": "auto"}):
        response = post(audio_server, file, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "file")
        assert said in error["message"]


def test_a_file_that_is_cut_off_is_heard_as_far_as_it_goes_and_the_answer_says_so(audio_server: Any) -> None:
    whole = sound(1, 0, 1, 0, 1, 1, format="FLAC")
    response = post(audio_server, whole[: len(whole) * 2 // 3])
    assert response.json()["text"].startswith("second 0. second 2.")
    assert "second 5" not in response.json()["text"]
    assert "cut off" in response.headers["x-vmm-warning"]
    assert response.json()["warnings"] == [response.headers["x-vmm-warning"]]
    *_, done = events(post(audio_server, whole[: len(whole) * 2 // 3], stream="true"))
    assert done["warnings"] == response.json()["warnings"]


def test_a_stream_that_turns_out_too_long_ends_with_an_error(audio_server: Any) -> None:
    """A file whose header does not say how long it is: what was heard was sent already."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="adts") as container:
        stream: Any = container.add_stream("aac", rate=8000, layout="mono")
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(62 * 8000) / 8000, dtype=np.float32)
        for start in range(0, len(tone) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    response = post(audio_server, buffer.getvalue(), stream="true")
    assert response.status_code == 200
    *deltas, error = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert len(deltas) in range(58, 61)
    assert "too long; the limit is 60 s" in error["error"]["message"]
    whole = post(audio_server, buffer.getvalue())
    assert (whole.status_code, whole.json()["error"]["param"]) == (400, "file")
