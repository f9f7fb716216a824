"""Joined deltas are the decoded tokens, cut before the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from vmm_server.engine.stopping import AnswerText, Detokenizer, StopStrings, special_token_ids


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """As Llama 2's: ▁ for spaces, bytes for what is not in the vocabulary, one leading space dropped."""
    words = ["<unk>", "<s>", "▁", "▁Hello", "▁world", "lo", "!", "▁▁", "é"]
    pieces = words + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def stream(tokenizer: Tokenizer, token_ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, special_token_ids(tokenizer), prompt or [])
    return [detokenizer.push(token_id) for token_id in token_ids] + [detokenizer.flush()]


# Runs of the bytes that make UTF-8 hard, whole characters, and special tokens in between.
byte_tokens = st.lists(
    st.one_of(
        st.integers(0, 260).map(lambda token_id: [token_id]),
        st.sampled_from([0x80, 0xBF, 0xC3, 0xE4, 0xF0, 0x9F]).map(lambda byte: [byte] * 5),
        st.characters(codec="utf-8").map(lambda character: list(character.encode())),
        st.just([260] * 9),
    ),
    max_size=30,
).map(lambda parts: [token_id for part in parts for token_id in part])


@given(byte_tokens)
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@given(st.text(max_size=60))
def test_no_half_character_is_ever_shown(tokenizer: Tokenizer, text: str) -> None:
    shown = ""
    for piece in stream(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids):
        shown += piece
        assert text.startswith(shown)


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, [*"a你".encode(), ord("b")]) == ["a", "", "", "你", "b", ""]


def test_a_broken_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, [ord("a"), 0xE4]) == ["a", "", "\ufffd"]


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, [257, ord("a"), 260]) == ["", "a", "", ""]


def test_special_tokens_that_mean_something_are_shown(tokenizer: Tokenizer) -> None:
    """A tool call's marker, in the middle of a character that never becomes whole too."""
    detokenizer = Detokenizer(tokenizer, special_token_ids(tokenizer) - {259}, [257, 259])
    pieces = [detokenizer.push(token_id) for token_id in (259, ord("a"), 260, 0xE4, 259, ord("b"))]
    assert pieces == ["<|tool|>", "a", "", "", "\ufffd<|tool|>", "b"]


@given(st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 1]), max_size=60))
def test_sentencepiece_pieces_join_to_the_decoded_text(sentencepiece: Tokenizer, token_ids: list[int]) -> None:
    assert "".join(stream(sentencepiece, token_ids)) == sentencepiece.decode(token_ids)


@given(st.text(alphabet="é€你🙂 \x01", max_size=20))
def test_byte_fallback_characters_join(sentencepiece: Tokenizer, text: str) -> None:
    token_ids = [9 + byte for byte in text.encode()]
    assert "".join(stream(sentencepiece, token_ids)) == sentencepiece.decode(token_ids)


@given(st.text(alphabet="é🙂", max_size=9), st.text(alphabet="é🙂a", max_size=9))
def test_byte_fallback_goes_on_after_a_prompt(sentencepiece: Tokenizer, prompt: str, text: str) -> None:
    before, token_ids = ([9 + byte for byte in part.encode()] for part in (prompt, text))
    assert "".join(stream(sentencepiece, token_ids, before)) == text


def test_only_the_start_of_the_whole_text_loses_its_space(sentencepiece: Tokenizer) -> None:
    assert stream(sentencepiece, [3, 4]) == ["Hello", " world", ""]
    assert stream(sentencepiece, [4, 6], prompt=[1, 3]) == [" world", "!", ""]


def test_cost_of_a_token_does_not_grow(tokenizer: Tokenizer) -> None:
    lengths = []

    class Counting:
        def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
            lengths.append(len(token_ids))
            return str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    detokenizer = Detokenizer(Counting(), frozenset([260]), list(range(200)))  # type: ignore[arg-type]
    for token_id in [0x80, 260] * 500:
        detokenizer.push(token_id)
    assert max(lengths) <= 32
    assert len(lengths) < 1_500


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Reference: read one character at a time until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.lists(st.text(alphabet="ab", max_size=6), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3),
)
def test_text_is_cut_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    buffer = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += buffer.push(piece)
        if buffer.found is not None:
            break
    is_stopped = buffer.found is not None
    shown += buffer.flush()
    assert (shown, is_stopped) == cut("".join(pieces), stops)


@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_no_more_is_held_back_than_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    buffer, shown = StopStrings(stops), ""
    for i, character in enumerate(text):
        shown += buffer.push(character)
        if buffer.found is not None:
            break
        held = text[len(shown) : i + 1]
        assert any(stop.startswith(held) for stop in stops)
        assert len(held) <= max(map(len, stops)) - 1


@given(byte_tokens, st.lists(st.text(alphabet="ab\ufffd", min_size=1, max_size=3), max_size=2))
def test_an_answer_is_the_decoded_text_cut_at_a_stop(
    tokenizer: Tokenizer, token_ids: list[int], stops: list[str]
) -> None:
    answer = AnswerText(Detokenizer(tokenizer, special_token_ids(tokenizer)), stops)
    shown = ""
    for token_id in token_ids:
        shown += answer.push(token_id)
        if answer.is_stopped:
            break
    shown += answer.flush()
    assert shown == cut(tokenizer.decode(token_ids), stops)[0]


def test_a_stop_string_passes_while_it_may_not_stop(tokenizer: Tokenizer) -> None:
    answer = AnswerText(Detokenizer(tokenizer, frozenset()), ["b"])
    assert [answer.push(ord("b"), may_stop=False), answer.push(ord("a")), answer.push(ord("b"))] == ["b", "a", ""]
    assert answer.is_stopped
