"""Models that hear what tests make: a second of sound is a segment that says which one it was; silence is nothing."""

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from vmm_adapters.types import TensorSpec
from vmm_server.audio.transcript import SAMPLE_RATE, AudioReader, Segment, TranscriptionOptions, Word
from vmm_server.engine.batcher import Batcher
from vmm_server.engine.transcriber import TranscriberStats
from vmm_server.errors import UnsupportedParameter
from vmm_server.models.ready import Ready
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.vad import Block, ReadyVad, Spoken, hear_block
from vmm_server.models.whisper import ReadyTranscriber

LOUD = 0.01
"""Mean level of what counts as sound."""
OnSegment = Callable[[Segment], None]
"""Told of every segment before it is given, in a thread; it may block or raise."""


def loud(samples: NDArray[np.float32]) -> bool:
    return len(samples) > 0 and float(np.abs(samples).mean()) > LOUD


def sound(*seconds: int, rate: int = SAMPLE_RATE, format: str = "WAV") -> bytes:
    """A tone where a second is 1, silence where it is 0."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate([tone * second for second in seconds]), rate, format=format)
    return buffer.getvalue()


class FakeTranscript:
    """Reads a second at a time."""

    language: str | None = None
    queued_s: float | None = None

    def __init__(self, reader: AudioReader, options: TranscriptionOptions, on_segment: OnSegment | None) -> None:
        self._reader = reader
        self._options = options
        self._on_segment = on_segment
        self._num_read = 0
        self.num_tokens = 0
        self.duration_s: float | None = reader.duration_s

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        self.queued_s = 0.25
        while True:
            samples = await asyncio.to_thread(self._reader.read, SAMPLE_RATE)
            if not len(samples):
                self.duration_s = self._num_read / SAMPLE_RATE
                raise StopAsyncIteration
            start, end = self._num_read / SAMPLE_RATE, (self._num_read + len(samples)) / SAMPLE_RATE
            self._num_read += len(samples)
            if not loud(samples) or not self._hears(start):
                continue
            self.language = self._options.language or "en"
            segment = self._segment(start, end)
            if self._on_segment is not None:
                await asyncio.to_thread(self._on_segment, segment)
            self.num_tokens += len(segment.tokens)
            return segment

    async def aclose(self) -> None:
        await asyncio.to_thread(self._reader.close)

    def _hears(self, start: float) -> bool:
        clips = self._options.clips
        return clips is None or any(begin < start + 1 and start < end for begin, end in clips)

    def _segment(self, start: float, end: float) -> Segment:
        word = "segundo" if self._options.language == "es" and self._options.task == "transcribe" else "second"
        words = (f" {word}", f" {int(start)}.")
        timed = tuple(
            Word(text, start + at * (end - start) / 2, start + (at + 1) * (end - start) / 2, 0.9)
            for at, text in enumerate(words)
        )
        return Segment(
            id=self.num_tokens // 2,
            seek=int(start * 100),
            start=start,
            end=end,
            text="".join(words),
            tokens=(7, int(start)),
            temperature=self._options.temperatures[0],
            avg_logprob=-0.25,
            compression_ratio=0.8,
            no_speech_prob=0.125,
            words=timed if self._options.word_timestamps else None,
        )


class FakeTranscriber(ReadyTranscriber):
    """Says `second 0.` `second 1.` …; one that does not translate knows English alone."""

    __setattr__ = object.__setattr__  # nothing of what is frozen in a real one is here

    def __init__(self, model: InstalledModel, placement: Placement, on_segment: OnSegment | None) -> None:
        self._where = placement
        self._english_only = "translation" not in model.capabilities
        self._on_segment = on_segment
        self.asked: list[TranscriptionOptions] = []

    @property
    def placement(self) -> Placement:
        return self._where

    @property
    def context_length(self) -> int:
        return 448

    @property
    def memory_bytes(self) -> int:
        return 1000

    @property
    def load(self) -> Load:
        return NO_LOAD

    @property
    def failure(self) -> str | None:
        return None

    @property
    def stats(self) -> TranscriberStats:
        return TranscriberStats(0, 0, 0, 0)

    def transcribe(self, reader: AudioReader, options: TranscriptionOptions) -> Any:
        if self._english_only and options.language not in (None, "en"):
            raise UnsupportedParameter("language: this model knows English alone", param="language")
        self.asked.append(options)
        return FakeTranscript(reader, options, self._on_segment)

    async def aclose(self) -> None:
        """Nothing to close."""


class FakeVadSession:
    """silero-vad's graph: a frame that is loud is speech; the states count frames."""

    def __init__(self) -> None:
        float32 = np.dtype(np.float32)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("input", float32, (None, 576)),
            TensorSpec("h", float32, (1, 1, 128)),
            TensorSpec("c", float32, (1, 1, 128)),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("speech_probs", float32, (None,)),
            TensorSpec("hn", float32, (1, 1, 128)),
            TensorSpec("cn", float32, (1, 1, 128)),
        )
        self.device = "CPU"
        self.provider = "fake"
        self.memory_bytes = 1000

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        frames = feeds["input"]
        speech = (np.abs(frames[:, 64:]).mean(axis=1) > LOUD).astype(np.float32)
        return {"speech_probs": speech, "hn": feeds["h"] + len(frames), "cn": feeds["c"] + frames[0, 0]}

    def close(self) -> None:
        """Nothing to close."""


def fake_ear(model: InstalledModel, placement: Placement, on_segment: OnSegment | None) -> Ready | None:
    """What a model of these is, in memory; `None`: it hears nothing."""
    if "transcription" in model.capabilities:
        return FakeTranscriber(model, placement, on_segment)
    if "vad" not in model.capabilities:
        return None
    session = FakeVadSession()
    batcher: Batcher[Block, Spoken] = Batcher(
        lambda blocks: [hear_block(session, block) for block in blocks], size=lambda _: 1, close=session.close
    )
    return ReadyVad(batcher, placement, session.memory_bytes)


def install_ears(store: Store, like: InstalledModel, *, vad: bool = True) -> None:
    """`whisper:tiny.en` knows English alone, `whisper:small` all languages; and what finds speech."""
    models: dict[str, tuple[str, ...]] = {
        "whisper:tiny.en": ("transcription",),
        "whisper:small": ("transcription", "translation"),
    }
    if vad:
        models["silero-vad:latest"] = ("vad",)
    for name, capabilities in models.items():
        digest = name.encode().hex().ljust(64, "0")
        store.install(
            replace(like, name=name, aliases=(), digest=digest, weights="", capabilities=capabilities, embedding=None)
        )
