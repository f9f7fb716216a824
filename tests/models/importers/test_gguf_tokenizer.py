"""GGUF tokenisers: against llama.cpp's ids, against their definition, and with metadata that lies."""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from vmm_server.errors import CorruptFile, UnsupportedArchitecture
from vmm_server.models.importers.gguf_pretokenizers import PRE_TOKENIZERS
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_tokenizer import TokenizerInfo, write_tokenizer

DATA = Path(__file__).parents[2] / "data"
GOLDEN_BYTE_LEVEL = json.loads((DATA / "tokenizer_byte_level.json").read_text(encoding="utf-8"))
GOLDEN_SENTENCEPIECE = json.loads((DATA / "tokenizer_sentencepiece.json").read_text(encoding="utf-8"))
GOLDEN_SMOLLM2 = json.loads((DATA / "tokenizer_smollm2.json").read_text(encoding="utf-8"))

LETTERS_WITH_MARKS = ["cafe\u0301 nai\u0308ve", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก"]
UNICODE_SPACES = ["a\u00a0b\u2003c\u3000d", "\u2028line\u2029sep"]
ORIGINAL_EXPRESSION = dict.fromkeys(
    ("gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie", "tekken"), LETTERS_WITH_MARKS
) | {"deepseek-coder": UNICODE_SPACES}
"""Texts on which llama.cpp's rewritten expression differs from the model's own, which is the one used here."""

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_CHARACTERS = sorted(pre_tokenizers.ByteLevel.alphabet())

Metadata = dict[str, Any]
Build = Callable[[Mapping[str, object]], tuple[Tokenizer, TokenizerInfo]]


@pytest.fixture(name="build")
def _build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    def build(metadata: Mapping[str, object]) -> tuple[Tokenizer, TokenizerInfo]:
        folder = tmp_path_factory.mktemp("tokenizer")
        info = write_tokenizer(metadata, folder)
        return Tokenizer.from_file(str(folder / "tokenizer.json")), info

    return build


def byte_level(pre: str = "gpt-2", *, tokens: tuple[str, ...] = (), **more: object) -> Metadata:
    """All bytes, then `tokens`; no merges."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*BYTE_CHARACTERS, *tokens],
        "tokenizer.ggml.merges": [],
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def sentencepiece(pieces: Mapping[str, float], **more: object) -> Metadata:
    """<unk>, <s>, </s>, the byte tokens, then `pieces` with their scores."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *pieces]
    metadata: Metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "tokenizer.ggml.scores": [0.0] * 259 + list(pieces.values()),
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_byte_level_ids_are_llama_cpps(build: Build, pre: str) -> None:
    group = next(group for group in GOLDEN_BYTE_LEVEL["groups"] if pre in group["names"])
    tokenizer, info = build(GOLDEN_BYTE_LEVEL["metadata"] | {"tokenizer.ggml.pre": pre})
    assert info.add_bos is group["add_bos"]
    for text, expected in zip(GOLDEN_BYTE_LEVEL["texts"], group["ids"], strict=True):
        if text not in ORIGINAL_EXPRESSION.get(pre, []):
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text


@pytest.mark.parametrize("variant", sorted(GOLDEN_SENTENCEPIECE["variants"]))
def test_sentencepiece_ids_are_llama_cpps(build: Build, variant: str) -> None:
    tokenizer, _ = build(GOLDEN_SENTENCEPIECE["metadata"] | GOLDEN_SENTENCEPIECE["variants"][variant])
    for text, expected in GOLDEN_SENTENCEPIECE["ids"][variant]:
        assert tokenizer.encode(text).ids == expected, text


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 2026!  x\n", ["it", "'s", " 2026", "!", " ", " x", "\n"]),
        ("smollm", "it's 2026", ["it", "'s", " ", "2", "0", "2", "6"]),
        ("llama-bpe", "IT'S 2026!\n\n x", ["IT", "'S", " ", "202", "6", "!\n\n", " x"]),
        ("qwen2", "IT'S 2026!\n x", ["IT", "'S", " ", "2", "0", "2", "6", "!\n", " x"]),
        ("tekken", "camelCase HTTPServer École", ["camel", "Case", " HTTPServer", " École"]),
        ("gpt-4o", "don't HTTPServer 1234", ["don't", " HTTPServer", " ", "123", "4"]),
        ("deepseek-v3", "12345 你好abc", ["123", "45", " ", "你好", "abc"]),
        ("falcon", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("qwen35", "नमस्ते", ["नमस्ते"]),
        ("bloom", "a, b", ["a", ",", " b"]),
    ],
)
def test_text_is_cut_as_the_pre_tokenizer_says(pre: str, text: str, pieces: list[str]) -> None:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre].patterns]
    assert [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)] == pieces


