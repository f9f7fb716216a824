"""silero-vad: told from other ONNX files, run in blocks, and right about where somebody speaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.fake_audio import FakeVadSession

from vmm_server.audio.files import open_audio
from vmm_server.audio.transcript import SAMPLE_RATE
from vmm_server.audio.vad import FRAME_SAMPLES, SpeechOptions, SpeechSpans
from vmm_server.models.names import ModelName
from vmm_server.models.pull import Puller
from vmm_server.models.ready import Sampled
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.vad import BLOCK_SAMPLES, SILENCE, Block, ReadyVad, hear_block, load_vad
from vmm_server.settings import Settings

from .importers.onnx_graphs import make_graph, write_graph

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "vmm"
SPEECH = ROOT / "tests" / "data" / "media" / "0930.wav"


def pull(store: Store, reference: str) -> InstalledModel:
    registry = Registry(store, read_cards(()))

    async def main() -> None:
        async for _ in Puller(store, registry).pull(reference):
            pass

    asyncio.run(main())
    return registry.resolve(reference) if not reference.startswith("file:") else store.installed()[0]


def test_its_file_is_told_from_a_pictures(tmp_path: Path) -> None:
    graph = make_graph(
        {"speech_probs": ["n"], "hn": [1, 1, 128], "cn": [1, 1, 128]},
        {"input": ["n", 576], "h": [1, 1, 128], "c": [1, 1, 128]},
    )
    path = write_graph(tmp_path / "vad.onnx", graph)
    model = pull(Store(tmp_path / "models"), f"file:{path}")
    assert model.capabilities == ("vad",)
    assert model.family == "silero-vad"
    assert ModelName.parse(model.name).model == "vad"


def test_blocks_carry_their_context_and_their_states_on() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 3 * FRAME_SAMPLES - 100).astype(np.float32)
    frames: list[Any] = []

    class Recorder(FakeVadSession):
        def run(self, feeds: Any) -> Any:
            frames.append(feeds["input"])
            return super().run(feeds)

    first = hear_block(Recorder(), Block(samples[: 2 * FRAME_SAMPLES]))
    second = hear_block(Recorder(), Block(samples[2 * FRAME_SAMPLES :], first.after))
    assert [len(first.probabilities), len(second.probabilities)] == [2, 1]
    padded = np.concatenate([np.zeros(64, np.float32), samples, np.zeros(100, np.float32)])
    expected = [padded[start : start + 576] for start in range(0, 3 * FRAME_SAMPLES, FRAME_SAMPLES)]
    np.testing.assert_array_equal(np.concatenate(frames), expected)
    assert first.after.hidden[0, 0, 0] == 2
    assert second.after.hidden[0, 0, 0] == 3
    assert not SILENCE.hidden.any()


@pytest.fixture(scope="session")
def silero() -> InstalledModel:
    return pull(Store(CACHE / "models"), "silero-vad")


@asynccontextmanager
async def loaded(model: InstalledModel, adapter: str, home: Path) -> AsyncIterator[ReadyVad]:
    ready = load_vad(model, Placement(adapter, "CPU"), Settings.model_validate({"home": home}))
    try:
        yield ready
    finally:
        await ready.aclose()


@pytest.mark.runtime
def test_it_can_be_timed(silero: InstalledModel, tmp_path: Path) -> None:
    async def main() -> None:
        async with loaded(silero, "openvino", tmp_path) as ready:
            assert isinstance(ready, Sampled)
            await ready.try_once()
            assert ready.stats.computed_size == BLOCK_SAMPLES // SAMPLE_RATE

    asyncio.run(main())


@pytest.mark.runtime
@pytest.mark.parametrize("adapter", ["openvino", "onnxruntime"])
def test_it_knows_speech_from_silence_and_noise(silero: InstalledModel, adapter: str, tmp_path: Path) -> None:
    """Two seconds of silence, 3.29 s of speech, five of noise, the speech again, one of silence."""
    reader = open_audio(SPEECH)
    speech = reader.read(10 * SAMPLE_RATE)
    reader.close()
    noise = np.random.default_rng(0).normal(0, 0.02, 5 * SAMPLE_RATE)
    silence = np.zeros(2 * SAMPLE_RATE)
    parts: list[Any] = [silence, speech, noise, speech, silence[:SAMPLE_RATE]]
    whole = np.concatenate(parts).astype(np.float32)

    async def main() -> tuple[list[float], list[float]]:
        async with loaded(silero, adapter, tmp_path) as ready:
            return await probabilities(ready, whole, BLOCK_SAMPLES), await probabilities(
                ready, whole, 7 * FRAME_SAMPLES
            )

    large, small = asyncio.run(main())
    np.testing.assert_allclose(large, small, atol=1e-4)
    spans = SpeechSpans(SpeechOptions(padding_s=0.1, min_silence_s=0.5))
    spans.add(large)
    found = spans.found(len(whole) / SAMPLE_RATE)
    said_s = len(speech) / SAMPLE_RATE
    begins = (2.0, 2.0 + said_s + 5.0)
    assert len(found) == 2
    for (start_s, end_s), begin_s in zip(found, begins, strict=True):
        assert begin_s - 0.2 < start_s < begin_s + 0.5
        assert begin_s + said_s - 0.9 < end_s < begin_s + said_s + 0.2


async def probabilities(ready: ReadyVad, samples: Any, block: int) -> list[float]:
    found: list[float] = []
    before = SILENCE
    for start in range(0, len(samples), block):
        spoken = await ready.hear(Block(samples[start : start + block], before))
        found += spoken.probabilities.tolist()
        before = spoken.after
    return found
