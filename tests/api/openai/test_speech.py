"""`/v1/audio/speech` over a real server, with a model whose sound can be read."""

import base64
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from tests.api.conftest import EchoLoader, LiveServer, echo_app
from tests.api.test_disconnect import wait_until
from tests.tiny_kokoro import SAMPLES_A_LETTER, VOICES, KokoroSession, height, kokoro_model, spell, write_kokoro

from vmm_adapters.errors import DeviceLost, RuntimeFailed
from vmm_server.api.openai.audio.speech import SpeechBody, delta_event, done_event, speech_request
from vmm_server.errors import UnsupportedParameter
from vmm_server.models.importers.kokoro import KokoroInputs
from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.speech import warm_speaker
from vmm_server.models.store import InstalledModel, Store
from vmm_server.settings import Settings
from vmm_server.speaking import SpeechUsage

CPU, GPU = Placement("onnxruntime", "CPU"), Placement("onnxruntime", "CUDA.0")
RATE = 24_000


class GatedSession(KokoroSession):
    """Calls `before` with the number of what it speaks, from 1 on; 0 is what it says to warm up."""

    def __init__(self, before: Callable[[int], None]) -> None:
        super().__init__()
        self._before = before

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._before(len(self.said))
        return super().run(feeds)


class SpeakerLoader(EchoLoader):
    """Loads the tiny Kokoro; `before` is told what its session is about to do, and where."""

    settings: Settings

    def __init__(self, before: Callable[[Placement, int], None] = lambda placement, number: None) -> None:
        super().__init__(placements=(CPU, GPU))
        self._speak_before = before
        self.sessions: dict[Placement, GatedSession] = {}

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Any:
        if "speech" not in model.capabilities:
            return super().__call__(model, placement, kv_cache_bytes)
        session = self.sessions[placement] = GatedSession(lambda number: self._speak_before(placement, number))
        inputs = KokoroInputs("input_ids", "style", "speed")
        ready: Ready = warm_speaker(model, placement, self.settings, session, inputs, spell)
        return ready


StartSpeaker = Callable[..., tuple[LiveServer, SpeakerLoader]]


@contextmanager
def speakers_in(folder: Path) -> Iterator[StartSpeaker]:
    servers: list[LiveServer] = []

    def start(**options: Any) -> tuple[LiveServer, SpeakerLoader]:
        loader = SpeakerLoader(**options)
        app = echo_app(folder, loader)
        loader.settings = app.state.parts.settings
        write_kokoro(folder / "kokoro")
        Store(loader.settings.store_dir).install(kokoro_model(folder / "kokoro"))
        server = LiveServer(app, loader)
        servers.append(server)
        server.start()
        return server, loader

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def start_speaker(tmp_path: Path, no_environment: None) -> Iterator[StartSpeaker]:
    """Starts a server and gives its loader too."""
    with speakers_in(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The one server of all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch, speakers_in(tmp_path_factory.mktemp("speaker")) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
            patch.delenv(name)
        server, _ = start()
        yield server


def body(text: str = "Go on.", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny-kokoro", "input": text, "voice": "ef_low", **fields}


def speak(server: LiveServer, text: str = "Go on.", **fields: Any) -> httpx.Response:
    return server.client.post("/v1/audio/speech", json=body(text, **fields))


def plateaus(*sentences: str, speed: float = 1.0, shift: float = 0.0) -> NDArray[np.int16]:
    """What the model says, as 16-bit samples."""
    heights = [each for sentence in sentences for each in (0.0, *map(height, sentence), 0.0)]
    samples = np.repeat(np.array(heights, np.float32) + np.float32(shift), int(SAMPLES_A_LETTER / speed))
    return np.rint(samples * 32767).astype(np.int16)


def pcm(response: httpx.Response) -> NDArray[np.int16]:
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content, "<i2")


def seconds(sound: bytes) -> float:
    with av.open(io.BytesIO(sound)) as container:
        return float(sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)))


def test_sentences_are_spoken_in_their_order(speaker: LiveServer) -> None:
    response = speak(speaker, "Go on. Stop! Yes", response_format="pcm")
    np.testing.assert_array_equal(pcm(response), plateaus("Go on.", "Stop!", "Yes"))
    assert response.headers["content-type"] == "audio/pcm"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["x-vmm-model"] == "tiny-kokoro:latest"
    assert response.headers["x-vmm-backend"] == "onnxruntime"
    assert "x-vmm-queue-ms" in response.headers


