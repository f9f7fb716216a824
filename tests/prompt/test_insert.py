"""Prompts for fill-in-the-middle, as each family documents them."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vmm_server.prompt.insert import can_insert, insert_end_tokens, insert_tokens


def byte_level(*special: str, bos: str | None = None) -> Tokenizer:
    """Bytes, special tokens, and a BOS token before every text if there is one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (*special, *([bos] if bos else []))])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def sentencepiece(*special: str) -> Tokenizer:
    """As Llama 2's: a blank goes before every text."""
    words = ["<unk>", "<s>", "▁", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdef"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", *special)])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return tokenizer


def spelt(tokenizer: Tokenizer, ids: tuple[int, ...] | None) -> str:
    assert ids is not None
    return " ".join(str(tokenizer.id_to_token(token)) for token in ids)


@pytest.mark.parametrize(
    ("tokenizer", "prompt"),
    [
        (
            byte_level("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
            "<|fim_prefix|> a b <|fim_suffix|> c d <|fim_middle|>",
        ),
        (
            byte_level("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
            "<fim_prefix> a b <fim_suffix> c d <fim_middle>",
        ),
        (
            byte_level("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", bos="<BOS>"),  # DeepSeek-Coder
            "<BOS> <｜fim▁begin｜> a b <｜fim▁hole｜> c d <｜fim▁end｜>",
        ),
        (
            sentencepiece("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # Code Llama
            "<s> ▁<PRE> ▁ a b ▁<SUF> c d ▁<MID>",
        ),
        (sentencepiece("[PREFIX]", "[SUFFIX]"), "<s> [SUFFIX] c d [PREFIX] ▁ a b"),  # Codestral
    ],
)
def test_each_family_has_its_own_order(tokenizer: Tokenizer, prompt: str) -> None:
    assert spelt(tokenizer, insert_tokens(tokenizer, "ab", "cd")) == prompt
    assert can_insert(tokenizer.get_vocab())


def test_nothing_may_come_before_or_after() -> None:
    tokenizer = byte_level("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert spelt(tokenizer, insert_tokens(tokenizer, "", "")) == "<fim_prefix> <fim_suffix> <fim_middle>"
    glued = sentencepiece("[PREFIX]", "[SUFFIX]")
    assert spelt(glued, insert_tokens(glued, "a", "")) == "<s> [SUFFIX] [PREFIX] ▁ a"


def test_a_model_without_such_tokens_cannot() -> None:
    tokenizer = byte_level("<fim_prefix>", "<fim_suffix>")
    assert insert_tokens(tokenizer, "a", "b") is None
    assert insert_end_tokens(tokenizer) == ()
    assert not can_insert(tokenizer.get_vocab())
    assert not can_insert(())


def test_what_ends_the_gap_beside_the_models_eos() -> None:
    code_llama = sentencepiece("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    assert insert_end_tokens(code_llama) == (code_llama.token_to_id("▁<EOT>"),)
    assert insert_end_tokens(byte_level("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")) == ()