def test_a_word_that_is_a_token_is_taken_whole_only_where_merges_are_ignored(build: Build) -> None:
    for pre, expected in (("llama-bpe", ["abc"]), ("qwen2", ["a", "b", "c"])):
        tokenizer, _ = build(byte_level(pre, tokens=("abc",), add_bos_token=False))
        assert tokenizer.encode("abc").tokens == expected


def _in_memory(metadata: Mapping[str, object]) -> Tokenizer:
    with TemporaryDirectory() as folder:
        write_tokenizer(metadata, Path(folder))
        return Tokenizer.from_file(f"{folder}/tokenizer.json")


@pytest.fixture(scope="module", name="byte_level_tokenizers")
def _byte_level_tokenizers() -> list[Tokenizer]:
    golden = GOLDEN_BYTE_LEVEL["metadata"]
    return [_in_memory(golden | {"tokenizer.ggml.pre": group["names"][0]}) for group in GOLDEN_BYTE_LEVEL["groups"]]


@given(text=st.text().filter(lambda text: "<" not in text))
def test_byte_level_decoding_undoes_encoding(byte_level_tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in byte_level_tokenizers:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module", name="sentencepiece_tokenizers")
def _sentencepiece_tokenizers() -> list[Tokenizer]:
    pieces = {"▁": -1.0, "▁▁": -2.0, "ab": -3.0, "a": -4.0, "b": -5.0, "▁a": -6.0}
    return [_in_memory(sentencepiece(pieces, add_space_prefix=prefix)) for prefix in (True, False)]


@given(text=st.text(st.characters(exclude_characters="▁<", codec="utf-8")) | st.text("ab "))
def test_sentencepiece_decoding_undoes_encoding(sentencepiece_tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in sentencepiece_tokenizers:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def _join_best_neighbours(text: str, scores: Mapping[str, float]) -> list[str]:
    """llama.cpp's definition, the slow way: the best-scoring neighbours first, of equal ones the leftmost."""
    symbols = list(text)
    while candidates := [
        (-scores[left + right], index)
        for index, (left, right) in enumerate(pairwise(symbols))
        if left + right in scores
    ]:
        _, index = min(candidates)
        symbols[index : index + 2] = ["".join(symbols[index : index + 2])]
    return symbols


def _overlaps_itself(piece: str) -> bool:
    return any(piece.startswith(piece[-length:]) for length in range(1, len(piece)))


PIECES = st.text("abc", min_size=2, max_size=5).filter(lambda piece: not _overlaps_itself(piece))


@given(st.lists(PIECES, unique=True, max_size=12), st.lists(st.text("abc", max_size=16), min_size=1, max_size=5))
def test_merges_follow_the_scores(pieces: list[str], texts: list[str]) -> None:
    scores = {piece: -float(index) for index, piece in enumerate(pieces)} | dict.fromkeys("abc", -100.0)
    tokenizer = _in_memory(sentencepiece(scores, add_space_prefix=False))
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        assert tokens == _join_best_neighbours(text, scores)


def test_special_tokens_are_cut_out_and_what_follows_has_its_own_prefix(build: Build) -> None:
    metadata = sentencepiece({"▁": -1.0, "x": -2.0, "<go>": -1000.0})
    metadata["tokenizer.ggml.token_type"][-1] = 4
    tokenizer, _ = build(metadata)
    assert tokenizer.encode("x<s>x<go>x").tokens == ["<s>", "▁", "x", "<s>", "▁", "x", "<go>", "▁", "x"]
    assert tokenizer.decode(tokenizer.encode("x<go>").ids) == "x<go>"  # the user's own token is text, <s> is not


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ["x"]),
        ({"add_bos_token": True}, ["<s>", "x"]),
        ({"add_eos_token": True}, ["x", "</s>"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>", "x", "</s>"]),
    ],
)
def test_bos_and_eos_are_added_when_the_file_says_so(build: Build, flags: Metadata, expected: list[str]) -> None:
    ids = {"bos_token_id": 256, "eos_token_id": 257, "token_type": [1] * 256 + [3, 3]}
    tokenizer, info = build(byte_level(tokens=("<s>", "</s>"), **ids, **flags))
    assert tokenizer.encode("x").tokens == expected
    assert tokenizer.encode("x", add_special_tokens=False).tokens == ["x"]
    assert info.add_bos is flags.get("add_bos_token", False)


@pytest.mark.parametrize(
    ("tokens", "ids", "expected"),
    [
        (("a1", "<|im_end|>", "<|endoftext|>"), {"eos_token_id": 256}, ("a1", "<|im_end|>", "<|endoftext|>")),
        (("<|eot_id|>", "<|eom_id|>", "end"), {"eos_token_id": 258}, ("end", "<|eot_id|>", "<|eom_id|>")),
        (("one", "two", "three"), {"eos_token_id": 258, "eot_token_id": 256}, ("three", "one")),
        (("<end_of_turn>", "<eos>"), {"eos_token_id": 257}, ("<eos>", "<end_of_turn>")),
        (("<|file_sep|>", "<|fim_pad|>", "pad"), {"fim_pad_token_id": 258}, ("<|file_sep|>", "pad")),
        (("<|end|>", "<|return|>", "<|call|>"), {"eos_token_id": 257}, ("<|return|>", "<|call|>")),
        (("nothing",), {}, ()),
        (("nothing",), {"eos_token_id": 0xFFFFFFFF}, ()),
    ],
)
def test_every_token_that_ends_a_generation_is_found(
    build: Build, tokens: tuple[str, ...], ids: Metadata, expected: tuple[str, ...]
) -> None:
    tokenizer, info = build(byte_level(tokens=tokens, **ids))
    assert tuple(tokenizer.id_to_token(index) for index in info.eos_token_ids) == expected


def test_a_token_that_ends_a_generation_is_special_whatever_its_type_says(build: Build) -> None:
    tokenizer, _ = build(byte_level(tokens=("<|im_end|>",), token_type=[1] * 257))
    assert tokenizer.encode("x<|im_end|>").ids[-1] == 256
    assert tokenizer.decode([256]) == ""


def test_phi3_strips_the_space_after_its_special_tokens(build: Build) -> None:
    metadata = byte_level(tokens=("<|user|>",), token_type=[*[1] * 256, 3])
    space, x = (BYTE_CHARACTERS.index(character) for character in "Ġx")
    assert build(metadata)[0].encode("<|user|> x").ids == [256, space, x]
    assert build(metadata | {"general.name": "Phi-3 mini"})[0].encode("<|user|> x").ids == [256, x]
    # Phi-4's vocabulary is no SentencePiece, and keeps it; Phi-3.5's name does not tell
    assert build(metadata | {"general.architecture": "phi3"})[0].encode("<|user|> x").ids == [256, space, x]
    pieces = sentencepiece({"▁": -1.0, "▁x": -2.0, "x": -3.0, "<|user|>": 0.0}, add_space_prefix=False)
    pieces["tokenizer.ggml.token_type"][-1] = 3
    old, new = (build(pieces | {"general.architecture": name})[0] for name in ("llama", "phi3"))
    user, spaced, bare = (old.token_to_id(text) for text in ("<|user|>", "▁x", "x"))
    assert old.encode("<|user|> x", add_special_tokens=False).ids == [user, spaced]
    assert new.encode("<|user|> x", add_special_tokens=False).ids == [user, bare]


def test_the_folder_says_what_the_file_says(tmp_path: Path) -> None:
    ids = {"bos_token_id": 256, "eos_token_id": 257, "padding_token_id": 257, "token_type": [1] * 256 + [3, 3]}
    metadata = byte_level("llama-bpe", tokens=("<s>", "🏁"), **ids) | {
        "general.architecture": "llama",
        "llama.context_length": 4096,
        "tokenizer.chat_template": "{{ messages }}\n",
    }
    info = write_tokenizer(metadata, tmp_path)
    assert info == TokenizerInfo(256, (257,), 257, 258, "{{ messages }}\n", add_bos=True)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}\n"
    special = {"bos_token": "<s>", "eos_token": "🏁", "pad_token": "🏁"}
    assert json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8")) == special
    assert json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")) == special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def test_the_same_metadata_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        write_tokenizer(GOLDEN_SENTENCEPIECE["metadata"] | {"tokenizer.chat_template": "x"}, folder)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


