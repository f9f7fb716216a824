"""What a file or folder on disk is, and what a model folder that needs no conversion holds.

Four kinds of folder are used as they are: onnxruntime-genai's (genai_config.json beside the ONNX file), OpenVINO IR
(openvino_model.xml and .bin beside config.json), an encoder's (see `encoder_folder`) and those of models that look at
pictures (see `vision_folder`). Sizes and extents are checked, so that a half-fetched folder is refused when it is
pulled and not when it is first run.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.clip_folder import describe_clip, find_clip_graphs
from vmm_server.models.importers.ctranslate2_file import FILE as CTRANSLATE2_FILE
from vmm_server.models.importers.ctranslate2_file import is_ctranslate2
from vmm_server.models.importers.encoder_folder import describe_encoder, find_graph
from vmm_server.models.importers.gguf_reader import MAGIC
from vmm_server.models.importers.imported import ImportedModel, guess_capabilities, parameter_size
from vmm_server.models.importers.json_files import positive, read_json_object
from vmm_server.models.importers.kokoro import describe_kokoro, is_kokoro
from vmm_server.models.importers.onnx_file import read_graph, starts_like_onnx
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.pickled_weights import is_pickled
from vmm_server.models.importers.safetensors_weights import FILE, INDEX
from vmm_server.models.importers.vad import describe_vad, is_vad
from vmm_server.models.importers.vision_folder import describe_vision, find_vision_graph
from vmm_server.models.importers.whisper_folder import check_layout, describe_whisper, is_whisper_folder

Format = Literal["gguf", "onnx", "openvino", "safetensors", "onnx-file", "ctranslate2", "pickled"]
"""`safetensors` is a folder of transformers, `ctranslate2` one of Whisper, `onnx-file` one file of a model that looks
at pictures, `pickled` one of PyTorch that a card promises; they and `gguf` have to be imported."""

_HINT = (
    "name a GGUF or ONNX file, a folder of safetensors, an onnxruntime-genai folder, an OpenVINO IR folder or an ONNX "
    "folder of an encoder or of a model that looks at pictures"
)
_SAFETENSORS = (FILE, INDEX)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_IR_FILES = ("openvino_model.xml", "openvino_language_model.xml")
_IR_VISION = "openvino_vision_embeddings_model.xml"
_FAMILIES = {"gemma3_text": "gemma3"}
"""Where onnxruntime-genai or transformers have another name for a family than GGUF."""
_IR_INTEGERS = {"u2": "int2", "i2": "int2", "u4": "int4", "i4": "int4", "nf4": "nf4", "u8": "int8", "i8": "int8"}
_IR_FLOATS = {"f16": "F16", "bf16": "BF16", "f32": "F32"}
_IR_BITS = {"u2": 2, "i2": 2, "u4": 4, "i4": 4, "nf4": 4, "u8": 8, "i8": 8, "f16": 16, "bf16": 16, "f32": 32}


def detect_format(path: Path) -> Format:
    """Say what `path` is. Raises `ImportFailed` when it is nothing that is known, `CorruptFile` for an empty file."""
    if path.is_dir():
        if (path / "genai_config.json").is_file():
            return "onnx"
        if any((path / name).is_file() for name in _IR_FILES):
            return "openvino"
        if is_ctranslate2(path / CTRANSLATE2_FILE):
            return "ctranslate2"
        if is_whisper_folder(path):
            return "onnx"
        if (path / "config.json").is_file() and find_graph(path):
            return "onnx"
        if find_clip_graphs(path):
            return "onnx"
        if (path / "config.json").is_file() and any((path / name).is_file() for name in _SAFETENSORS):
            return "safetensors"
        check_layout(path)
        if find_vision_graph(path):
            return "onnx"
        raise ImportFailed(_nothing_in(path), hint=_HINT)
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise ImportFailed(f"{path}: {error.strerror}", hint="check the path and its permissions") from error
    if start == MAGIC:
        return "gguf"
    if is_pickled(path):
        return "pickled"
    if starts_like_onnx(start):
        return "onnx-file"
    if not start:
        raise CorruptFile(f"{path}: is empty", hint="fetch the file again")
    raise ImportFailed(
        f"{path}: is no GGUF or ONNX file (it starts with {start!r})",
        hint=_HINT,
    )


def _nothing_in(folder: Path) -> str:
    if any(folder.glob("*.safetensors")) and not (folder / "config.json").is_file():
        return f"{folder}: holds safetensors but no config.json, which says what they are"
    if any(folder.glob("*.safetensors")):
        return f"{folder}: holds safetensors but none called {' or '.join(_SAFETENSORS)}"
    if pickled := sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED):
        return f"{folder}: {pickled[0]} is pickled, and is never read: such files can run code; safetensors are read"
    return f"{folder}: holds neither safetensors, genai_config.json, openvino_model.xml nor one model.onnx"


def describe_folder(folder: Path) -> ImportedModel:
    """Read what an ONNX or OpenVINO IR folder holds and check that all of it is there.

    Raises `CorruptFile` naming the file that is missing, unreadable or too short, `ImportFailed` for a folder that is
    neither, `UnsupportedArchitecture` for one that is no text model.
    """
    kind = detect_format(folder)
    if kind in ("safetensors", "ctranslate2"):
        raise ImportFailed(f"{folder}: its weights have to be imported first", hint=f"vmm pull file:{folder}")
    if kind == "onnx" and not (folder / "genai_config.json").is_file():
        return _describe_one_shot(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{folder}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    return _describe_onnx(folder) if kind == "onnx" else _describe_ir(folder)


def _describe_one_shot(folder: Path) -> ImportedModel:
    if is_kokoro(folder):
        return describe_kokoro(folder)
    if is_whisper_folder(folder):
        return describe_whisper(folder)
    if find_clip_graphs(folder):
        return describe_clip(folder)
    path = find_vision_graph(folder)
    if path is not None and is_vad(read_graph(path)):
        return describe_vad(folder)
    if path is None or (read_graph(path).image_input() is None and (folder / "config.json").is_file()):
        return describe_encoder(folder)
    return describe_vision(folder)


def _describe_onnx(folder: Path) -> ImportedModel:
    path = folder / "genai_config.json"
    model = _object(read_json_object(path), "model", path)
    if model.get("type") == "echo":
        return _describe_echo(folder, model)
    decoder = _object(model, "decoder", path)
    filename = decoder.get("filename")
    if not isinstance(filename, str) or not filename or Path(filename).name != filename:
        raise UnsupportedArchitecture(f"{path}: model.decoder.filename does not name one decoder file")
    count, quantization = count_onnx_weights(folder / filename)
    return _imported(
        folder,
        family=model.get("type"),
        count=count,
        quantization=quantization,
        context_length=positive(model.get("context_length"), path, "model.context_length"),
        embedding_length=decoder.get("hidden_size"),
    )


def _describe_echo(folder: Path, model: dict[str, object]) -> ImportedModel:
    """The test model of `vmm_adapters.echo`: it has no weights."""
    length = positive(model.get("context_length"), folder / "genai_config.json", "model.context_length")
    imported = _imported(
        folder, family="echo", count=None, quantization="unknown", context_length=length, embedding_length=None
    )
    return replace(imported, adapter="echo")


def _describe_ir(folder: Path) -> ImportedModel:
    graph = next(folder / name for name in _IR_FILES if (folder / name).is_file())
    path = folder / "config.json"
    config = read_json_object(path)
    text_config = config.get("text_config")
    sizes = text_config if isinstance(text_config, dict) else config
    count, quantization = _count_ir_weights(graph)
    imported = _imported(
        folder,
        family=sizes.get("model_type", config.get("model_type")),
        count=count,
        quantization=quantization,
        context_length=positive(sizes.get("max_position_embeddings"), path, "max_position_embeddings"),
        embedding_length=sizes.get("hidden_size"),
    )
    if not (folder / _IR_VISION).is_file():
        return imported
    _count_ir_weights(folder / _IR_VISION)
    return replace(imported, capabilities=(*imported.capabilities, "vision"))


def _imported(
    folder: Path,
    *,
    family: object,
    count: int | None,
    quantization: str,
    context_length: int,
    embedding_length: object,
) -> ImportedModel:
    template = _chat_template(folder)
    name = family if isinstance(family, str) and family else "unknown"
    return ImportedModel(
        family=_FAMILIES.get(name, name),
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=context_length,
        embedding_length=embedding_length if isinstance(embedding_length, int) else None,
        capabilities=guess_capabilities(template, _added_tokens(folder)),
        has_chat_template=template is not None,
        license=None,
        name=None,
    )


def _object(parent: dict[str, object], key: str, path: Path) -> dict[str, object]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise UnsupportedArchitecture(f"{path}: has no {key!r}: it is not the configuration of a text model")
    return value


def _added_tokens(folder: Path) -> frozenset[str]:
    """The texts of the tokens that were added to the vocabulary, special ones among them."""
    path = folder / "tokenizer_config.json"
    added = read_json_object(path).get("added_tokens_decoder") if path.is_file() else None
    entries = [entry for entry in added.values() if isinstance(entry, dict)] if isinstance(added, dict) else []
    return frozenset(content for entry in entries if isinstance(content := entry.get("content"), str))


def _chat_template(folder: Path) -> str | None:
    """The template of its own file, else the one in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    template = read_json_object(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _count_ir_weights(graph: Path) -> tuple[int, str]:
    """(weights, what most of them are stored as) of an IR, whose constants all must lie inside its .bin."""
    weights = graph.with_suffix(".bin")
    if not weights.is_file():
        raise CorruptFile(f"{weights}: is missing", hint="fetch the whole folder")
    size, stored = weights.stat().st_size, Counter[str]()
    try:
        for _, element in ElementTree.iterparse(graph):
            if element.tag != "layer":
                continue
            constant = element.find("data")
            if element.get("type") == "Const" and constant is not None:
                if int(constant.get("offset", 0)) + int(constant.get("size", 0)) > size:
                    raise CorruptFile(f"{weights}: is cut off at byte {size}", hint="fetch it again")
                stored += _constant_weights(constant)
            element.clear()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise CorruptFile(f"{graph}: cannot be read: {error}", hint="fetch it again") from error
    return stored.total(), stored.most_common(1)[0][0] if stored else "unknown"


def _constant_weights(constant: ElementTree.Element) -> Counter[str]:
    """A constant's weights by type; scales and zero points (a last dimension of 1) and indices count for nothing."""
    kind = constant.get("element_type", "")
    name = _IR_INTEGERS.get(kind) or _IR_FLOATS.get(kind)
    shape = [int(size) for size in constant.get("shape", "").split(",") if size.strip()]
    if name is None or not shape or shape[-1] == 1:
        return Counter()
    return Counter({name: int(constant.get("size", 0)) * 8 // _IR_BITS[kind]})
