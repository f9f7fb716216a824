"""Fill-in-the-middle: what comes before and after a gap, written as the model learned it.

Sources: StarCoder (arXiv:2305.06161, appendix), Qwen2.5-Coder's and DeepSeek-Coder's READMEs, CodeGemma's "prompt
structure" page, Code Llama's `infilling_prompt_tokens`, mistral-common's `encode_fim`.
"""

from collections.abc import Container
from dataclasses import dataclass

from tokenizers import Tokenizer

from vmm_server.prompt.words import first_tokens, token_ids


@dataclass(frozen=True, slots=True)
class _Family:
    prefix: str
    suffix: str
    middle: str | None
    """`None`: the gap follows the prefix, which comes last."""
    end: str | None = None
    """Says that the gap is filled, where the model's EOS does not."""
    glues_suffix: bool = False
    """SentencePiece's blank at the beginning of a text is left out before the suffix."""


_FAMILIES = (
    _Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"),  # Qwen2.5-Coder, CodeGemma
    _Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code, Stable Code
    _Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", glues_suffix=True),  # Code Llama
    _Family("[PREFIX]", "[SUFFIX]", None, glues_suffix=True),  # Codestral
)
_MARK = "\u263a"
"""Goes before a text to keep the blank away from it; any character that merges with nothing will do."""


def can_insert(tokens: Container[str]) -> bool:
    """Whether a vocabulary has what fill-in-the-middle needs."""
    return _family(tokens) is not None


def insert_tokens(tokenizer: Tokenizer, prefix: str, suffix: str) -> tuple[int, ...] | None:
    """The prompt's tokens, by the special tokens of the model's own vocabulary; `None`: it has none for this."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    family = _family(ids)
    if family is None:
        return None
    before = (ids[family.prefix], *_encode(tokenizer, prefix))
    after = (ids[family.suffix], *_encode(tokenizer, suffix, glued=family.glues_suffix))
    first = first_tokens(tokenizer)
    if family.middle is None:
        return (*first, *after, *before)
    return (*first, *before, *after, ids[family.middle])


def insert_end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end the text in the gap, beside the model's EOS."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    family = _family(ids)
    return () if family is None or family.end not in ids else (ids[family.end],)


def _family(tokens: Container[str]) -> _Family | None:
    for family in _FAMILIES:
        if family.prefix in tokens and family.suffix in tokens and (family.middle is None or family.middle in tokens):
            return family
    return None


def _encode(tokenizer: Tokenizer, text: str, *, glued: bool = False) -> list[int]:
    if glued:
        mark = token_ids(tokenizer, _MARK)
        marked = token_ids(tokenizer, _MARK + text)
        if marked[: len(mark)] == mark:
            return list(marked[len(mark) :])
    return list(token_ids(tokenizer, text))
