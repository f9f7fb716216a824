"""The façade of models that hear, without HTTP: what is refused before a load, devices that fail, who closes what."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.api.fake_audio import FakeTranscriber, fake_ear, install_ears, sound

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.echo import write_echo_model
from vmm_server.audio.transcript import AudioReader, Segment, TranscriptionOptions
from vmm_server.audio.vad import SpeechOptions
from vmm_server.errors import (
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    PlacementFailed,
    ShuttingDown,
    UnsupportedCapability,
    UnsupportedParameter,
)
from vmm_server.models.leases import MAX_MOVES
from vmm_server.models.ready import Ready
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.parts import Parts, build_parts
from vmm_server.transcription import TranscriptionRequest

Run = Callable[..., None]
Body = Callable[["Here"], Coroutine[Any, Any, None]]


class Fails:
    """A transcript that fails when it is first asked, or after a segment."""

    language, duration_s, num_tokens, queued_s = None, None, 0, 0.0

    def __init__(self, inner: Any, error: Exception, after: int) -> None:
        self._inner, self._error, self._left = inner, error, after

    def __aiter__(self) -> AsyncIterator[Segment]:
        return self

    async def __anext__(self) -> Segment:
        if not self._left:
            raise self._error
        self._left -= 1
        segment: Segment = await anext(self._inner)
        return segment

    async def aclose(self) -> None:
        await self._inner.aclose()


class Ear(FakeTranscriber):
    """Fails as it is told to, first of all."""

    def __init__(self, model: InstalledModel, placement: Placement, failures: list[tuple[Exception, int]]) -> None:
        super().__init__(model, placement, None)
        self._failures = failures
        self.readers: list[AudioReader] = []

    def transcribe(self, reader: AudioReader, options: TranscriptionOptions) -> Any:
        self.readers.append(reader)
        inner = super().transcribe(reader, options)
        return Fails(inner, *self._failures.pop(0)) if self._failures else inner


class Here:
    """The parts, the models that were loaded, and what they are to fail with."""

    def __init__(self, parts: Parts, ears: list[Ear], failures: list[tuple[Exception, int]]) -> None:
        self.parts, self.ears, self.failures = parts, ears, failures

    async def heard(self, file: bytes | Path, **fields: Any) -> list[str]:
        given = io.BytesIO(file) if isinstance(file, bytes) else file
        request = TranscriptionRequest(fields.pop("model", "whisper:small"), given, **fields)
        async with self.parts.transcriptions.transcribe(request) as transcribed:
            return [segment.text async for segment in transcribed]

    def num_leases(self) -> int:
        return sum(each.num_leases for each in self.parts.pool.loaded())


@pytest.fixture
def run(settings: Any, tmp_path: Path) -> Run:
    """Run `body(here)` on an event loop; at its end nothing is leased, and every file is closed."""

    def start(body: Body, *, vad: bool = True, **changes: object) -> None:
        asyncio.run(asyncio.wait_for(bounded(body, vad, changes), 60))

    async def bounded(body: Body, vad: bool, changes: dict[str, object]) -> None:
        ears: list[Ear] = []
        failures: list[tuple[Exception, int]] = []

        def load(model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Ready:
            if "transcription" in model.capabilities:
                ears.append(Ear(model, placement, failures))
                return ears[-1]
            other = fake_ear(model, placement, None)
            assert other is not None
            return other

        parts = build_parts(settings(**changes), load)
        install_ears(parts.store, _echo(tmp_path / "echo"), vad=vad)
        here = Here(parts, ears, failures)
        try:
            await body(here)
            assert here.num_leases() == 0
            for reader in (reader for ear in ears for reader in ear.readers):
                assert len(reader.read(1)) == 0, "closed"
        finally:
            await parts.pool.aclose()
            parts.machine.close()

    return start


def _echo(folder: Path) -> InstalledModel:
    write_echo_model(folder)
    return InstalledModel(
        name="echo:latest",
        aliases=(),
        digest="e" * 64,
        size_bytes=1000,
        modified_at=datetime(2026, 11, 21, tzinfo=UTC),
        adapter="echo",
        folder=folder,
        format="onnx",
        family="echo",
        parameter_size="1M",
        quantization="F32",
        context_length=512,
        embedding_length=None,
        capabilities=("completion",),
        license=None,
        title="Echo",
        system=None,
        sampling=SamplingDefaults(),
        source="file:echo",
    )


SAID = [" second 0.", " second 2."]
SOUND = sound(1, 0, 1)


def test_what_is_wrong_is_refused_before_anything_is_loaded(run: Run) -> None:
    async def body(here: Here) -> None:
        with pytest.raises(InvalidRequest, match="no sound file"):
            await here.heard(b"text")
        with pytest.raises(InvalidRequest, match="6 s long; the limit is 5 s"):
            await here.heard(sound(*[0] * 6))
        with pytest.raises(ModelNotFound):
            await here.heard(SOUND, model="whisper:large")
        with pytest.raises(UnsupportedCapability, match="translation"):
            await here.heard(SOUND, model="whisper:tiny.en", options=TranscriptionOptions(task="translate"))
        assert here.parts.pool.loaded() == []
        with pytest.raises(UnsupportedParameter):
            await here.heard(SOUND, model="whisper:tiny.en", options=TranscriptionOptions(language="de"))

    run(body, max_audio_seconds=5)


@pytest.mark.parametrize("num_failures", [1, MAX_MOVES])
def test_a_device_that_fails_before_the_first_segment_is_left_and_the_file_read_again(
    run: Run, num_failures: int
) -> None:
    async def body(here: Here) -> None:
        here.failures += [(PlacementFailed("the driver was reset"), 0)] * num_failures
        assert await here.heard(SOUND) == SAID
        assert len(here.ears[0].readers) == num_failures + 1

    run(body)


def test_there_is_an_end_to_that(run: Run) -> None:
    async def body(here: Here) -> None:
        here.failures += [(PlacementFailed("the driver was reset"), 0)] * (MAX_MOVES + 1)
        with pytest.raises(PlacementFailed):
            await here.heard(SOUND)
        assert not here.failures

    run(body)


@pytest.mark.parametrize("error", [PlacementFailed("the driver was reset"), GenerationFailed("a step failed")])
def test_what_was_said_is_not_said_twice(run: Run, error: Exception) -> None:
    async def body(here: Here) -> None:
        here.failures.append((error, 1))
        with pytest.raises(type(error)):
            await here.heard(SOUND)

    run(body)


def test_who_leaves_early_frees_everything(run: Run) -> None:
    async def body(here: Here) -> None:
        request = TranscriptionRequest("whisper:small", io.BytesIO(SOUND))
        async with here.parts.transcriptions.transcribe(request) as transcribed:
            await anext(transcribed)
            assert here.num_leases() == 1
        assert here.num_leases() == 0

    run(body)


def test_who_is_cancelled_anywhere_frees_everything(run: Run) -> None:
    async def body(here: Here) -> None:
        await here.heard(SOUND, speech=SpeechOptions())
        for num_turns in range(0, 40, 3):
            task = asyncio.create_task(here.heard(SOUND, speech=SpeechOptions()))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert here.num_leases() == 0

    run(body)


def test_only_speech_is_heard(run: Run, tmp_path: Path) -> None:
    async def body(here: Here) -> None:
        path = tmp_path / "sound.wav"
        path.write_bytes(sound(0, 0, 1, 0, 0, 0, 1, 1))
        options = SpeechOptions(padding_s=0.1, min_silence_s=0.5)
        assert await here.heard(path, speech=options) == [" second 2.", " second 6.", " second 7."]
        (asked,) = here.ears[0].asked
        assert asked.clips is not None
        for (start_s, end_s), (began_s, ended_s) in zip(asked.clips, [(1.9, 3.1), (5.9, 8.0)], strict=True):
            assert (start_s, end_s) == pytest.approx((began_s, ended_s), abs=0.05)
        assert await here.heard(sound(0, 0), speech=options) == []
        assert here.ears[0].asked[-1].clips == ()

    run(body)


def test_one_model_at_a_time_is_enough_to_find_speech_and_hear_it(run: Run) -> None:
    async def body(here: Here) -> None:
        assert await here.heard(SOUND, speech=SpeechOptions()) == SAID
        assert [each.model.name for each in here.parts.pool.loaded()] == ["whisper:small"]

    run(body, max_loaded_models=1, load_timeout_s=5)


def test_finding_speech_needs_its_model(run: Run) -> None:
    async def body(here: Here) -> None:
        with pytest.raises(InvalidRequest, match="vad_filter: speech is found by the model silero-vad") as caught:
            await here.heard(SOUND, speech=SpeechOptions(), speech_param="vad_filter")
        assert (caught.value.param, caught.value.hint) == ("vad_filter", "vmm pull silero-vad")
        assert here.parts.pool.loaded() == []

    run(body, vad=False)


def test_a_server_that_drains_waits_for_what_is_heard(run: Run) -> None:
    async def body(here: Here) -> None:
        request = TranscriptionRequest("whisper:small", io.BytesIO(SOUND))
        async with here.parts.transcriptions.transcribe(request) as transcribed:
            draining = asyncio.create_task(here.parts.one_shot.drain(30))
            assert [segment.text async for segment in transcribed] == SAID
            assert not draining.done()
        assert await draining
        with pytest.raises(ShuttingDown):
            await here.heard(SOUND)

    run(body)


def test_who_answered_is_known(run: Run) -> None:
    async def body(here: Here) -> None:
        request = TranscriptionRequest("whisper:small", io.BytesIO(SOUND))
        async with here.parts.transcriptions.transcribe(request) as transcribed:
            assert transcribed.answered is not None
            assert transcribed.answered.queued_s is None
            assert [segment.text async for segment in transcribed] == SAID
            answered = transcribed.answered
            assert answered is not None
            assert (answered.model.name, answered.placement.device, answered.queued_s) == ("whisper:small", "CPU", 0.25)
            assert (transcribed.language, transcribed.duration_s, transcribed.num_tokens) == ("en", 3.0, 4)
            assert transcribed.problem is None

    run(body)
