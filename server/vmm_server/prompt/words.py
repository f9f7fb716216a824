"""Text ↔ tokens of one model, for those who only want to know."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.token_bytes import TokenBytes

MAX_CHARACTERS = 8 * 2**20
"""Of a text that is to be tokens; what templates write is bounded by as much. A second of work is a megabyte or two."""
_SAMPLE = "\u263a"


def check_length(text: str, param: str) -> None:
    """Raise `InvalidRequest` for a text that is longer than any context, before anything is made of it."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"{param}: {len(text)} characters, the limit is {MAX_CHARACTERS}", param=param)


def token_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
    """A text's tokens. Other threads run meanwhile: `Tokenizer.encode` would keep Python's lock for seconds."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return tuple(encoding.ids)


def first_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokeniser puts before every text: a BOS token, or nothing."""
    whole = token_ids(tokenizer, _SAMPLE, add_special_tokens=True)
    text = token_ids(tokenizer, _SAMPLE)
    return whole[: next(start for start in range(len(whole) + 1) if whole[start : start + len(text)] == text)]


def with_first_tokens(tokenizer: Tokenizer, ids: tuple[int, ...]) -> tuple[int, ...]:
    """A text's tokens with those in front, unless the text has spelt them itself."""
    first = first_tokens(tokenizer)
    return ids if ids[: len(first)] == first else first + ids


class Words:
    """A model's tokeniser. Works on when the model is unloaded, and in any thread; long texts belong in one."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self.context_length = context_length
        """Of the model as it is loaded."""
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Special tokens that the text spells are those tokens."""
        return list(token_ids(self._tokenizer, text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], param: str = "tokens") -> str:
        """The text, special tokens included. Raises `InvalidRequest` for an id that is no token."""
        for token_id in ids:
            if not 0 <= token_id < 2**32 or self._tokenizer.id_to_token(token_id) is None:
                raise InvalidRequest(f"{param}: {token_id} is no token of this model", param=param)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def bytes(self, token_id: int) -> bytes:
        """What one token stands for; empty for an id that is none."""
        return self._bytes(token_id)
