"""An encoder's ONNX folder that is used as it is: what it holds, and how its vectors are made.

The graph is model.onnx or onnx/model.onnx, beside config.json and tokenizer.json; sentence-transformers' files tell the
pooling. A graph that gives one row a text needs none. Anything else is not guessed: a card's `[embedding]` table tells.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from vmm_adapters.card import EmbeddingRecipe
from vmm_server.errors import CorruptFile, ImportFailed, UnsupportedArchitecture
from vmm_server.models.importers.encoder_config import first_position, is_cross_encoder
from vmm_server.models.importers.encoder_weights import FILE
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.json_files import positive, read_json_object
from vmm_server.models.importers.onnx_model import open_onnx
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.sentence_transformers import read_sentence_transformer

GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Where the graph may be; the first that is there is used."""
_SMALL_FILES = re.compile(
    r"config\.json|modules\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|sentence_bert_config\.json|config_sentence_transformers\.json|\d+_[A-Za-z]+/config\.json"
)
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
_NO_LIMIT = 10**9
"""transformers writes a number far above this for a tokeniser without a limit."""
_WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")


def find_graph(folder: Path) -> Path | None:
    """The folder's ONNX file."""
    return next((folder / name for name in GRAPHS if (folder / name).is_file()), None)


def is_encoder_file(path: str) -> bool:
    """Whether a folder's small file (relative path, with `/`) is of use to us."""
    return _SMALL_FILES.fullmatch(path) is not None


def encoder_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a repository (relative, with `/`), those that an encoder's folder needs, configuration first.

    The graph where there is one, else model.safetensors of a sentence-transformers model; empty when it is neither.
    """
    small = [path for path in paths if is_encoder_file(path)]
    graph = next((path for path in GRAPHS if path in paths), None)
    if "config.json" not in small or "tokenizer.json" not in small:
        return []
    if graph:
        weights = [path for path in paths if path in (graph, f"{graph}.data", f"{graph}_data")]
    else:
        weights = [FILE] if FILE in paths and "modules.json" in small else []
    return sorted(small, key=lambda path: path != "config.json") + weights if weights else []


def describe_encoder(folder: Path) -> ImportedModel:
    """Read what the folder holds and check that it is all there.

    Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, each naming the file.
    """
    config = read_json_object(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{folder}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    graph = find_graph(folder)
    if graph is None:
        raise CorruptFile(f"{folder / GRAPHS[0]}: is missing", hint="fetch the whole folder")
    count, quantization = count_onnx_weights(graph)
    told = read_sentence_transformer(folder)
    rank, width = _output_shape(graph, pools=told.recipe is not None)
    scores = is_cross_encoder(config) and told.recipe is None
    if scores and (rank, width) != (2, 1):
        raise UnsupportedArchitecture(
            f"{graph}: a classifier of {width or 'several'} labels; a cross-encoder for reranking has one"
        )
    recipe = told.recipe
    if rank == 2:
        recipe = None if scores else (recipe or EmbeddingRecipe(normalize=False)).model_copy(update={"pooling": None})
    return ImportedModel(
        family=str(config.get("model_type", "unknown")),
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=_context_length(folder, config, told.max_length),
        embedding_length=None if scores else width or _first_int(config, _WIDTH_KEYS),
        capabilities=("rerank",) if scores else ("embedding",),
        has_chat_template=False,
        license=None,
        name=None,
        embedding=recipe,
    )


def _context_length(folder: Path, config: dict[str, object], told: int | None) -> int:
    """Tokens an input may have: sentence-transformers' word, else the tokeniser's; no more than there are positions."""
    rows = _first_int(config, _POSITION_KEYS)
    tokenizer = folder / "tokenizer_config.json"
    if told is None and tokenizer.is_file():
        longest = _first_int(read_json_object(tokenizer), ("model_max_length",))
        told = longest if longest is not None and longest < _NO_LIMIT else None
    if rows is None and told is None:
        return positive(None, folder / "config.json", _POSITION_KEYS[0])
    limits = [told, None if rows is None else rows - first_position(config)]
    return min(limit for limit in limits if limit is not None)


def _first_int(config: dict[str, object], keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys if isinstance(value := config.get(key), int) and value > 0), None)


def _output_shape(graph: Path, *, pools: bool) -> tuple[int, int | None]:
    """(dimensions, width) of the output that the adapter will use; with `pools`, hidden states are looked for first.

    Raises `UnsupportedArchitecture`.
    """
    model = open_onnx(graph).graph
    inputs = {value.name for value in model.input} - {tensor.name for tensor in model.initializer}
    if "input_ids" not in inputs or not inputs <= _INPUTS:
        names = ", ".join(sorted(inputs))
        raise UnsupportedArchitecture(f"{graph}: has the inputs {names}; an encoder's are input_ids and attention_mask")
    shapes = {
        output.name: output.type.tensor_type.shape.dim for output in model.output if output.name != "pooler_output"
    }
    order = (3, 2) if pools or "sentence_embedding" not in shapes else (2,)
    for rank in order:
        for shape in shapes.values():
            if len(shape) == rank:
                return rank, shape[-1].dim_value or None
    raise UnsupportedArchitecture(f"{graph}: has no output with hidden states or with a row a text")