PIECE = {"▁": -1.0}
LYING = {
    "tokenizer.ggml.model is missing": {"tokenizer.ggml.tokens": ["a"]},
    "tokenizer.ggml.model is int": {"tokenizer.ggml.model": 1},
    "tokenizer.ggml.pre is missing": {**byte_level(), "tokenizer.ggml.pre": None},
    "tokenizer.ggml.tokens is missing": {"tokenizer.ggml.model": "gpt2"},
    "tokenizer.ggml.tokens is empty": {**byte_level(), "tokenizer.ggml.tokens": []},
    "tokenizer.ggml.tokens is str": {**byte_level(), "tokenizer.ggml.tokens": "abc"},
    "tokenizer.ggml.tokens holds 'a' twice": byte_level(tokens=("a",)),
    "tokens[256] is not UTF-8": byte_level(tokens=("\udcff",)),
    "tokens[256] is bytes": byte_level(tokens=(b"x",)),  # type: ignore[arg-type]
    "token_type has 3 entries for 256 tokens": byte_level(token_type=[1, 1, 1]),
    "token_type has 257 entries": byte_level(token_type=[1] * 257),
    "token_type[0] is 9": byte_level(token_type=[9] * 256),
    "tokenizer.ggml.merges is missing": {**byte_level(), "tokenizer.ggml.merges": None},
    "merges[0] is 'a b', but 'ab' is not a token": byte_level(merges=["a b"]),
    "merges[0] is 'a zz', but 'zz' is not a token": byte_level(merges=["a zz"]),
    "merges[0] is 'ab', but 'ab' is not a token": byte_level(merges=["ab"]),
    "merges[1] is int": byte_level(tokens=("ab",), merges=["a b", 3]),
    "bos_token_id is 256, but there are 256 tokens": byte_level(bos_token_id=256),
    "eos_token_id is -5": byte_level(eos_token_id=-5),
    "eos_token_id is str": byte_level(eos_token_id="2"),
    "add_bos_token is int": byte_level(add_bos_token=1),
    "need a BOS token, but tokenizer.ggml.bos_token_id is missing": byte_level(add_bos_token=True),
    "need a EOS token": byte_level(add_eos_token=True),
    "BOS token ':'": byte_level(add_bos_token=True, bos_token_id=BYTE_CHARACTERS.index(":")),
    "tokenizer.ggml.scores is missing": {**sentencepiece(PIECE), "tokenizer.ggml.scores": None},
    "scores has 2 entries for 260 tokens": sentencepiece(PIECE, scores=[0.0, 1.0]),
    "scores[259] is nan": sentencepiece({"▁": float("nan")}),
    "lacks 1 of the 256 byte tokens, <0x41> first": {
        **sentencepiece(PIECE),
        "tokenizer.ggml.tokens": [
            "gone" if text == "<0x41>" else text for text in ["<unk>", "<s>", "</s>", *BYTE_TOKENS, "▁"]
        ],
    },
    "tokenizer.chat_template is int": {**byte_level(), "tokenizer.chat_template": 7},
}


