r"""How byte-level BPE vocabularies cut text into words before merging, by `tokenizer.ggml.pre`.

A GGUF file names its pre-tokeniser instead of carrying its regular expressions; the names and what they stand for
are facts of llama.cpp (src/llama-vocab.cpp, `llm_tokenizer_bpe` and `llama_vocab::impl::load`). Each expression is
applied to the pieces the one before left, and every match and every gap between matches becomes a piece.

Where llama.cpp rewrites the model's own expression for want of case-insensitive groups or letter categories
(`tekken`, `gpt-4o`, …), the model's own stands here: it is what the model was trained with, and onnxruntime-genai,
which knows expressions by their text, reads it. For the same reason GPT-2's ends in `|\s+`, which only gives the
last gap a name.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one family cuts text into words."""

    patterns: tuple[str, ...]
    """Regular expressions (Oniguruma), applied one after the other, matches and gaps both kept."""
    ignore_merges: bool = False
    """A word that is itself a token is taken whole, whatever the merges say."""
    add_bos: bool = False
    """Texts begin with the BOS token unless the file says otherwise."""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+"
_LINES = r"\s*[\r\n]+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_PUNCTUATION}|{_SPACES}"
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}[\r\n]*|{_LINES}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_PUNCTUATION}[\r\n]*|{_LINES}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}|{_SPACES}"
)
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_PUNCTUATION}[\r\n]*|{_LINES}|{_SPACES}"
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_PUNCTUATION}[\r\n]*|{_LINES}|{_SPACES}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    rf"\p{{N}}|{_PUNCTUATION}[\r\n/]*|{_LINES}|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}|{_PUNCTUATION}[\r\n/]*|{_LINES}|{_SPACES}"
)
_DEEPSEEK3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}|{_SPACES}"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACES
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
    rf"{_PUNCTUATION}[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"  # CJK ideographs, hiragana, katakana

_BY_PATTERNS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), ("default",)),
    ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"), ("falcon",)),
    (
        (_GPT2,),
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum"),
            *("a.x-4.0", "modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
        ),
    ),
    (
        (_DIGIT, _GPT2),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    ((_LLAMA3,), ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")),
    (
        (_QWEN2,),
        ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "grok-2", "solar-open"),
    ),
    ((_QWEN35,), ("qwen35",)),
    ((_UFAKZEKA,), ("ufakzeka",)),
    ((r"[^\n]+|[\n]+", _QWEN2), ("laguna",)),
    ((_GPT4O,), ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    ((_THREE_DIGITS, _KANA, _DEEPSEEK3), ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")),
    ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", _DIGIT), ("deepseek-coder",)),
    ((_BAILING,), ("bailingmoe", "bailingmoe2", "llada-moe")),
    ((_SEED,), ("seed-coder",)),
    ((_EXAONE_MOE,), ("exaone-moe",)),
    ((_BLOOM,), ("bloom", "poro-chat", "gpt3-finnish")),
    ((_BLOOM, _DIGIT), ("viking",)),
)

_LLAMA3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **{name: PreTokenizer(patterns) for patterns, names in _BY_PATTERNS for name in names},
    **{name: PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True) for name in _LLAMA3_NAMES},
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "minicpm5": PreTokenizer((_THREE_DIGITS, _MINICPM5), ignore_merges=True),
}
"""Every `tokenizer.ggml.pre` that can be imported. Left out are those that need code rather than expressions
(kimi-k2, afmoe), raw UTF-8 merges (gemma4) or are for embeddings with separators (roberta-bpe)."""
