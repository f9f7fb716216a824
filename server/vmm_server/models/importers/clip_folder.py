"""A folder of CLIP or SigLIP as two ONNX graphs: what it holds, and how pictures and texts are put in.

The graphs are text_model.onnx and vision_model.onnx, here or in `onnx`, as exporters for the hub write them and as
`import_clip` does; config.json, preprocessor_config.json and tokenizer.json lie beside. `logit_scale` and `logit_bias`,
weights that no such graph has, may stand in config.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vmm_adapters.card import EmbeddingRecipe, VisionRecipe
from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.clip_config import FAMILIES, is_clip_family, text_config
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import number, positive, read_json_object
from vmm_server.models.importers.onnx_file import OnnxGraph, Port, check_image_input, read_graph, with_external_data
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.preprocessor_config import FILES as PREPROCESSOR_FILES
from vmm_server.models.importers.preprocessor_config import fit_image, read_image_recipe

SMALL_FILES = ("config.json", "tokenizer.json", *PREPROCESSOR_FILES, "tokenizer_config.json", "special_tokens_map.json")
TEXT_GRAPHS = ("text_model.onnx", "onnx/text_model.onnx")
VISION_GRAPHS = ("vision_model.onnx", "onnx/vision_model.onnx")
EMBEDS = ("text_embeds", "image_embeds", "pooler_output")
"""Outputs with a row a text or picture, in the order in which they are looked for."""
CLIP_LOGIT_SCALE = 100.0
"""OpenAI's and OpenCLIP's models are trained up to it and kept there; their ONNX exports leave it out."""


def find_clip_graphs(folder: Path) -> tuple[Path, Path] | None:
    """The graphs of texts and of pictures."""
    text, vision = (
        next((folder / name for name in names if (folder / name).is_file()), None)
        for names in (TEXT_GRAPHS, VISION_GRAPHS)
    )
    return (text, vision) if text and vision else None


def clip_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a repository (relative, with `/`), those that its two graphs need, weights last.

    Of several precisions the plain one is taken; empty when there is no such model.
    """
    graphs = [next((name for name in names if name in paths), None) for names in (TEXT_GRAPHS, VISION_GRAPHS)]
    found = [graph for graph in graphs if graph]
    if len(found) != len(graphs) or not {"config.json", "tokenizer.json"} <= {*paths}:
        return []
    return [name for name in SMALL_FILES if name in paths] + with_external_data(found, paths)


def describe_clip(folder: Path) -> ImportedModel:
    """Read what a folder of CLIP or SigLIP holds, as two graphs. Raises as `describe_vision` does."""
    graphs = find_clip_graphs(folder)
    if graphs is None:
        raise CorruptFile(f"{folder / TEXT_GRAPHS[0]}: is missing", hint="fetch the whole folder")
    path = folder / "config.json"
    config = read_json_object(path)
    family = config.get("model_type")
    if not is_clip_family(family):
        raise UnsupportedArchitecture(f"{path}: model_type {family!r} is not supported; {', '.join(FAMILIES)} are")
    if not (folder / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{folder}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    counts = [count_onnx_weights(graph) for graph in graphs]
    text, vision = (read_graph(graph) for graph in graphs)
    if "input_ids" not in (names := {port.name for port in text.inputs}) or not names <= {
        "input_ids",
        "attention_mask",
    }:
        raise UnsupportedArchitecture(f"{text.path}: has the inputs {', '.join(sorted(names))}; input_ids is expected")
    widths = [_embeds(graph).shape[-1] for graph in (text, vision)]
    count = sum(each for each, _ in counts)
    texts = text_config(config, family, path)
    length = positive(texts["max_position_embeddings"], path, "text_config.max_position_embeddings")
    scale, bias = (
        None if config.get(key) is None else number(config[key], path, key, signed=key == "logit_bias")
        for key in ("logit_scale", "logit_bias")
    )
    recipe = VisionRecipe(
        image=fit_image(read_image_recipe(folder), check_image_input(vision), vision.path),
        logit_scale=CLIP_LOGIT_SCALE if scale is None and family == "clip" else scale,
        logit_bias=bias,
        text_length=length if family == "siglip" else None,
        pad_token_id=_pad_token_id(folder, texts) if family == "siglip" else None,
    )
    return ImportedModel(
        family=family,
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=counts[1][1],
        context_length=length,
        embedding_length=next((width for width in widths if width), None),
        capabilities=("embedding", "image-embedding"),
        has_chat_template=False,
        license=None,
        name=None,
        embedding=EmbeddingRecipe(pooling=None, normalize=True),
        vision=recipe,
    )


def _pad_token_id(folder: Path, texts: Mapping[str, object]) -> int:
    """The id of the token that the tokeniser pads with; of config.json, which SigLIP 2 leaves wrong, else."""
    path = folder / "tokenizer_config.json"
    token = read_json_object(path).get("pad_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    added = read_json_object(folder / "tokenizer.json").get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if token is not None and isinstance(entry, dict) and entry.get("content") == token:
            found = entry.get("id")
            return found if isinstance(found, int) and found >= 0 else 0
    said = texts.get("pad_token_id")
    return said if isinstance(said, int) and said >= 0 else 0


def _embeds(graph: OnnxGraph) -> Port:
    port = graph.output(*EMBEDS)
    if port is None or len(port.shape) != 2:
        names = ", ".join(each.name for each in graph.outputs)
        raise UnsupportedArchitecture(
            f"{graph.path}: has the outputs {names}; one of {', '.join(EMBEDS)} is expected",
            hint="export it with its projection",
        )
    return port
