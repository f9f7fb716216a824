import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vmm_server.prompt.token_bytes import TokenBytes


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {character: index for index, character in enumerate(sorted(alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


@given(st.text())
def test_bytes_of_a_texts_tokens_are_the_texts_bytes(byte_level: Tokenizer, text: str) -> None:
    token_bytes = TokenBytes(byte_level)
    ids = byte_level.encode(text, add_special_tokens=False).ids
    assert b"".join(map(token_bytes, ids)) == text.encode()


def test_a_special_token_is_its_own_text(byte_level: Tokenizer) -> None:
    assert TokenBytes(byte_level)(256) == b"<|end|>"


def test_padding_rows_beyond_the_vocabulary_have_no_bytes(byte_level: Tokenizer) -> None:
    assert TokenBytes(byte_level)(999) == b""


def test_sentencepiece_spaces_and_byte_tokens() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"\u2581the": 0, "<0xE2>": 1, "x": 2}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [TokenBytes(tokenizer)(index) for index in range(3)] == [b" the", b"\xe2", b"x"]
