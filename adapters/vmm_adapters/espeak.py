"""eSpeak NG's reading of a text, through its library (speak_lib.h); the package `espeakng-loader` or the system has it.

The library has one state for a whole process, its voice among it, so a lock is held from the choice of a voice to the
last clause that it reads.
"""

import ctypes
import ctypes.util
import threading
from functools import cache
from typing import Any

from vmm_adapters.errors import RuntimeFailed, RuntimeMissing

TIE = "^"
"""Stands between the letters of one sound: `t^ʃ`."""
_PHONEMES = 0x02 | 0x80 | ord(TIE) << 8
"""espeak_TextToPhonemes' mode: IPA, with ties."""
_UTF8 = 1
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
"""espeak_Initialize's option: say that the data is missing, and not end the process."""
_LOCK = threading.Lock()


class EspeakPhonemizer:
    """Implements `vmm_adapters.base.Phonemizer`. Built by `load_phonemizer`."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __call__(self, text: str, language: str) -> str:
        """See `Phonemizer`; IPA with a `TIE` inside affricates and diphthongs, and `ˈ` and `ˌ` before stressed vowels.

        Punctuation is not told: clauses are joined by a space.
        """
        pointer = ctypes.c_char_p(text.replace("\0", " ").encode(errors="replace"))
        clauses: list[str] = []
        with _LOCK:
            if self._library.espeak_SetVoiceByName(language.encode()):
                raise RuntimeFailed(f"eSpeak NG has no voice {language!r}")
            while pointer.value:
                read = self._library.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, _PHONEMES)
                clauses.append((read or b"").decode())
        return " ".join(filter(None, (clause.strip() for clause in clauses)))


@cache
def load_phonemizer() -> EspeakPhonemizer:
    """The library, initialised, which is done once in a process.

    Raises `RuntimeMissing` where there is none, `RuntimeFailed` where its data is missing.
    """
    path, data = _find()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeFailed(f"eSpeak NG cannot be loaded: {error}") from error
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    with _LOCK:
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT) < 0:
            raise RuntimeFailed(
                f"{path}: eSpeak NG's data is missing", hint="install espeak-ng-data, or espeak-ng anew"
            )
    return EspeakPhonemizer(library)


def _find() -> tuple[str, bytes | None]:
    """The library, and where its data is if it does not know that by itself."""
    try:
        import espeakng_loader
    except ModuleNotFoundError:
        if path := ctypes.util.find_library("espeak-ng"):
            return path, None
        raise RuntimeMissing(
            "text is turned into phonemes by eSpeak NG, which is not installed",
            hint="pip install 'vmm-server[speech]', or install espeak-ng on this system",
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path().encode()
