"""Kokoro's ONNX folder, which is used as it is: a graph, its letters and its voices.

The layout is that of onnx-community/Kokoro-82M-v1.0-ONNX: config.json, tokenizer.json, model.onnx or onnx/model.onnx,
and voices/NAME.bin, each little-endian float32 `[n, 1, 256]`: a voice's style for texts of 1 to n letters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.encoder_folder import GRAPHS, find_graph
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_model import open_onnx
from vmm_server.models.importers.onnx_weights import count_onnx_weights

VOICES = "voices"
STYLE_LENGTH = 256
"""Numbers of a style."""
STYLE_BYTES = 4 * STYLE_LENGTH
MAX_TOKENS = 510
"""Letters that the model reads at once; it was trained on 512 positions, of which padding takes the first and last."""
PAD = "$"
"""The letter before and after every text."""
_VOICE = re.compile(rf"{VOICES}/[A-Za-z0-9_-]+\.bin")
_SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class KokoroInputs:
    """What a Kokoro graph calls its inputs; exporters do not agree on the first."""

    token_ids: str
    """int64 `[1, n]`."""
    style: str
    """float32 `[1, 256]`."""
    speed: str
    """float32 `[1]`."""


def is_kokoro(folder: Path) -> bool:
    """Whether a folder with a graph is one of Kokoro's."""
    return any((folder / VOICES).glob("*.bin")) and find_graph(folder) is not None


def kokoro_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a repository (relative, with `/`), those that are needed; empty when it is no Kokoro."""
    voices = [path for path in paths if _VOICE.fullmatch(path)]
    graph = next((path for path in GRAPHS if path in paths), None)
    if not voices or graph is None or not {"config.json", "tokenizer.json"} <= {*paths}:
        return []
    weights = [path for path in paths if path in (graph, f"{graph}.data", f"{graph}_data")]
    return [path for path in _SMALL if path in paths] + voices + weights


def describe_kokoro(folder: Path) -> ImportedModel:
    """Read what the folder holds and check that it is all there.

    Raises `CorruptFile`, `UnsupportedArchitecture`, each naming the file.
    """
    graph = find_graph(folder)
    if graph is None:
        raise CorruptFile(f"{folder / GRAPHS[0]}: is missing", hint="fetch the whole folder")
    read_inputs(graph)
    read_letters(folder)
    for voice in read_voices(folder).values():
        size_bytes = voice.stat().st_size
        if not size_bytes or size_bytes % STYLE_BYTES:
            raise CorruptFile(
                f"{voice}: {size_bytes} bytes are no whole styles of {STYLE_BYTES}", hint="fetch it again"
            )
    count, quantization = count_onnx_weights(graph)
    return ImportedModel(
        family="kokoro",
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=MAX_TOKENS,
        embedding_length=None,
        capabilities=("speech",),
        adapter="onnxruntime",  # each sentence has a length of its own, for which OpenVINO prepares itself anew
        has_chat_template=False,
        license=None,
        name=None,
    )


def read_voices(folder: Path) -> dict[str, Path]:
    """A folder's voices by name, sorted."""
    return {path.stem: path for path in sorted((folder / VOICES).glob("*.bin"))}


def read_letters(folder: Path) -> dict[str, int]:
    """The letters that the model reads, and their token ids. Raises `CorruptFile`, `UnsupportedArchitecture`."""
    path = folder / "tokenizer.json"
    model = read_json_object(path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or PAD not in vocab or not all(isinstance(each, int) for each in vocab.values()):
        raise UnsupportedArchitecture(f"{path}: its vocabulary is not one of phonemes, with {PAD!r} among them")
    return {letter: token_id for letter, token_id in vocab.items() if len(letter) == 1}


def read_inputs(graph: Path) -> KokoroInputs:
    """The names of a graph's inputs. Raises `UnsupportedArchitecture`."""
    model = open_onnx(graph).graph
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in model.input}
    token_ids = next((name for name in ("input_ids", "tokens") if name in shapes), None)
    if token_ids is None or shapes != {token_ids: 2, "style": 2, "speed": 1} or len(model.output) != 1:
        names = ", ".join(sorted(shapes))
        raise UnsupportedArchitecture(f"{graph}: has the inputs {names}; Kokoro's are input_ids, style and speed")
    return KokoroInputs(token_ids, "style", "speed")
