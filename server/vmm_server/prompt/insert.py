"""Fill-in-the-middle: text goes between a prefix and a suffix."""

from tokenizers import Tokenizer


def insert_tokens(tokenizer: Tokenizer, prefix: str, suffix: str) -> tuple[int, ...] | None:
    """The prompt's tokens, by the special tokens of the model's own vocabulary; `None`: it has none for this."""
    return None