def test_voice_and_speed_are_heard(speaker: LiveServer) -> None:
    response = speak(speaker, voice="em_high", speed=2, response_format="pcm")
    np.testing.assert_array_equal(pcm(response), plateaus("Go on.", speed=2, shift=VOICES["em_high"]))


@pytest.mark.parametrize("voice", ["af_nova", "nova", {"id": "af_nova"}])
def test_a_voice_may_be_named_in_three_ways(speaker: LiveServer, voice: object) -> None:
    assert len(pcm(speak(speaker, "Hi", voice=voice, response_format="pcm"))) == 4 * SAMPLES_A_LETTER


@pytest.mark.parametrize(
    ("format", "media_type", "start"),
    [
        (None, "audio/mpeg", b"\xff"),
        ("mp3", "audio/mpeg", b"\xff"),
        ("opus", "audio/ogg", b"OggS"),
        ("aac", "audio/aac", b"\xff\xf1"),
        ("flac", "audio/flac", b"fLaC"),
        ("wav", "audio/wav", b"RIFF"),
    ],
)
def test_files_can_be_played(speaker: LiveServer, format: str | None, media_type: str, start: bytes) -> None:
    response = speak(speaker, "Go on. Stop!", response_format=format)
    assert response.headers["content-type"] == media_type
    assert response.content.startswith(start)
    assert seconds(response.content) == pytest.approx(len(plateaus("Go on.", "Stop!")) / RATE, abs=0.1)


def test_openais_client_streams_a_file(speaker: LiveServer, tmp_path: Path) -> None:
    client = openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0)
    asked = client.audio.speech.with_streaming_response.create(
        model="tiny-kokoro", voice="ef_low", input="Go on. Stop!", response_format="wav"
    )
    with asked as response:
        response.stream_to_file(tmp_path / "said.wav")
    np.testing.assert_array_equal(
        np.frombuffer((tmp_path / "said.wav").read_bytes()[44:], "<i2"), plateaus("Go on.", "Stop!")
    )
    with pytest.raises(openai.BadRequestError, match="no voice"):
        client.audio.speech.create(model="tiny-kokoro", voice="verse", input="Go")


def test_the_first_sentence_is_sent_before_the_second_is_spoken(start_speaker: StartSpeaker) -> None:
    may_go_on = threading.Event()

    def before(placement: Placement, number: int) -> None:
        if number >= 2:
            assert may_go_on.wait(30)

    server, _ = start_speaker(before=before)
    with server.client.stream("POST", "/v1/audio/speech", json=body("Go. On.", response_format="pcm")) as response:
        pieces = response.iter_raw()
        first = next(pieces)
        may_go_on.set()
        rest = b"".join(pieces)
    np.testing.assert_array_equal(np.frombuffer(first, "<i2"), plateaus("Go."))
    np.testing.assert_array_equal(np.frombuffer(rest, "<i2"), plateaus("On."))


