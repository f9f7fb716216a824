"""The vocabulary in a GGUF file's metadata, checked, with the meaning llama.cpp gives to its special tokens.

Nothing of the metadata is trusted: lengths, types, ranges, duplicates and encodings are checked here, once, and what
comes out is consistent. The keys are those of the GGUF specification; defaults and the texts that end a generation
are facts of llama.cpp (src/llama-vocab.cpp, `llama_vocab::impl::load`).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from vmm_server.errors import CorruptFile, UnsupportedArchitecture

_PREFIX = "tokenizer.ggml."
_NO_TOKEN = 0xFFFFFFFF  # -1 written as the specification's uint32
_SPM_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}

_EOG_TEXTS = frozenset(
    [
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    ]
)
_FIM_TEXTS = {
    "fim_pad": frozenset(("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    "fim_rep": frozenset(("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    "fim_sep": frozenset(("<|file_sep|>",)),
}
"""Fill-in-the-middle tokens that end a generation; looked up by text where the file names no id."""


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, GGUF's numbers."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and what they mean; an id is an index into `tokens`, which holds no text twice."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...]
    """Only for `llama`; else empty."""
    merges: tuple[tuple[str, str], ...]
    """Only for `gpt2`, best first; else empty. Both parts and their concatenation are tokens."""
    pre: str
    """`tokenizer.ggml.pre`; only for `gpt2`, else empty."""
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    end_of_generation: tuple[int, ...]
    """Ids that end a generation: eos, eot, eom first, then what is known by its text, ascending."""
    add_bos: bool | None
    """`None`: the file leaves it to the family's default."""
    add_eos: bool
    add_space_prefix: bool
    """A space is put before every text (SentencePiece's dummy prefix)."""

    def text(self, token_id: int | None) -> str | None:
        """The token's text, or `None` for no token."""
        return None if token_id is None else self.tokens[token_id]


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Read and check the vocabulary. Raises `CorruptFile` naming the key, `UnsupportedArchitecture`."""
    model = _string(metadata, "model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedArchitecture(f"tokenizer.ggml.model {model!r} is not supported; known are: gpt2, llama")
    tokens = _tokens(metadata)
    ids = {text: index for index, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(text for index, text in enumerate(tokens) if ids[text] != index)
        raise CorruptFile(f"tokenizer.ggml.tokens holds {twice!r} twice")
    spm = model == "llama"
    roles = {
        role: _token_id(metadata, f"{role}_token_id", len(tokens), _SPM_DEFAULTS.get(role) if spm else None)
        for role in ("bos", "eos", "unknown", "padding", "eot", "eom", *_FIM_TEXTS)
    }
    eog, eog_by_text = _end_of_generation(ids, roles)
    types = _types(metadata, len(tokens))
    for index in eog_by_text:  # llama.cpp overrides the type of tokens that look like control tokens
        types[index] = TokenType.CONTROL
    return Vocabulary(
        model=model,
        tokens=tokens,
        types=tuple(types),
        scores=_scores(metadata, len(tokens)) if spm else (),
        merges=() if spm else tuple(dict.fromkeys(_merges(metadata, ids))),  # the first of two equal ones counts
        pre="" if spm else _string(metadata, "pre", hint="convert the model again with a current llama.cpp"),
        bos=roles["bos"],
        eos=roles["eos"],
        unknown=roles["unknown"],
        padding=roles["padding"],
        end_of_generation=eog,
        add_bos=_flag(metadata, "add_bos_token", None),
        add_eos=bool(_flag(metadata, "add_eos_token", False)),
        add_space_prefix=bool(_flag(metadata, "add_space_prefix", spm)),
    )


def _string(metadata: Mapping[str, object], key: str, *, hint: str | None = None) -> str:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, str) or not value:
        found = "is missing" if value is None else f"is {type(value).__name__}, expected a text"
        raise CorruptFile(f"{_PREFIX}{key} {found}", hint=hint)
    return value


def _flag(metadata: Mapping[str, object], key: str, default: bool | None) -> bool | None:
    value = metadata.get(_PREFIX + key, default)
    if value is not None and not isinstance(value, bool):
        raise CorruptFile(f"{_PREFIX}{key} is {type(value).__name__}, expected a bool")
    return value


def _token_id(metadata: Mapping[str, object], key: str, num_tokens: int, default: int | None) -> int | None:
    value = metadata.get(_PREFIX + key)
    if value is None:
        return default if default is not None and default < num_tokens else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise CorruptFile(f"{_PREFIX}{key} is {type(value).__name__}, expected an integer")
    if value in (-1, _NO_TOKEN):
        return None
    if not 0 <= value < num_tokens:
        raise CorruptFile(f"{_PREFIX}{key} is {value}, but there are {num_tokens} tokens")
    return value


def _list(metadata: Mapping[str, object], key: str, num_tokens: int | None = None) -> list[object]:
    value = metadata.get(_PREFIX + key)
    if value is None:
        raise CorruptFile(f"{_PREFIX}{key} is missing")
    if not isinstance(value, list | tuple):
        raise CorruptFile(f"{_PREFIX}{key} is {type(value).__name__}, expected a list")
    if num_tokens is not None and len(value) != num_tokens:
        raise CorruptFile(f"{_PREFIX}{key} has {len(value)} entries for {num_tokens} tokens")
    return list(value)


def _texts(metadata: Mapping[str, object], key: str) -> Iterator[str]:
    for index, value in enumerate(_list(metadata, key)):
        if not isinstance(value, str):
            raise CorruptFile(f"{_PREFIX}{key}[{index}] is {type(value).__name__}, expected a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise CorruptFile(f"{_PREFIX}{key}[{index}] is not UTF-8") from error
        yield value


def _tokens(metadata: Mapping[str, object]) -> tuple[str, ...]:
    tokens = tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(_texts(metadata, "tokens")))
    if not tokens:
        raise CorruptFile("tokenizer.ggml.tokens is empty")
    return tokens


def _types(metadata: Mapping[str, object], num_tokens: int) -> list[TokenType]:
    if _PREFIX + "token_type" not in metadata:
        return [TokenType.NORMAL] * num_tokens
    known = {int(kind): kind for kind in TokenType}
    types = []
    for index, value in enumerate(_list(metadata, "token_type", num_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value not in known:
            raise CorruptFile(f"{_PREFIX}token_type[{index}] is {value!r}, expected 0 to 6")
        types.append(known[value])
    return types


def _scores(metadata: Mapping[str, object], num_tokens: int) -> tuple[float, ...]:
    scores = []
    for index, value in enumerate(_list(metadata, "scores", num_tokens)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CorruptFile(f"{_PREFIX}scores[{index}] is {value!r}, expected a finite number")
        scores.append(float(value))
    return tuple(scores)


def _merges(metadata: Mapping[str, object], ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for index, text in enumerate(_texts(metadata, "merges")):
        space = text.find(" ", 1)  # a part may itself begin with a space, as in llama.cpp
        left, right = (text[:space], text[space + 1 :]) if space > 0 else (text, "")
        for part in (left, right, left + right):
            if part not in ids:
                raise CorruptFile(f"{_PREFIX}merges[{index}] is {text!r}, but {part!r} is not a token")
        yield left, right


def _end_of_generation(
    ids: Mapping[str, int], roles: Mapping[str, int | None]
) -> tuple[tuple[int, ...], frozenset[int]]:
    """(all ids that end a generation, those of them that were found by their text), as llama.cpp collects them."""
    by_text = {ids[text] for text in _EOG_TEXTS & ids.keys()}
    for role, texts in _FIM_TEXTS.items():
        if roles[role] is None and (found := [ids[text] for text in texts & ids.keys()]):
            by_text.add(min(found))
    not_ending: set[int | None] = {None}
    if {"<|call|>", "<|calls|>"} & ids.keys() and {"<|return|>", "<|flush|>"} & ids.keys():
        not_ending.add(ids.get("<|end|>"))  # ends a channel there (gpt-oss, solar-open), not the turn
    if "<|tool_response>" in ids:
        not_ending.add(ids.get("</s>"))
    named = [roles[role] for role in ("eos", "eot", "eom")]
    others = sorted(by_text.union(index for role in _FIM_TEXTS if (index := roles[role]) is not None))
    ordered = dict.fromkeys(index for index in (*named, *others) if index is not None)
    return tuple(index for index in ordered if index not in not_ending), frozenset(by_text.difference(not_ending))
