"""Whisper's special tokens, and the generation_config.json that tells of them.

The tokeniser says which they are; what a folder says beside it (CTranslate2's `lang_ids` of English-only models) can be
wrong. What cannot be told from the tokeniser, tokens to suppress and alignment heads, is taken from the folder's files.
Timestamps, 1501 of them in steps of 0.02 s, follow `<|notimestamps|>` and need not be in tokenizer.json.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.whisper_config import WhisperConfig

_NUM_TIMESTAMPS = 1501
_MULTILINGUAL_FROM = 51865
"""Sizes of the vocabulary (openai-whisper, model.py, `is_multilingual`)."""
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_NAMES = {
    "end": "<|endoftext|>",
    "start": "<|startoftranscript|>",
    "translate": "<|translate|>",
    "transcribe": "<|transcribe|>",
    "previous": "<|startofprev|>",
    "no_timestamps": "<|notimestamps|>",
}


@dataclass(frozen=True, slots=True)
class WhisperTokens:
    """Ids of the special tokens."""

    end: int
    start: int
    translate: int
    transcribe: int
    previous: int
    """Before the text of earlier speech, or a prompt."""
    no_timestamps: int
    languages: Mapping[str, int]
    """By the token's text: `<|en|>`."""


def read_tokens(folder: Path, vocab_size: int) -> WhisperTokens:
    """Read a folder's tokenizer.json.

    Raises `ImportFailed` where there is none, `CorruptFile` for one that is not Whisper's or not of this vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ImportFailed(
            f"{folder}: has no tokenizer.json",
            hint="copy it from the model's repository, or save it with transformers' WhisperTokenizerFast",
        )
    tokenizer = read_json_object(path)
    added = tokenizer.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    ids = {text: entry.get("id") for entry in entries if isinstance(text := entry.get("content"), str)}
    found = {field: _token(ids, text, path) for field, text in _NAMES.items()}
    model = tokenizer.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    numbers = [*(words.values() if isinstance(words, dict) else []), *ids.values()]
    highest = max([found["no_timestamps"] + _NUM_TIMESTAMPS, *(each for each in numbers if isinstance(each, int))])
    if highest >= vocab_size:
        raise CorruptFile(
            f"{path}: has tokens up to {highest}, the model's vocabulary is {vocab_size}",
            hint="it belongs to another model: English-only and multilingual ones differ",
        )
    languages = {
        text: number
        for text, number in ids.items()
        if isinstance(number, int) and _LANGUAGE.fullmatch(text) and found["start"] < number < found["translate"]
    }
    return WhisperTokens(**found, languages=languages)


def _token(ids: Mapping[str, object], text: str, path: Path) -> int:
    number = ids.get(text)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CorruptFile(f"{path}: has no token {text}", hint="it is not Whisper's: fetch the model's own")
    return number


def make_generation_config(
    tokens: WhisperTokens, config: WhisperConfig, found: Mapping[str, object], path: Path
) -> dict[str, object]:
    """What transformers' generation_config.json has, of `found`, which a folder's files say, and the tokens.

    Raises `CorruptFile` naming `path` and the key that is no list of tokens.
    """
    is_multilingual = found.get("is_multilingual")
    if not isinstance(is_multilingual, bool):
        is_multilingual = config.vocab_size >= _MULTILINGUAL_FROM
    tasks = {"transcribe": tokens.transcribe, "translate": tokens.translate}
    heads = find_alignment_heads(found.get("alignment_heads"), config)
    return {
        "alignment_heads": [list(head) for head in heads],
        "begin_suppress_tokens": _token_list(found, "begin_suppress_tokens", config.vocab_size, path),
        "bos_token_id": tokens.end,
        "decoder_start_token_id": tokens.start,
        "eos_token_id": tokens.end,
        "is_multilingual": is_multilingual,
        "lang_to_id": dict(tokens.languages) if is_multilingual else {},
        "max_initial_timestamp_index": _small(found.get("max_initial_timestamp_index"), 50),
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": tokens.no_timestamps,
        "pad_token_id": tokens.end,
        "prev_sot_token_id": tokens.previous,
        "suppress_tokens": _token_list(found, "suppress_tokens", config.vocab_size, path),
        "task_to_id": tasks if is_multilingual else {},
    }


def find_alignment_heads(found: object, config: WhisperConfig) -> tuple[tuple[int, int], ...]:
    """(layer, head) of those whose attention follows the sound, in the order of the list `found`.

    Without a list that is this model's, all heads of the upper half of the layers, as in openai-whisper: distilled
    models carry their teacher's list.
    """
    pairs = found if isinstance(found, list) else []
    heads = tuple((pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2)
    layers, width = range(config.decoder_layers), range(config.decoder_attention_heads)
    is_own = len(heads) == len(pairs) == len(set(heads)) and all(
        type(layer) is int and type(head) is int and layer in layers and head in width for layer, head in heads
    )
    if heads and is_own:
        return heads
    return tuple((layer, head) for layer in layers[config.decoder_layers // 2 :] for head in width)


def _token_list(found: Mapping[str, object], key: str, vocab_size: int, path: Path) -> list[int]:
    value = found.get(key)
    numbers = [] if value is None else value
    if not isinstance(numbers, list) or not all(type(each) is int and 0 <= each < vocab_size for each in numbers):
        raise CorruptFile(f"{path}: {key} is no list of tokens below {vocab_size}", hint=f"mend {path.name}")
    return numbers


def _small(value: object, default: int) -> int:
    return value if isinstance(value, int) and 0 <= value < _NUM_TIMESTAMPS else default