def test_events_have_pieces_of_the_file_and_then_the_usage(speaker: LiveServer) -> None:
    response = speak(speaker, "Go on. Stop!", response_format="pcm", stream_format="sse")
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert {each["type"] for each in deltas} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(each["audio"]) for each in deltas)
    np.testing.assert_array_equal(np.frombuffer(sound, "<i2"), plateaus("Go on.", "Stop!"))
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 11, "output_tokens": 15, "total_tokens": 26},
    }


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "x" * 4097}, "input", "4096"),
        ({"input": " \n"}, "input", "nothing in it can be spoken"),
        ({"input": None}, "input", "string"),
        ({"voice": "verse"}, "voice", "no voice of this model"),
        ({"voice": "twin"}, "voice", "am_twin or bf_twin"),
        ({"voice": "jf_alpha"}, "voice", "Japanese"),
        ({"voice": {"name": "ef_low"}}, "voice", "string"),
        ({"response_format": "ogg"}, "response_format", "'mp3'"),
        ({"speed": 0.2}, "speed", "0.25"),
        ({"speed": 4.5}, "speed", "4"),
        ({"stream_format": "raw"}, "stream_format", "'sse'"),
        ({"instructions": "Speak like a pirate."}, "instructions", "cannot be told"),
        ({"model": "echo"}, "model", "does not support speech"),
        ({"device": ""}, "device", "empty"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_byte(
    speaker: LiveServer, fields: dict[str, object], param: str, words: str
) -> None:
    response = speak(speaker, **{"text": "Go", **fields} if "input" not in fields else {"text": "", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error


def test_an_unknown_voice_is_answered_with_all_that_there_are(speaker: LiveServer) -> None:
    hint = speak(speaker, voice="verse").json()["error"]["hint"]
    assert all(voice in hint for voice in VOICES)


def test_a_missing_model_is_a_404(speaker: LiveServer) -> None:
    response = speak(speaker, model="kokoro:82m")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_empty_instructions_are_none(speaker: LiveServer) -> None:
    assert speak(speaker, instructions=" ").status_code == 200


def test_a_failure_of_the_first_sentence_has_a_status(start_speaker: StartSpeaker) -> None:
    def before(placement: Placement, number: int) -> None:
        if number == 1:
            raise RuntimeFailed("out of breath")

    server, _ = start_speaker(before=before)
    response = speak(server)
    assert (response.status_code, "out of breath" in response.text) == (500, True)


def fail_at_two(placement: Placement, number: int) -> None:
    if number == 2:
        raise RuntimeFailed("out of breath")


def test_a_later_failure_ends_the_connection_before_the_body_is_whole(start_speaker: StartSpeaker) -> None:
    server, _ = start_speaker(before=fail_at_two)
    with server.client.stream("POST", "/v1/audio/speech", json=body("Go. On.", response_format="pcm")) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()


def test_a_later_failure_among_events_is_one_of_them(start_speaker: StartSpeaker) -> None:
    server, _ = start_speaker(before=fail_at_two)
    response = speak(server, "Go. On.", stream_format="sse", response_format="pcm")
    first, last = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert first["type"] == "speech.audio.delta"
    assert "out of breath" in last["error"]["message"]


def test_a_device_that_is_lost_at_the_first_sentence_is_replaced(start_speaker: StartSpeaker) -> None:
    def before(placement: Placement, number: int) -> None:
        if placement == CPU and number == 1:
            raise DeviceLost("the processor is gone")

    server, loader = start_speaker(before=before)
    response = speak(server, response_format="pcm")
    np.testing.assert_array_equal(pcm(response), plateaus("Go on."))
    assert response.headers["x-vmm-device"] == "CUDA.0"
    assert loader.sessions[CPU].said[1:] == []


def test_a_client_that_leaves_is_not_spoken_to_any_more(start_speaker: StartSpeaker) -> None:
    second, may_go_on = threading.Event(), threading.Event()

    def before(placement: Placement, number: int) -> None:
        if number == 2:
            second.set()
            assert may_go_on.wait(30)

    server, loader = start_speaker(before=before)
    with server.client.stream(
        "POST", "/v1/audio/speech", json=body("Go. On. And. Stop.", response_format="pcm")
    ) as response:
        chunks = response.iter_raw()  # httpx leaves when nobody holds it any more
        next(chunks)
        assert second.wait(30)
    wait_until(server, lambda: sum(each.num_leases for each in server.parts.pool.loaded()) == 0)
    may_go_on.set()
    server.run(server.parts.pool.aclose())  # the batcher's thread ends after what it was at
    (session,) = loader.sessions.values()
    assert session.said[1:] == ["Go.", "On."]
    assert session.is_closed


def test_requests_take_turns_by_sentence(start_speaker: StartSpeaker) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def before(placement: Placement, number: int) -> None:
        if number == 1:
            begun.set()
            assert may_go_on.wait(30)

    server, loader = start_speaker(before=before)
    long = threading.Thread(target=speak, args=(server, "Go. Go. Go. Go. Go. Go."))
    short = threading.Thread(target=speak, args=(server, "Stop."))
    long.start()
    assert begun.wait(30)
    short.start()
    (loaded,) = server.parts.pool.loaded()
    wait_until(server, lambda: loaded.ready.stats.num_waiting == 1)
    may_go_on.set()
    long.join(30)
    short.join(30)
    (session,) = loader.sessions.values()
    assert session.said.index("Stop.") <= 3, session.said


def test_a_body_becomes_a_request() -> None:
    wire = SpeechBody.model_validate({"model": "m", "input": "t", "voice": {"id": "v"}, "speed": 2})
    asked = speech_request(wire)
    assert (asked.model, asked.text, asked.voice, asked.speed) == ("m", "t", "v", 2.0)
    with pytest.raises(UnsupportedParameter, match="instructions"):
        speech_request(wire.model_copy(update={"instructions": "slowly"}))


def test_the_events_of_openai() -> None:
    assert delta_event(b"\x00\x01") == {"type": "speech.audio.delta", "audio": "AAE="}
    assert done_event(SpeechUsage(7, num_samples=601)) == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
    }