@pytest.mark.parametrize("message", LYING)
def test_metadata_that_lies_is_refused_and_nothing_is_written(tmp_path: Path, message: str) -> None:
    with pytest.raises(CorruptFile) as refused:
        write_tokenizer(LYING[message], tmp_path)
    assert message in refused.value.message
    assert "\n" not in refused.value.message
    assert not list(tmp_path.iterdir())


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"'brand-new' is not supported; known are: .*smollm"):
        write_tokenizer(byte_level("brand-new"), tmp_path)


def test_an_unknown_tokenizer_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="'bert' is not supported; known are: gpt2, llama"):
        write_tokenizer({**byte_level(), "tokenizer.ggml.model": "bert"}, tmp_path)


@pytest.mark.runtime
def test_smollm2_ids_are_llama_cpps(build: Build, smollm2_gguf: Path) -> None:
    with GGUFFile(smollm2_gguf) as file:
        tokenizer, info = build(file.metadata)
    for text, expected in GOLDEN_SMOLLM2["ids"]:
        assert tokenizer.encode(text).ids == expected, text
    assert (info.bos_token_id, info.eos_token_ids, info.pad_token_id) == (1, (2, 0, 4), 2)
    assert info.vocab_size == 49152
    assert not info.add_bos


def _write_model_that_computes_nothing(folder: Path, vocab_size: int) -> None:
    """The least that onnxruntime-genai loads; it opens a tokeniser only beside a model."""
    floats, whole = TensorProto.FLOAT, TensorProto.INT64
    zeros = helper.make_tensor("zeros", floats, [1, 1, 1], [0.0])
    shape = helper.make_tensor("shape", whole, [3], [1, 1, vocab_size])
    ids = helper.make_tensor_value_info("input_ids", whole, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", floats, ["batch", "length", vocab_size])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["unused"], to=floats),
        helper.make_node("Expand", ["zeros", "shape"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "nothing", [ids], [logits], [zeros, shape])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    decoder = {
        "filename": "model.onnx",
        "inputs": {"input_ids": "input_ids"},
        "outputs": {"logits": "logits"},
    } | dict.fromkeys(("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads"), 1)
    model = {"type": "llama", "vocab_size": vocab_size, "context_length": 64, "decoder": decoder}
    model |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"max_length": 64}}))


