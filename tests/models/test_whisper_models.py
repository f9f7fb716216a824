"""Whisper folders that are loaded: any two sounds in one batch, and what tiny.en hears of people."""

import asyncio
import json
import wave
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmm_server.audio.transcript import Samples, Segment, TranscriptionOptions
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.importers.whisper import import_whisper
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.whisper import ReadyTranscriber, load_transcriber

from .importers.tiny_whisper import SIZES, make_weights, write_transformers

pytestmark = pytest.mark.runtime

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "tests" / "data" / "media"
SPOKEN: dict[str, str] = json.loads((MEDIA / "transcripts.json").read_text())
ADAPTERS = ["onnxruntime", "openvino"]
MARKS = {"dashwood", "himself", "forward"}
"""A word of each clip."""
TIMEOUT_S = 300


class Reader:
    """A sound in memory."""

    duration_s = None

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._next = 0

    def read(self, num_samples: int) -> Samples:
        self._next += num_samples
        return self._samples[self._next - num_samples : self._next]

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def tiny_en() -> InstalledModel:
    """Pulled, once, as `vmm pull whisper:tiny.en` does."""
    store = Store(ROOT / ".cache" / "vmm" / "models")
    registry = Registry(store, read_cards(()))

    async def pull() -> None:
        async for _ in Puller(store, registry).pull("whisper:tiny.en"):
            pass

    asyncio.run(pull())
    return registry.resolve("whisper:tiny.en")


@pytest.fixture(scope="module")
def tiny_random(tiny_en: InstalledModel, tmp_path_factory: pytest.TempPathFactory) -> InstalledModel:
    """A multilingual one of random weights, that hears 30 s as all others do."""
    root = tmp_path_factory.mktemp("whisper")
    weights = make_weights()
    frames = np.random.default_rng(3).normal(0, 0.4, (1500, SIZES["d_model"])).astype(np.float32)
    source = write_transformers(
        root / "source", weights | {"encoder.embed_positions.weight": frames}, max_source_positions=1500
    )
    (root / "out").mkdir()
    import_whisper(source, root / "out")
    return replace(tiny_en, name="tiny-random", folder=root / "out")


Body = Callable[[ReadyTranscriber], Coroutine[Any, Any, Any]]


def with_loaded(model: InstalledModel, adapter: str, settings: Any, body: Body) -> None:
    async def bounded() -> None:
        ready = load_transcriber(model, Placement(adapter, "CPU"), settings(num_threads=1))
        try:
            await asyncio.wait_for(body(ready), TIMEOUT_S)
        finally:
            await ready.aclose()

    asyncio.run(bounded())


async def heard(ready: ReadyTranscriber, samples: Samples, **options: Any) -> list[Segment]:
    transcript = ready.transcribe(Reader(samples), TranscriptionOptions(**options))
    return [segment async for segment in transcript]


def clip(name: str) -> Samples:
    with wave.open(str(MEDIA / name)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def words_of(segments: list[Segment]) -> list[str]:
    """As `transcripts.json` writes them."""
    plain = "".join(segment.text for segment in segments).lower().replace("mr.", "mister").replace("10", "ten")
    return "".join(character for character in plain if character.isalpha() or character == " ").split()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_five_sounds_in_one_batch_are_heard_as_if_each_were_alone(
    tiny_random: InstalledModel, adapter: str, settings: Any
) -> None:
    """Of any lengths, with and without prompt and words, at two temperatures."""
    random = np.random.default_rng(5)
    sounds = [
        (random.standard_normal(round(16000 * seconds)) * 0.1).astype(np.float32) for seconds in (2, 9, 31, 45, 30)
    ]
    asked: list[dict[str, Any]] = [
        {"temperatures": (0.0,)},
        {"temperatures": (0.0, 1.0), "prompt": "w3 w4 w5"},
        {"temperatures": (1.0,), "language": "de"},
        {"temperatures": (0.0,), "word_timestamps": True, "condition_on_previous_text": True},
        {"temperatures": (0.5,), "task": "translate"},
    ]

    async def body(ready: ReadyTranscriber) -> None:
        assert ready.is_multilingual
        assert ready.languages == ("en", "de")
        alone = [await heard(ready, sound, **options) for sound, options in zip(sounds, asked, strict=True)]
        together = await asyncio.gather(
            *(heard(ready, sound, **options) for sound, options in zip(sounds, asked, strict=True))
        )
        assert any(alone)
        for one, other in zip(together, alone, strict=True):
            assert [(each.tokens, each.text, each.start) for each in one] == [
                (each.tokens, each.text, each.start) for each in other
            ]

    with_loaded(tiny_random, adapter, settings, body)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_tiny_en_hears_every_word_and_when_it_was_said(tiny_en: InstalledModel, adapter: str, settings: Any) -> None:
    async def body(ready: ReadyTranscriber) -> None:
        assert ready.languages == ("en",)
        names = list(SPOKEN)
        found = await asyncio.gather(*(heard(ready, clip(name), word_timestamps=True) for name in names))
        for name, segments in zip(names, found, strict=True):
            assert words_of(segments) == SPOKEN[name].split()
            words = [word for segment in segments for word in segment.words or ()]
            assert "".join(word.word for word in words) == "".join(segment.text for segment in segments)
            assert all(before.end <= after.start for before, after in pairwise(words))
            assert all(0 <= word.start <= word.end <= len(clip(name)) / 16000 for word in words)

    with_loaded(tiny_en, adapter, settings, body)


def test_tiny_en_loses_and_doubles_nothing_where_windows_meet(tiny_en: InstalledModel, settings: Any) -> None:
    """One minute and a half of clips with pauses; ten minutes went as well."""
    random = np.random.default_rng(0)
    order = list(SPOKEN) * 6
    pauses = [np.zeros(round(16000 * seconds), np.float32) for seconds in random.uniform(0.3, 1.2, len(order))]
    samples = np.concatenate([part for pair in zip(map(clip, order), pauses, strict=True) for part in pair])
    said = [word for name in order for word in SPOKEN[name].split()]

    async def body(ready: ReadyTranscriber) -> None:
        segments = await heard(ready, samples)
        assert len({segment.seek for segment in segments}) >= 3
        found = words_of(segments)
        sentences = [word for word in found if word in MARKS]
        assert sentences == [word for word in said if word in MARKS]
        assert abs(len(found) - len(said)) <= 2
        assert len({*found} - {*said}) <= 3  # it spells a word in its own way now and then
        assert all(before.end <= after.start for before, after in pairwise(segments))

    with_loaded(tiny_en, "onnxruntime", settings, body)


@pytest.mark.parametrize("seconds", [0, 1 / 16000, 0.05, 5, 40])
def test_tiny_en_hears_nothing_in_silence(tiny_en: InstalledModel, settings: Any, seconds: float) -> None:
    """Nor in the noise of a quiet room."""
    noise = np.random.default_rng(1).standard_normal(round(16000 * seconds)).astype(np.float32)

    async def body(ready: ReadyTranscriber) -> None:
        assert await heard(ready, 0.0 * noise) == []
        assert await heard(ready, 3e-4 * noise) == []

    with_loaded(tiny_en, "onnxruntime", settings, body)


def test_a_folder_that_is_damaged_is_named(tiny_random: InstalledModel, tmp_path: Path, settings: Any) -> None:
    for path in tiny_random.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text("{")
    broken = replace(tiny_random, folder=tmp_path)
    with pytest.raises(ModelLoadFailed, match="tiny-random"):
        load_transcriber(broken, Placement("onnxruntime", "CPU"), settings())
