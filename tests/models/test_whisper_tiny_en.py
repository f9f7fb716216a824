"""The Whisper that is known by name: it computes what transformers does, and hears what is said."""

import asyncio
import json
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_server.audio.features import LogMel
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "tests" / "data" / "media"
SPOKEN = (
    " And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."
)
Feed = Mapping[str, NDArray[np.generic]]
Run = Callable[[Feed], dict[str, NDArray[np.generic]]]

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def model() -> InstalledModel:
    """Pulled, once, as `vmm pull whisper:tiny.en` does."""
    store = Store(ROOT / ".cache" / "vmm" / "models")
    registry = Registry(store, read_cards(()))

    async def pull() -> None:
        async for _ in Puller(store, registry).pull("whisper:tiny.en"):
            pass

    asyncio.run(pull())
    found = registry.resolve("whisper-1")
    assert isinstance(found, InstalledModel)
    return found


@pytest.fixture(scope="module")
def cross(model: InstalledModel) -> Feed:
    """What the encoder makes of the clip."""
    with wave.open(str(MEDIA / "0870.wav")) as clip:
        samples = np.frombuffer(clip.readframes(clip.getnframes()), np.int16).astype(np.float32) / 32768
    return _session(model.folder / "encoder.onnx")({"input_features": LogMel(80)(samples)[None]})


@pytest.fixture(scope="module")
def decode(model: InstalledModel) -> Run:
    return _session(model.folder / "decoder.onnx")


def _session(path: Path) -> Run:
    session = ort.InferenceSession(str(path))
    names = [each.name for each in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _feed(tokens: NDArray[np.int64], positions: NDArray[np.int64], past: Feed, cross: Feed) -> Feed:
    start = next(iter(past.values())).shape[2]
    return {
        "input_ids": tokens,
        "position_ids": np.arange(start, start + tokens.shape[1])[None],
        "attention_mask": np.ones((1, start + tokens.shape[1]), np.int64),
        "logit_positions": positions[None],
        **past,
        **cross,
    }


def _no_past() -> Feed:
    empty = np.zeros((1, 6, 0, 64), np.float32)
    return {f"past_{kind}.{layer}": empty for layer in range(4) for kind in ("key", "value")}


def test_it_is_installed_as_its_card_says(model: InstalledModel) -> None:
    assert (model.name, model.family, model.format) == ("whisper:tiny.en", "whisper", "ctranslate2")
    assert (model.context_length, model.quantization, model.capabilities) == (448, "F16", ("transcription",))
    generation = json.loads((model.folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["decoder_start_token_id"]) == (50256, 50257)
    assert (generation["no_timestamps_token_id"], generation["is_multilingual"]) == (50362, False)
    assert len(generation["suppress_tokens"]) == 90


def test_logits_and_attention_are_those_of_transformers(cross: Feed, decode: Run) -> None:
    """tiny_en.npz is made by tests/data/whisper/make.py (torch 2.13.0, transformers 5.23.0)."""
    expected = np.load(ROOT / "tests" / "data" / "whisper" / "tiny_en.npz")
    places = expected["places"]
    found = decode(_feed(expected["tokens"], places, _no_past(), cross))
    logits = np.take_along_axis(found["logits"][0], expected["top"], axis=-1)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-3)
    shares = found["cross_attention"][0][:, places, : expected["cross_attention"].shape[2]]
    np.testing.assert_allclose(shares, expected["cross_attention"], rtol=0, atol=1e-3)


def test_the_likeliest_tokens_are_what_was_said(model: InstalledModel, cross: Feed, decode: Run) -> None:
    generation = json.loads((model.folder / "generation_config.json").read_text())
    tokens = [generation["decoder_start_token_id"], generation["no_timestamps_token_id"]]
    said: list[int] = []
    past, given = _no_past(), tokens
    while len(said) < 40:
        found = decode(_feed(np.array([given]), np.array([len(given) - 1]), past, cross))
        logits = found["logits"][0, 0].copy()
        logits[generation["suppress_tokens"]] = -np.inf
        token = int(logits.argmax())
        if token == generation["eos_token_id"]:
            break
        said.append(token)
        past = {name.replace("present", "past"): value for name, value in found.items() if name.startswith("present")}
        given = [token]
    assert Tokenizer.from_file(str(model.folder / "tokenizer.json")).decode(said) == SPOKEN
