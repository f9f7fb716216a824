"""Whisper's ONNX folder, as `docs/internals.md` has it: what it holds and whether all of it is there."""

import re
from collections.abc import Sequence
from pathlib import Path

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.ctranslate2_file import FILE as CTRANSLATE2_FILE
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.onnx_file import read_graph
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.whisper_config import FAMILY, WhisperConfig, read_whisper_config
from vmm_server.models.importers.whisper_decoder import FILE as DECODER
from vmm_server.models.importers.whisper_encoder import FILE as ENCODER

_DECODER_PORTS = ("input_ids", "position_ids", "attention_mask", "logit_positions", "logits", "cross_attention")
_CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
"""One of them is in every CTranslate2 folder; what is in it, tokenizer.json has too."""
_OPTIONAL = ("generation_config.json",)
_OTHER_LAYOUT = re.compile(r"(?:.*/)?(?:encoder|decoder)_model[^/]*\.onnx")


def ctranslate2_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a repository (relative, with `/`), those that its Whisper of CTranslate2 needs, weights last.

    Empty when there is none.
    """
    needed = ("config.json", "tokenizer.json", CTRANSLATE2_FILE)
    is_there = all(name in paths for name in needed) and any(name in paths for name in _VOCABULARIES)
    return [name for name in (*needed[:2], *_OPTIONAL, needed[2]) if name in paths] if is_there else []


def is_other_layout(path: str) -> bool:
    """Whether a file is a graph of optimum's export: of another form, without what the times of words need."""
    return _OTHER_LAYOUT.fullmatch(path) is not None


def check_layout(folder: Path) -> None:
    """Raise `UnsupportedArchitecture` for Whisper in optimum's layout, naming what to pull in its place."""
    path = folder / "config.json"
    config = read_json_object(path) if path.is_file() else {}
    if config.get("model_type") != FAMILY or not any(is_other_layout(found.name) for found in folder.rglob("*.onnx")):
        return
    name = config.get("_name_or_path")
    is_name = isinstance(name, str) and re.fullmatch(r"[\w-]+/[\w.-]+", name)
    raise UnsupportedArchitecture(
        f"{folder}: is Whisper in a layout that is not read",
        hint=f"pull its safetensors, hf:{name if is_name else 'openai/whisper-…'}",
    )


def is_whisper_folder(folder: Path) -> bool:
    """Whether a folder holds the two graphs, or one of them."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in (ENCODER, DECODER))


def describe_whisper(folder: Path) -> ImportedModel:
    """Read what the folder holds and check that it is all there.

    Raises `CorruptFile` naming the file that is missing, unreadable or too short, `UnsupportedArchitecture`.
    """
    config = read_whisper_config(folder)
    for name in _CONFIGS:
        if not (folder / name).is_file():
            raise CorruptFile(f"{folder / name}: is missing", hint="fetch the whole folder")
    (encoder, quantization), (decoder, _) = (count_onnx_weights(folder / name) for name in (ENCODER, DECODER))
    generation = read_json_object(folder / "generation_config.json")
    _check_ports(folder, config, generation.get("alignment_heads"))
    is_multilingual = generation.get("is_multilingual") is True
    count = encoder + decoder - config.decoder_layers * config.d_model  # zeros, where keys would have a bias
    return ImportedModel(
        family=FAMILY,
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=config.max_target_positions,
        embedding_length=config.d_model,
        capabilities=("transcription", "translation") if is_multilingual else ("transcription",),
        has_chat_template=False,
        license=None,
        name=None,
    )


def _check_ports(folder: Path, config: WhisperConfig, alignment_heads: object) -> None:
    """Raise `UnsupportedArchitecture` naming what an input or output of the graphs is not: other exporters' differ."""
    caches = [f"{kind}.{layer}" for layer in range(config.decoder_layers) for kind in ("key", "value")]
    cross = [f"cross_{each}" for each in caches]
    own = [f"{when}_{each}" for when in ("past", "present") for each in caches]
    for name, wanted in ((ENCODER, ["input_features", *cross]), (DECODER, [*_DECODER_PORTS, *cross, *own])):
        graph = read_graph(folder / name)
        found = {port.name for port in (*graph.inputs, *graph.outputs)}
        if missing := [each for each in wanted if each not in found]:
            raise UnsupportedArchitecture(
                f"{folder / name}: has no input or output {missing[0]}: it is another export of Whisper",
                hint="pull the model's safetensors",
            )
    shape = next(port.shape for port in graph.outputs if port.name == "cross_attention")
    num_heads = len(alignment_heads) if isinstance(alignment_heads, list) else 0
    if shape[1:2] != (num_heads,):
        raise CorruptFile(
            f"{folder / DECODER}: cross_attention is {shape}, generation_config.json has {num_heads} alignment_heads",
            hint="fetch the whole folder",
        )
