"""The tokeniser of a GGUF file, written as the files that `tokenizers`, transformers and onnxruntime-genai read.

Two kinds of vocabulary are known, and both become a BPE model:

* `gpt2`, byte-level BPE: the merges are in the file; only the *name* of the pre-tokeniser is, see
  `gguf_pretokenizers`.
* `llama`, SentencePiece: there are scores and no merges. llama.cpp (src/llama-vocab.cpp, `llm_tokenizer_spm_session`)
  joins, again and again, the two neighbours whose concatenation is the token with the highest score, leftmost first.
  So every way to cut a token into two tokens is a merge, ranked by the token's score; characters that are no token
  fall back to the 256 byte tokens.

Special tokens are cut out of a text before anything else, and what is between two of them is treated as a text of
its own: it gets its own dummy prefix, if the vocabulary has one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer
from vmm_server.models.importers.gguf_vocabulary import TokenType, Vocabulary, read_vocabulary

_SPACE = "▁"  # SentencePiece's visible space, U+2581
_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_KEEPS_SPACE_AFTER = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What the rest of the folder must know about its tokeniser."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Every id that ends a generation, the file's EOS first."""
    pad_token_id: int | None
    vocab_size: int
    chat_template: str | None
    add_bos: bool


def write_tokenizer(metadata: Mapping[str, object], folder: Path) -> TokenizerInfo:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and, if there is one, chat_template.jinja.

    `metadata` is a GGUF file's keys and values. The same metadata gives the same bytes. Raises `CorruptFile` naming
    the key, `UnsupportedArchitecture` for a tokeniser or pre-tokeniser that is not known.
    """
    vocabulary = read_vocabulary(metadata)
    pre_tokenizer = None if vocabulary.model == "llama" else _pre_tokenizer(vocabulary.pre)
    default_bos = pre_tokenizer.add_bos if pre_tokenizer else True
    add_bos = default_bos if vocabulary.add_bos is None else vocabulary.add_bos
    chat_template = _chat_template(metadata)
    tokenizer = _byte_level(vocabulary, pre_tokenizer) if pre_tokenizer else _sentencepiece(vocabulary)
    _add_special_tokens(tokenizer, vocabulary, strip_after=_is_phi3(metadata))
    _add_template(tokenizer, vocabulary, add_bos=add_bos)

    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8", newline="\n")
    special = _special_tokens_map(vocabulary)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "add_bos_token": add_bos,
            "add_eos_token": vocabulary.add_eos,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **_context_length(metadata),
        },
    )
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="\n")
    return TokenizerInfo(
        bos_token_id=vocabulary.bos,
        eos_token_ids=vocabulary.end_of_generation,
        pad_token_id=vocabulary.padding,
        vocab_size=len(vocabulary.tokens),
        chat_template=chat_template,
        add_bos=add_bos,
    )


def _pre_tokenizer(name: str) -> PreTokenizer:
    if name not in PRE_TOKENIZERS:
        raise UnsupportedArchitecture(
            f"tokenizer.ggml.pre {name!r} is not supported; known are: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]


def _byte_level(vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> Tokenizer:
    """Byte-level BPE. A byte that has no token is left out of the ids, as in llama.cpp."""
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(ids, list(vocabulary.merges), ignore_merges=pre_tokenizer.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in ids]:
        raise CorruptFile(f"tokenizer.ggml.tokens lacks {len(missing)} of the 256 byte tokens, {missing[0]} first")
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            _merges_from_scores(vocabulary, ids),
            unk_token=vocabulary.text(vocabulary.unknown),
            byte_fallback=True,
        )
    )
    to_visible: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    to_text: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        to_visible.insert(0, normalizers.Prepend(_SPACE))
        to_text.append(decoders.Strip(" ", 1, 0))
    else:  # no space is left to split at, but this tells onnxruntime-genai not to cut words as Llama 3 does
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Sequence(to_visible)
    tokenizer.decoder = decoders.Sequence(to_text)
    return tokenizer


def _merges_from_scores(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every cut of a token into two tokens, the highest score first, and of one token the longest left part first.

    The last matters in runs of one character, which are joined from the left: what is over is at the right end.
    """
    skipped = (*_SPECIAL_TYPES, TokenType.USER_DEFINED)  # never met inside a text: they are cut out before
    ranked: list[tuple[float, int, int]] = []
    for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind not in skipped:
            lefts = (left for left in range(1, len(text)) if text[:left] in ids and text[left:] in ids)
            ranked.extend((-vocabulary.scores[index], -left, index) for left in lefts)
    ranked.sort()
    return [
        (vocabulary.tokens[index][:-minus_left], vocabulary.tokens[index][-minus_left:])
        for _, minus_left, index in ranked
    ]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, *, strip_after: bool) -> None:
    special: list[AddedToken] = []
    plain: list[AddedToken] = []
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in _SPECIAL_TYPES or kind is TokenType.USER_DEFINED:
            strip = strip_after and text not in _PHI3_KEEPS_SPACE_AFTER
            is_special = kind in _SPECIAL_TYPES
            token = AddedToken(text, rstrip=strip, normalized=False, special=is_special)
            (special if is_special else plain).append(token)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_template(tokenizer: Tokenizer, vocabulary: Vocabulary, *, add_bos: bool) -> None:
    """Put BOS before and EOS after every text, where the file says so."""
    ends: dict[str, tuple[str, int] | None] = {}
    for name, wanted, index in (
        ("bos", add_bos, vocabulary.bos),
        ("eos", vocabulary.add_eos, vocabulary.eos),
    ):
        if wanted and index is None:
            raise CorruptFile(f"texts need a {name.upper()} token, but tokenizer.ggml.{name}_token_id is missing")
        text = vocabulary.text(index) or ""
        if wanted and (":" in text or text.startswith("$")):  # the template's own punctuation
            raise CorruptFile(f"the {name.upper()} token {text!r} cannot stand in a post-processor template")
        ends[name] = (text, index) if wanted and index is not None else None
    used = [token for token in ends.values() if token is not None]
    if not used:
        return
    pieces = [[token[0]] if token else [] for token in ends.values()]
    single, pair = ([*pieces[0], f"${part}:{kind}", *pieces[1]] for part, kind in (("A", 0), ("B", 1)))
    tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=[*single, *(text if text.startswith("$") else f"{text}:1" for text in pair)],
        special_tokens=list(dict.fromkeys(used)),
    )


def _chat_template(metadata: Mapping[str, object]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CorruptFile(f"tokenizer.chat_template is {type(template).__name__}, expected a text")
    return template or None


def _is_phi3(metadata: Mapping[str, object]) -> bool:
    """Phi-3 takes the white space after its special tokens away, and no key says so.

    llama.cpp goes by the model's name alone and misses Phi-3.5; Phi-4, of the same architecture, has no SentencePiece.
    """
    if metadata.get("general.architecture") == "phi3":
        return metadata.get("tokenizer.ggml.model") == "llama"
    name = metadata.get("general.name")
    return isinstance(name, str) and any(part in name.lower() for part in _PHI3_NAMES)


def _context_length(metadata: Mapping[str, object]) -> dict[str, object]:
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return {"model_max_length": length} if isinstance(length, int) else {}


def _special_tokens_map(vocabulary: Vocabulary) -> dict[str, object]:
    named = {
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "unk_token": vocabulary.unknown,
        "pad_token": vocabulary.padding,
    }
    return {name: vocabulary.text(index) for name, index in named.items() if index is not None}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    text = json.dumps(cast(object, value), ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
