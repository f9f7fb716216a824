"""Phonemes in Kokoro's letters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.audio.kokoro import respell, to_phonemes


@pytest.mark.parametrize(
    ("ipa", "letters"),
    [
        ("həlˈo^ʊ wˈɜːld", "həlˈO wˈɜɹld"),
        ("lˈa^ɪf ɪz lˈa^ɪk ɐ bˈɑːks ʌv t^ʃˈɑːkləts", "lˈIf ɪz lˈIk ə bˈɑks ʌv ʧˈɑkləts"),
        ("mˈɪstɚ d^ʒˈe^ɪ wˈɛðɚɹ ɪz", "mˈɪstəɹ ʤˈA wˈɛðəɹ ɪz"),
        ("bˈɑːɾə^l bˈʌʔn̩ bˈɔ^ɪ na^ʊ", "bˈɑTᵊl bˈʌtn bˈY nW"),
        ("fˈɔː^ɹ", "fˈɔɹ"),
    ],
)
def test_american_english(ipa: str, letters: str) -> None:
    assert respell(ipa, "en-us") == letters


def test_british_english_keeps_its_long_vowels() -> None:
    assert respell("həlˈə^ʊ wˈɜːld ðˈe^ə nˌi^ə", "en") == "həlˈQ wˈɜːld ðˈɛː nˌɪə"


def test_other_languages_lose_no_more_than_the_ties() -> None:
    assert respell("t^ʃˈao bˈɛlla", "it") == "ʧˈao bˈɛlla"
    assert respell("bɔ̃ʒˈuʁ tulmˈɔ̃d", "fr") == "bɔ̃ʒˈuʁ tulmˈɔ̃d"


@pytest.mark.parametrize(
    ("sentence", "phonemes"),
    [
        ("Hello, world!", "<Hello>, <world>!"),
        ("Mr. Smith paid $3.14 (twice).", "<Mr. Smith paid $3.14> (<twice>)."),
        ("‘Go’ — he said - “now”...", "<'Go'> — <he said> — “<now>”…"),
        ("¿Qué tal?", "<Qué tal>?"),
        ("好，走。", "<好>, <走>."),
        ('He said "go."', '<He said> "<go>."'),
        ("At 10:30, v1.2!", "<At 10:30>, <v1.2>!"),
        ("...", "…"),
        ("🙂", ""),
    ],
)
def test_punctuation_stays_where_it_is(sentence: str, phonemes: str) -> None:
    assert to_phonemes(sentence, "es", lambda words, language: f"<{words}>") == phonemes


@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    phonemes = to_phonemes(text, "en-us", lambda words, language: words)
    assert phonemes == " ".join(phonemes.split())