def _check_onnxruntime_genai(metadata: Mapping[str, object], texts: list[str], folder: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this platform")
    _write_model_that_computes_nothing(folder, write_tokenizer(metadata, folder).vocab_size)
    theirs = genai.Tokenizer(genai.Model(str(folder)))
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in texts:
        expected = ours.encode(text, add_special_tokens=False).ids
        assert [int(index) for index in theirs.encode(text)] == expected, text


@pytest.mark.runtime
@pytest.mark.parametrize(
    "pre", ["gpt-2", "llama-bpe", "qwen2", "qwen35", "refact", "dbrx", "gpt-4o", "tekken", "deepseek-v3"]
)
def test_onnxruntime_genai_reads_byte_level_folders_alike(pre: str, tmp_path: Path) -> None:
    metadata = GOLDEN_BYTE_LEVEL["metadata"] | {"tokenizer.ggml.pre": pre}
    _check_onnxruntime_genai(metadata, GOLDEN_BYTE_LEVEL["texts"], tmp_path)


@pytest.mark.runtime
@pytest.mark.parametrize("prefix", [True, False])
def test_onnxruntime_genai_reads_sentencepiece_folders_alike(prefix: bool, tmp_path: Path) -> None:
    merged = ["▁h", "▁he", "ll", "▁hell", "▁hello", "▁w", "or", "▁wor"]
    words = {word: -float(index) for index, word in enumerate(merged)}
    metadata = sentencepiece(words | dict.fromkeys("▁helowr", -100.0), add_space_prefix=prefix)
    texts = ["hello", "hello world", " hello  hello", "well, hello\nhow 2026 é 🙂?", "<s>hello</s> hello", "▁"]
    _check_onnxruntime_genai(metadata, texts, tmp_path)


@pytest.mark.runtime
def test_onnxruntime_genai_reads_smollm2_alike(smollm2_gguf: Path, tmp_path: Path) -> None:
    with GGUFFile(smollm2_gguf) as file:
        _check_onnxruntime_genai(file.metadata, [text for text, _ in GOLDEN_SMOLLM2["ids"]], tmp_path)


@pytest.mark.parametrize("variant", sorted(GOLDEN_SENTENCEPIECE["variants"]))
def test_transformers_reads_the_folder_alike(tmp_path: Path, variant: str) -> None:
    write_tokenizer(GOLDEN_SENTENCEPIECE["metadata"] | GOLDEN_SENTENCEPIECE["variants"][variant], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text, expected in GOLDEN_SENTENCEPIECE["ids"][variant]:
        assert tokenizer(text)["input_ids"] == expected, text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
