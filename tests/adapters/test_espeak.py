"""eSpeak NG's library, played by a fake; and the real one, where it is installed."""

import ctypes.util
from importlib.util import find_spec
from typing import Any

import pytest

from vmm_adapters import catalog
from vmm_adapters.errors import RuntimeFailed, RuntimeMissing
from vmm_adapters.espeak import EspeakPhonemizer

IS_HERE = find_spec("espeakng_loader") is not None or ctypes.util.find_library("espeak-ng") is not None


class Library:
    """Reads a clause a call, as eSpeak NG does: up to and with the next comma or full stop. It knows one voice."""

    def espeak_SetVoiceByName(self, name: bytes) -> int:  # noqa: N802 - its own name
        return 0 if name == b"en-us" else 2

    def espeak_TextToPhonemes(self, pointer: Any, mode: int, phonemes: int) -> bytes | None:  # noqa: N802
        assert (mode, phonemes) == (1, 0x02 | 0x80 | ord("^") << 8)
        text: bytes = pointer._obj.value
        end = next((index for index, byte in enumerate(text) if byte in b",."), len(text) - 1)
        clause, rest = text[: end + 1], text[end + 1 :]
        pointer._obj.value = rest or None
        return clause.rstrip(b",.").upper() or None


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [("one, two. three", "ONE TWO THREE"), ("", ""), (",,", ""), ("a\0b", "A B"), ("caf\udc80", "CAF?")],
)
def test_clauses_are_joined(text: str, phonemes: str) -> None:
    assert EspeakPhonemizer(Library())(text, "en-us") == phonemes


def test_a_language_that_it_does_not_know_is_an_error() -> None:
    with pytest.raises(RuntimeFailed, match="'tlh'"):
        EspeakPhonemizer(Library())("one", "tlh")


@pytest.mark.skipif(IS_HERE, reason="eSpeak NG is installed")
def test_where_it_is_not_installed_the_error_says_how_to_get_it() -> None:
    with pytest.raises(RuntimeMissing) as error:
        catalog.load_phonemizer("espeak")
    assert error.value.hint is not None
    assert "vmm-server[speech]" in error.value.hint


@pytest.mark.runtime
@pytest.mark.skipif(not IS_HERE, reason="needs eSpeak NG: the extra `speech`, or the system's espeak-ng")
def test_the_real_one_reads_several_languages() -> None:
    phonemize = catalog.load_phonemizer("espeak")
    assert phonemize("Mr. Smith, hello", "en-us") == "mˈɪstɚ smˈɪθ həlˈo^ʊ"
    assert phonemize("hola", "es") == "ˈola"
    with pytest.raises(RuntimeFailed, match="klingonish"):
        phonemize("one", "klingonish")
    assert catalog.load_phonemizer("espeak") is phonemize
