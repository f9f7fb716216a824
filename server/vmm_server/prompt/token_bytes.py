"""The exact bytes a token stands for: what `logprobs` entries report, also where a character is split over tokens."""

from functools import cached_property

from tokenizers import Tokenizer


def _byte_level_alphabet() -> dict[str, int]:
    """Character → byte of GPT-2's byte-level alphabet (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


class TokenBytes:
    """Token id → bytes, for byte-level and SentencePiece-style tokenisers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._tokenizer.decoder
        return decoder is not None and b"ByteLevel" in bytes(decoder.__getstate__())

    @cached_property
    def _added(self) -> dict[int, str]:
        return {index: token.content for index, token in self._tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, token_id: int) -> bytes:
        """Bytes of one token; empty for an id the vocabulary does not hold (padding rows of the logits)."""
        if (added := self._added.get(token_id)) is not None:
            return added.encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            return bytes(_ALPHABET[character] for character in token if character in _ALPHABET)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()
