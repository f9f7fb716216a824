"""Sounds of many clients in one batch: who shares it, who leaves it, and what happens when it fails."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_server.audio.features import LogMel
from vmm_server.audio.transcript import Segment, Transcript, TranscriptionOptions
from vmm_server.callers import Caller, caller
from vmm_server.engine.transcriber import Transcriber, TranscriberOptions, TranscriberStats
from vmm_server.engine.transcriber_rows import Rows
from vmm_server.engine.transcriber_worker import TranscriberWorker
from vmm_server.errors import (
    DeadlineUnreachable,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    PlacementFailed,
    ShuttingDown,
    UnsupportedParameter,
)

from .scripted_whisper import (
    ENGLISH,
    FAILED,
    GERMAN,
    LOST,
    NUM_MEL_BINS,
    PREVIOUS,
    SOT,
    TRANSCRIBE,
    TRANSLATE,
    Reader,
    ScriptedDecoder,
    ScriptedEncoder,
    at,
    sound,
    tokenizer,
    tokens_of,
)

TIMEOUT_S = 90
ONE_PHRASE = [at(0), 1, 2, at(4)]
TEXTS = {0: ONE_PHRASE, 1: [at(0), 3, at(2), at(2.5), 4, 5, at(6)], 2: [at(0), 6, 7, 8, at(10), at(10), 9]}


class Whisper:
    """A transcriber over scripted sessions."""

    def __init__(self, texts: dict[int, list[int]] | None = None, *, is_multilingual: bool = False, **options: int):
        self.encoder = ScriptedEncoder()
        self.decoder = ScriptedDecoder(TEXTS if texts is None else texts, GERMAN if is_multilingual else None)
        limits = TranscriberOptions(**{"max_rows": 3, "max_encoded": 3, "max_transcripts": 8} | options)
        rows = Rows(self.encoder, self.decoder, limits.max_rows)
        tokens = tokens_of(is_multilingual=is_multilingual)
        self.transcriber = Transcriber(rows, tokenizer(), tokens, num_mel_bins=NUM_MEL_BINS, options=limits)

    def hear(self, *names: int, seconds: float = 30.0, **options: Any) -> Transcript:
        samples = np.concatenate([sound(name, seconds) for name in names])
        return self.transcriber.transcribe(Reader(samples), TranscriptionOptions(**options))

    async def held(self) -> None:
        await asyncio.to_thread(self.decoder.gate.wait_for_step)

    async def until(self, condition: Callable[[TranscriberWorker], bool]) -> None:
        """While its thread is held."""
        worker = self.transcriber._worker

        def wait() -> None:
            with worker._changed:
                assert worker._changed.wait_for(lambda: condition(worker), TIMEOUT_S)

        await asyncio.to_thread(wait)


async def whole(transcript: Transcript) -> list[Segment]:
    return [segment async for segment in transcript]


Body = Callable[[Whisper], Coroutine[Any, Any, None]]


def run(body: Body, texts: dict[int, list[int]] | None = None, **options: Any) -> Whisper:
    async def bounded() -> Whisper:
        whisper = Whisper(texts, **options)
        try:
            await asyncio.wait_for(body(whisper), TIMEOUT_S)
        finally:
            whisper.decoder.gate.open()
            await whisper.transcriber.aclose()
        return whisper

    whisper = asyncio.run(bounded())
    assert whisper.encoder.is_closed
    assert whisper.decoder.is_closed
    return whisper


@st.composite
def scripts(draw: st.DrawFn) -> dict[int, list[int]]:
    """Texts of sounds 0 to 3: phrases of some words."""
    texts = {}
    for name in range(4):
        text, time = [], 0.0
        for _ in range(draw(st.integers(1, 4))):
            words = draw(st.lists(st.integers(0, 29), min_size=1, max_size=5))
            text += [at(time), *words, at(time + 2)]
            time += 2
        texts[name] = text
    return texts


@given(scripts(), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_sounds_in_one_batch_are_heard_as_if_each_were_alone(
    texts: dict[int, list[int]], sounds: list[list[int]]
) -> None:
    async def body(whisper: Whisper) -> None:
        alone = [await whole(whisper.hear(*names)) for names in sounds]
        together = await asyncio.gather(*(whole(whisper.hear(*names)) for names in sounds))
        assert together == alone

    whisper = run(body, texts)
    assert max(len(batch) for batch in whisper.decoder.batches) <= 3


def test_a_tenants_only_window_does_not_wait_for_all_of_anothers() -> None:
    async def body(whisper: Whisper) -> None:
        ended: list[str] = []

        async def hear(tenant: str, priority: int = 0) -> None:
            caller.set(Caller(tenant, priority=priority))
            await whole(whisper.hear(0))
            ended.append(tenant)

        whisper.decoder.gate.is_held = True
        asking = [asyncio.create_task(hear("many"))]
        await whisper.held()
        asking += [asyncio.create_task(hear("many")) for _ in range(4)]
        await whisper.until(lambda worker: len(worker._waiting) == 4)
        asking += [asyncio.create_task(hear("one")), asyncio.create_task(hear("urgent", -1))]
        await whisper.until(lambda worker: len(worker._waiting) == 6)
        whisper.decoder.gate.open()
        await asyncio.gather(*asking)
        assert ended[:2] == ["many", "urgent"]
        assert "one" in ended[2:4]

    run(body, max_rows=1, max_encoded=1)


def test_a_sound_that_would_be_heard_too_late_is_refused_at_once() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.transcriber._worker._pace.note_answer(100.0)
        caller.set(Caller(deadline_at=time.monotonic() + 50))
        with pytest.raises(DeadlineUnreachable):
            whisper.hear(0)
        caller.set(Caller(deadline_at=time.monotonic() + 5000))
        await whole(whisper.hear(0))

    run(body)


def test_phrases_have_the_times_of_the_whole_sound_and_windows_follow_them() -> None:
    async def body(whisper: Whisper) -> None:
        transcript = whisper.hear(2, 2, condition_on_previous_text=True, temperatures=(0.0,))
        segments = await whole(transcript)
        assert [(each.id, each.seek, each.start, each.end, each.text) for each in segments[:2]] == [
            (0, 0, 0.0, 10.0, " w6 w7 w8"),
            (1, 1000, 10.0, 20.0, " w6 w7 w8"),
        ]
        assert segments[0].tokens == (at(0), 6, 7, 8, at(10))
        assert segments[0].temperature == 0
        assert segments[0].avg_logprob == pytest.approx(0, abs=1e-3)
        assert transcript.language == "en"
        assert transcript.duration_s == 60.0
        assert len(segments) == 4
        assert transcript.num_tokens == 4 * (len(TEXTS[2]) + 1) + 2  # nothing is heard at the end

    whisper = run(body)
    context = [at(0), 6, 7, 8, at(10)]
    assert whisper.decoder.prompts[:3] == [[SOT], [PREVIOUS, *context, SOT], [PREVIOUS, *context, *context, SOT]]


def test_the_prompt_stands_before_every_window() -> None:
    async def body(whisper: Whisper) -> None:
        await whole(whisper.hear(0, 0, prompt="w5 w6"))

    assert run(body).decoder.prompts == [[PREVIOUS, 5, 6, SOT]] * 2


def test_a_long_context_keeps_its_end() -> None:
    async def body(whisper: Whisper) -> None:
        await whole(whisper.hear(0, prompt=" ".join(f"w{index % 30}" for index in range(100))))

    assert run(body).decoder.prompts == [[PREVIOUS, *(index % 30 for index in range(69, 100)), SOT]]


def test_a_try_is_a_window_in_the_queue() -> None:
    async def body(whisper: Whisper) -> None:
        await asyncio.gather(*(whisper.transcriber.try_once() for _ in range(2)))
        assert whisper.transcriber.stats == TranscriberStats(0, 0, 2 * 30, 2 * 2)  # a time and the end

    assert sum(map(len, run(body).encoder.batches)) == 2  # together, unless the thread took the first one at once


def test_windows_join_those_that_are_under_way() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.decoder.gate.is_held = True
        first = asyncio.create_task(whole(whisper.hear(0)))
        await whisper.held()
        others = [asyncio.create_task(whole(whisper.hear(name))) for name in (1, 2)]
        await whisper.until(lambda worker: len(worker._waiting) == 2)
        stats = whisper.transcriber.stats
        assert (stats.num_running, stats.num_waiting) == (1, 2)
        whisper.decoder.gate.open()
        await asyncio.gather(first, *others)
        stats = whisper.transcriber.stats
        assert (stats.num_running, stats.num_waiting, stats.computed_size) == (0, 0, 3 * 30 + 20)

    whisper = run(body)
    assert sorted(whisper.encoder.batches[1]) == [1, 2]
    assert [0, 1, 2] in map(sorted, whisper.decoder.batches)


def test_closing_a_transcript_frees_its_row_at_once() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.decoder.gate.is_held = True
        reader = Reader(sound(0))
        leaving = whisper.transcriber.transcribe(reader, TranscriptionOptions())
        task = asyncio.create_task(whole(leaving))
        await whisper.held()
        staying = asyncio.create_task(whole(whisper.hear(1)))
        await leaving.aclose()
        assert reader.is_closed
        assert await task == []
        await leaving.aclose()
        whisper.decoder.gate.open()
        assert len(await staying) == 2

    whisper = run(body, max_rows=1)
    assert whisper.decoder.batches == [[0]] + [[1]] * (len(TEXTS[1]) + 1)


def test_a_client_that_leaves_closes_its_transcript() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.decoder.gate.is_held = True
        reader = Reader(sound(0))
        transcript = whisper.transcriber.transcribe(reader, TranscriptionOptions())
        task = asyncio.create_task(whole(transcript))
        await whisper.held()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reader.is_closed
        assert whisper.transcriber.stats.num_running == 0

    run(body)


def test_a_step_that_fails_fails_its_windows_and_no_others() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.decoder.raises = [FAILED]
        reader = Reader(sound(0))
        with pytest.raises(GenerationFailed, match="no memory") as raised:
            await whole(whisper.transcriber.transcribe(reader, TranscriptionOptions()))
        assert not isinstance(raised.value, PlacementFailed)
        assert reader.is_closed
        assert len(await whole(whisper.hear(1))) == 2
        whisper.decoder.raises = [FAILED]
        with pytest.raises(GenerationFailed):
            await whole(whisper.hear(0))
        assert whisper.transcriber.failure is None

    run(body)


@pytest.mark.parametrize("errors", [[LOST], [FAILED, FAILED]])
def test_a_device_that_is_lost_is_given_up(errors: Sequence[Exception]) -> None:
    async def body(whisper: Whisper) -> None:
        said = whisper.hear(2, 2)
        assert (await anext(said)).text == " w6 w7 w8"
        whisper.decoder.raises = list(errors)
        for _ in errors[1:]:
            with pytest.raises(GenerationFailed):
                await whole(whisper.hear(0))
        with pytest.raises(PlacementFailed):
            await whole(whisper.hear(0))
        assert whisper.transcriber.failure is not None
        with pytest.raises(GenerationFailed) as raised:
            await anext(said)
        assert not isinstance(raised.value, PlacementFailed)
        with pytest.raises(PlacementFailed):
            whisper.hear(0)

    run(body)


def test_what_the_reader_raises_comes_through() -> None:
    async def body(whisper: Whisper) -> None:
        reader = Reader(sound(0, seconds=40), InvalidRequest("file: cut off", param="file"))
        transcript = whisper.transcriber.transcribe(reader, TranscriptionOptions())
        with pytest.raises(InvalidRequest, match="cut off"):
            await whole(transcript)
        assert reader.is_closed

    run(body)


def test_silence_and_nothing_at_all_are_no_text_and_take_no_step() -> None:
    async def body(whisper: Whisper) -> None:
        for samples in (np.zeros(0), np.ones(1), np.zeros(70 * 16000)):
            reader = Reader(samples.astype(np.float32))
            transcript = whisper.transcriber.transcribe(reader, TranscriptionOptions())
            assert await whole(transcript) == []
            assert transcript.duration_s == len(samples) / 16000
            assert reader.is_closed

    whisper = run(body)
    assert whisper.decoder.batches == []


def test_a_phrase_that_was_left_out_at_the_end_is_heard_by_itself() -> None:
    async def body(whisper: Whisper) -> None:
        segments = await whole(whisper.hear(0, 1, seconds=10.0))
        assert [(segment.seek, segment.text) for segment in segments] == [
            (0, " w3"),
            (0, " w4 w5"),
            (600, " w3"),
            (600, " w4 w5"),
        ]

    assert run(body).encoder.batches == [[1], [1]]


def test_only_clips_are_heard_and_their_times_are_those_of_the_whole() -> None:
    async def body(whisper: Whisper) -> None:
        samples = np.concatenate((np.zeros(160000, np.float32), sound(0, 5.0), np.zeros(16000, np.float32)))
        options = TranscriptionOptions(clips=((10.0, 15.0),), word_timestamps=True)
        transcript = whisper.transcriber.transcribe(Reader(samples), options)
        [segment] = await whole(transcript)
        assert segment.seek == 1000
        assert segment.words is not None
        assert [word.word for word in segment.words] == [" w1", " w2"]
        assert 10.0 <= segment.start == segment.words[0].start
        assert segment.end == segment.words[-1].end <= 15.0
        assert transcript.duration_s == 16.0

    run(body)


def test_text_that_repeats_itself_is_tried_at_every_temperature_and_then_taken_as_it_is() -> None:
    repeated = [at(0), *[3] * 25, at(4)]

    async def body(whisper: Whisper) -> None:
        [segment] = await whole(whisper.hear(0, temperatures=(0.0, 0.5, 1.0)))
        assert segment.compression_ratio > 2.4
        assert segment.text == " w3" * 25

    assert run(body, {0: repeated}).decoder.prompts == [[SOT]] * 3


def test_the_language_is_heard_once_or_said() -> None:
    async def body(whisper: Whisper) -> None:
        heard, said = whisper.hear(0, 0), whisper.hear(0, language="English", task="translate")
        await whole(heard)
        await whole(said)
        assert (heard.language, said.language) == ("de", "en")

    prompts = run(body, is_multilingual=True).decoder.prompts
    assert prompts == [
        [SOT],
        [SOT, GERMAN, TRANSCRIBE],
        [SOT, GERMAN, TRANSCRIBE],
        [SOT, ENGLISH, TRANSLATE],
    ]


@pytest.mark.parametrize(
    ("options", "param", "error"),
    [
        ({"language": "klingon"}, "language", InvalidRequest),
        ({"language": "de"}, "language", UnsupportedParameter),
        ({"task": "translate"}, "task", UnsupportedParameter),
        ({"temperatures": ()}, "temperature", InvalidRequest),
        ({"temperatures": (-0.1,)}, "temperature", InvalidRequest),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(options: Any, param: str, error: type[InvalidRequest]) -> None:
    async def body(whisper: Whisper) -> None:
        with pytest.raises(error) as raised:
            whisper.hear(0, **options)
        assert raised.value.param == param
        assert whisper.transcriber.stats.num_waiting == 0

    run(body)


def test_more_than_there_is_room_for_are_refused() -> None:
    async def body(whisper: Whisper) -> None:
        first, _ = whisper.hear(0), whisper.hear(0)
        with pytest.raises(Overloaded):
            whisper.hear(0)
        await first.aclose()
        await whole(whisper.hear(0))

    run(body, max_transcripts=2)


def test_a_transcriber_that_is_closed_ends_what_is_open_and_takes_nothing() -> None:
    async def body(whisper: Whisper) -> None:
        whisper.decoder.gate.is_held = True
        running = asyncio.create_task(whole(whisper.hear(0)))
        await whisper.held()
        closing = asyncio.create_task(whisper.transcriber.aclose())
        await whisper.until(lambda worker: worker._is_closing)
        whisper.decoder.gate.open()
        await closing
        with pytest.raises(ShuttingDown):
            await running
        with pytest.raises(ShuttingDown):
            whisper.hear(0)

    run(body)


def test_sounds_are_known_apart() -> None:
    """Of the script itself."""
    encoder = ScriptedEncoder()
    encoder.run({"input_features": np.stack([LogMel(NUM_MEL_BINS)(sound(name, 3.0)) for name in range(6)])})
    assert encoder.batches == [[0, 1, 2, 3, 4, 5]]
