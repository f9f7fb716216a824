"""Phonemes as Kokoro was trained to read them: one letter a sound, punctuation and stress among them.

The letters are those of misaki, Kokoro's own G2P (hexgrad/misaki, EN_PHONES.md); eSpeak NG's IPA is respelt in them.
"""

import re
from collections.abc import Callable, Mapping

LANGUAGES: Mapping[str, str] = {
    "a": "en-us",
    "b": "en",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "p": "pt-br",
}
"""The first letter of a voice's name → eSpeak NG's name of the language that it speaks."""
UNSPOKEN: Mapping[str, str] = {"j": "Japanese", "z": "Mandarin"}
"""Those whose phonemes eSpeak NG does not tell as Kokoro needs them."""

_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "«": "“", "»": "”", "–": "—", "。": ". ", "，": ", ", "！": "! ", "？": "? ", "：": ": "}
    | {"；": "; ", "、": ", ", "（": " (", "）": ") ", "「": "“", "」": "”", "¿": "", "¡": ""}
)
_MARKS = re.compile(r"([;:,!?…]+(?=[\s\"”)]|$)|\.+(?=[\"”)\s]*$)|—|(?<=\s)-(?=\s)|[“”\"()])")
"""Punctuation that is heard. A full stop inside a sentence is that of an abbreviation or a number."""

_DIPHTHONGS = (("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("ɔ^ɪ", "Y"))
_AFFRICATES = (("d^ʒ", "ʤ"), ("t^ʃ", "ʧ"), ("d^z", "ʣ"), ("t^s", "ʦ"), ("t^ɕ", "ʨ"), ("d^ʑ", "ʥ"))
_ENGLISH = (
    *(("ʔˌn\u0329", "ʔn"), ("ʔn\u0329", "ʔn"), ("ə^l", "ᵊl"), ("ʲo", "jo"), ("ʲə", "jə"), ("ʲ", "")),
    *(
        ("ɚɹ", "əɹ"),
        ("ɚ", "əɹ"),
        ("r", "ɹ"),
        ("x", "k"),
        ("ç", "k"),
        ("ɐ", "ə"),
        ("ɬ", "l"),
        ("\u0303", ""),
        ("e", "A"),
    ),
)
_AMERICAN = (("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""))
_BRITISH = (("A^ə", "ɛː"), ("i^ə", "ɪə"), ("iə", "ɪə"), ("ə^ʊ", "Q"))
_FLAPS = (("o", "ɔ"), ("ɾ", "T"), ("ʔ", "t"), ("^", ""))
_OTHERS = (("o^ʊ", "O"), ("ə^ʊ", "Q"), ("s^s", "S"), ("^", ""), ("-", ""))
_SPELLING: Mapping[str, tuple[tuple[str, str], ...]] = {
    "en-us": (*_DIPHTHONGS, *_AFFRICATES, *_ENGLISH, *_AMERICAN, *_FLAPS),
    "en": (*_DIPHTHONGS, *_AFFRICATES, *_ENGLISH, *_BRITISH, *_FLAPS),
}
"""What is replaced, in this order, with ties (`^`) between the letters of one sound."""


def to_phonemes(sentence: str, language: str, phonemize: Callable[[str, str], str]) -> str:
    """A sentence as Kokoro reads it; `phonemize` tells eSpeak NG's IPA, with ties, of words in a language."""
    text = sentence.replace("...", "…").translate(_TYPOGRAPHY)
    spoken: list[str] = []
    for index, piece in enumerate(_MARKS.split(text)):
        if index % 2:
            spoken.append("—" if piece == "-" else piece)
        elif any(map(str.isalnum, piece)):
            words = respell(phonemize(piece.strip(), language), language)
            spoken.append(f"{' ' * piece[0].isspace()}{words}{' ' * piece[-1].isspace()}")
        else:
            spoken.append(" " if piece else "")
    return " ".join("".join(spoken).split())


def respell(ipa: str, language: str) -> str:
    """eSpeak NG's IPA in Kokoro's letters."""
    for old, new in _SPELLING.get(language, (*_DIPHTHONGS, *_AFFRICATES, *_OTHERS)):
        ipa = ipa.replace(old, new)
    return re.sub(r"(\S)\u0329", r"ᵊ\1", ipa).replace("\u0329", "")
