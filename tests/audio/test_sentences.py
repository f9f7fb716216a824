"""Texts are spoken sentence by sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("Go", ["Go"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. J. Smith paid 3.14. He left.", ["Mr. J. Smith paid 3.14.", "He left."]),
        ("At 5 p.m. she slept. Then", ["At 5 p.m. she slept.", "Then"]),
        ('"Really?" he asked. "Yes."', ['"Really?"', "he asked.", '"Yes."']),
        ("Wait... what?!  Now…", ["Wait...", "what?!", "Now…"]),
        ("A heading\nA line\n\nAnother", ["A heading", "A line", "Another"]),
        ("走吧。好！", ["走吧。", "好！"]),
        ("v1.2.3 is out, see vmm.example/a?b=c now", ["v1.2.3 is out, see vmm.example/a?b=c now"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB .!?\n\"'…。", max_size=60))
def test_nothing_is_lost_but_white_space(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence.strip() == sentence != "" for sentence in sentences)
