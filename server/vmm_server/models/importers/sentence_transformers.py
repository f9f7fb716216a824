"""What sentence-transformers' own files say of a model: pooling, normalisation, prompts, the longest input.

The files are those of its version 2 to 6: modules.json, <n>_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json. What they ask for and we do not do is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path

from vmm_adapters.card import EmbeddingRecipe
from vmm_adapters.types import Pooling
from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.json_files import positive, read_json, read_json_object

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of a pooling's config.json before version 6, and what `pooling_mode` calls them since."""


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """What the files say."""

    recipe: EmbeddingRecipe | None
    """`None`: there is no modules.json, so pooling is not told."""
    max_length: int | None


def read_sentence_transformer(folder: Path) -> SentenceTransformer:
    """Read what there is. Raises `CorruptFile`, and `UnsupportedArchitecture` for other modules or poolings."""
    settings = folder / "sentence_bert_config.json"
    told = read_json_object(settings) if settings.is_file() else {}
    if told.get("do_lower_case"):
        raise UnsupportedArchitecture(f"{settings}: do_lower_case is not supported", hint="the tokeniser can do it")
    longest = told.get("max_seq_length")
    max_length = None if longest is None else positive(longest, settings, "max_seq_length")
    path = folder / "modules.json"
    if not path.is_file():
        return SentenceTransformer(None, max_length)
    kinds = _modules(path)
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        raise UnsupportedArchitecture(
            f"{path}: the modules {', '.join(names)} are not supported; Transformer, Pooling and Normalize are"
        )
    prompts, default_prompt = _prompts(folder / "config_sentence_transformers.json")
    recipe = EmbeddingRecipe(
        pooling=_pooling(folder / kinds[1][1] / "config.json", has_prompts=bool(prompts)),
        normalize="Normalize" in names,
        prompts=prompts,
        default_prompt=default_prompt,
    )
    return SentenceTransformer(recipe, max_length)


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each module, in order."""
    modules = read_json(path)
    found = []
    for module in modules if isinstance(modules, list) else [None]:
        kind, place = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str) or ".." in Path(place).parts:
            raise CorruptFile(f"{path}: is no list of modules", hint="fetch it again")
        found.append((kind.rpartition(".")[2], place))
    return found


def _pooling(path: Path, *, has_prompts: bool) -> Pooling:
    config = read_json_object(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _MODES.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if config.get("include_prompt") is False and has_prompts:
        raise UnsupportedArchitecture(f"{path}: pooling without the prompt's tokens (include_prompt) is not supported")
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in list(Pooling):
        known = ", ".join(Pooling)
        raise UnsupportedArchitecture(f"{path}: the pooling {modes} is not supported; one of {known} is")
    return Pooling(modes[0])


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, without the empty ones, and the default one's name."""
    config = read_json_object(path) if path.is_file() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CorruptFile(f"{path}: prompts is no object of texts", hint="fetch it again")
    if default is not None and default not in prompts:
        raise CorruptFile(f"{path}: there is no prompt {default!r}", hint="fetch it again")
    kept = {name: text for name, text in prompts.items() if text}
    return kept, default if isinstance(default, str) and default in kept else None
