"""A model in Kokoro's layout whose sound can be read: each letter is a plateau of its own height."""

import json
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import TensorSpec
from vmm_server.models.importers.kokoro import STYLE_LENGTH
from vmm_server.models.store import InstalledModel

LETTERS = {"$": 0} | {letter: index + 1 for index, letter in enumerate(" .,!?" + string.ascii_letters + "ʌɹəɔ")}
SAMPLES_A_LETTER = 600
"""At speed 1."""
VOICES = {"ef_low": 0.0, "em_high": 0.25, "af_nova": 0.0, "bf_twin": 0.0, "am_twin": 0.0, "jf_alpha": 0.0}
"""What each adds to all samples. In Spanish eSpeak's letters stay as they are."""


def height(letter: str) -> float:
    """Of a letter's plateau: 0 to 0.5."""
    return LETTERS[letter] / 128


def write_kokoro(folder: Path) -> None:
    """The folder, with a graph that ONNX Runtime runs: samples [1, (letters + 2) * 600 / speed]."""
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "style_text_to_speech_2"}')
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": LETTERS}}))
    for name, shift in VOICES.items():
        np.full((20, 1, STYLE_LENGTH), shift, "<f4").tofile(folder / "voices" / f"{name}.bin")
    onnx.save(_graph(), folder / "model.onnx")


def _graph() -> onnx.ModelProto:
    heights = (np.arange(len(LETTERS), dtype=np.float32) / 128)[:, None]
    constants: dict[str, NDArray[Any]] = {
        "heights": heights,
        "samples": np.array([SAMPLES_A_LETTER], np.float32),
        "one": np.array([1], np.int64),
        "row": np.array([1, -1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["heights", "input_ids"], ["plateaus"]),  # [1, n, 1]
        helper.make_node("ReduceMean", ["style"], ["shift"], keepdims=0),
        helper.make_node("Add", ["plateaus", "shift"], ["shifted"]),
        helper.make_node("Div", ["samples", "speed"], ["length"]),
        helper.make_node("Cast", ["length"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Concat", ["one", "one", "whole"], ["shape"], axis=0),
        helper.make_node("Expand", ["shifted", "shape"], ["wide"]),
        helper.make_node("Reshape", ["wide", "row"], ["waveform"]),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "length"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, STYLE_LENGTH]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "kokoro", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class KokoroSession:
    """A `Session` that computes what the graph does."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device = "CPU"
    provider = "none"
    memory_bytes = 1000

    def __init__(self) -> None:
        self.said: list[str] = []
        """Everything that was spoken, without its padding."""
        self.is_closed = False

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session`."""
        token_ids, names = feeds["input_ids"][0], {value: key for key, value in LETTERS.items()}
        self.said.append("".join(names[int(each)] for each in token_ids[1:-1]))
        heights = token_ids.astype(np.float32) / 128 + feeds["style"].mean()
        return {"waveform": np.repeat(heights, int(SAMPLES_A_LETTER / float(feeds["speed"][0])))[None]}

    def close(self) -> None:
        """See `Session`."""
        self.is_closed = True


def spell(words: str, language: str) -> str:
    """A `Phonemizer` that says each letter."""
    return words


def kokoro_model(folder: Path) -> InstalledModel:
    """As it is installed, under `tiny-kokoro:latest`."""
    return InstalledModel(
        name="tiny-kokoro:latest",
        aliases=(),
        digest="a" * 64,
        size_bytes=1000,
        modified_at=datetime(2026, 11, 22, tzinfo=UTC),
        adapter="onnxruntime",
        folder=folder,
        format="onnx",
        family="kokoro",
        parameter_size="1K",
        quantization="F32",
        context_length=510,
        embedding_length=None,
        capabilities=("speech",),
        license="Apache-2.0",
        title="Tiny Kokoro",
        system=None,
        sampling=SamplingDefaults(),
        source="file:tiny-kokoro",
    )
