"""What Whisper's graphs compute, on ONNX Runtime and on OpenVINO."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
from numpy.typing import NDArray

from vmm_server.models.importers.whisper import import_whisper

from .tiny_whisper import ALIGNMENT_HEADS, SIZES, make_input, make_weights, write_transformers

pytestmark = pytest.mark.runtime

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]
DATA = Path(__file__).resolve().parents[2] / "data" / "whisper"
HEADS, LAYERS = SIZES["decoder_attention_heads"], SIZES["decoder_layers"]
CACHES = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("key", "value")]


def _onnxruntime(path: Path) -> Run:
    session = ort.InferenceSession(str(path))
    names = [each.name for each in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _openvino(path: Path) -> Run:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [name for output in compiled.outputs for name in output.get_names()]

    def run(feed: Arrays) -> dict[str, Array]:
        found = compiled(feed)
        return {name: found[name].copy() for name in names}

    return run


@dataclass(frozen=True)
class Whisper:
    encode: Run
    decode: Run

    def cross(self, features: NDArray[np.float32]) -> dict[str, Array]:
        return self.encode({"input_features": features})

    def step(
        self, tokens: NDArray[np.int64], lengths: Sequence[int], cross: Arrays, past: Arrays | None = None
    ) -> dict[str, Array]:
        """Rows whose last `lengths` tokens, those of the past included, are there; logits of every position."""
        batch, length = tokens.shape
        if past is None:
            empty = np.zeros((batch, HEADS, 0, SIZES["d_model"] // HEADS), np.float32)
            past = {f"past_{name}": empty for name in CACHES}
        total = past["past_key.0"].shape[2] + length
        columns = np.arange(total)
        starts = total - np.asarray(lengths)[:, None]
        return self.decode(
            {
                "input_ids": tokens,
                "position_ids": np.maximum(columns[None, total - length :] - starts, 0),
                "attention_mask": (columns[None] >= starts).astype(np.int64),
                "logit_positions": np.tile(np.arange(length), (batch, 1)),
                **past,
                **{name: value for name, value in cross.items() if name.startswith("cross_")},
            }
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whisper")
    target = root / "out"
    target.mkdir()
    import_whisper(write_transformers(root / "source", make_weights()), target)
    return target


@pytest.fixture(scope="module", params=[_onnxruntime, _openvino], ids=["onnxruntime", "openvino"])
def whisper(request: pytest.FixtureRequest, folder: Path) -> Whisper:
    return Whisper(request.param(folder / "encoder.onnx"), request.param(folder / "decoder.onnx"))


def past_of(outputs: Arrays) -> dict[str, Array]:
    return {f"past_{name}": outputs[f"present_{name}"] for name in CACHES}


def close(found: Array, expected: Array, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_it_computes_what_transformers_does(whisper: Whisper) -> None:
    """tiny.npz is made by tests/data/whisper/make.py (torch 2.13.0, transformers 5.23.0)."""
    expected = np.load(DATA / "tiny.npz")
    features, tokens = make_input()
    found = whisper.step(tokens, [9, 9], whisper.cross(features))
    close(found["logits"][:, :, ::25], expected["logits"], 1e-4)
    for index, (layer, head) in enumerate(ALIGNMENT_HEADS):
        close(found["cross_attention"][:, index], expected["cross_attention"][layer][:, head])


def test_shapes_are_those_of_the_documented_folder(whisper: Whisper) -> None:
    features, tokens = make_input()
    cross = whisper.cross(features)
    size, frames = SIZES["d_model"] // HEADS, SIZES["max_source_positions"]
    assert {name: value.shape for name, value in cross.items()} == {
        f"cross_{name}": (2, HEADS, frames, size) for name in CACHES
    }
    found = whisper.step(tokens, [9, 9], cross)
    assert {name: value.shape for name, value in found.items()} == {
        "logits": (2, 9, SIZES["vocab_size"]),
        "cross_attention": (2, len(ALIGNMENT_HEADS), 9, frames),
        **{f"present_{name}": (2, HEADS, 9, size) for name in CACHES},
    }


def test_steps_with_a_cache_are_one_whole_pass(whisper: Whisper) -> None:
    features, tokens = make_input()
    cross = whisper.cross(features)
    whole = whisper.step(tokens, [9, 9], cross)
    past: dict[str, Array] | None = None
    for start, stop in ((0, 4), (4, 5), (5, 8), (8, 9)):
        found = whisper.step(tokens[:, start:stop], [stop, stop], cross, past)
        close(found["logits"], whole["logits"][:, start:stop])
        close(found["cross_attention"], whole["cross_attention"][:, :, start:stop])
        past = past_of(found)
    close(found["present_value.1"], whole["present_value.1"])


def test_rows_of_any_lengths_share_a_step(whisper: Whisper) -> None:
    """Padded on the left, and joined by a row that is all padding: each is as if it were alone."""
    features, tokens = make_input()
    lengths = [9, 3, 1, 6, 0]
    rows = np.array([[7] * (9 - length) + list(tokens[index % 2][:length]) for index, length in enumerate(lengths)])
    cross = whisper.cross(features[[index % 2 for index in range(len(lengths))]])
    together = whisper.step(rows, lengths, cross)
    assert all(np.isfinite(value).all() for value in together.values())
    again = whisper.step(np.full((5, 1), 5), [length + 1 for length in lengths], cross, past_of(together))
    assert all(np.isfinite(value).all() for value in again.values())
    for index, length in enumerate(lengths):
        own = {name: value[[index]] for name, value in cross.items()}
        past = None
        if length:
            alone = whisper.step(rows[[index], 9 - length :], [length], own)
            close(together["logits"][index, 9 - length :], alone["logits"][0])
            close(together["cross_attention"][index, :, 9 - length :], alone["cross_attention"][0])
            past = past_of(alone)
        close(again["logits"][[index]], whisper.step(np.array([[5]]), [length + 1], own, past)["logits"])


def test_only_the_wanted_positions_reach_the_vocabulary(whisper: Whisper) -> None:
    features, tokens = make_input()
    cross = whisper.cross(features)
    whole = whisper.step(tokens, [9, 9], cross)
    places = np.array([[8, 0], [3, 3]])
    past = np.zeros((2, HEADS, 0, SIZES["d_model"] // HEADS), np.float32)
    found = whisper.decode(
        {
            "input_ids": tokens,
            "position_ids": np.tile(np.arange(9), (2, 1)),
            "attention_mask": np.ones((2, 9), np.int64),
            "logit_positions": places,
            **{f"past_{name}": past for name in CACHES},
            **cross,
        }
    )
    close(found["logits"], np.take_along_axis(whole["logits"], places[:, :, None], axis=1))
