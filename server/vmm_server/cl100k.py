"""Decoding token ids of OpenAI's cl100k_base: what clients send whose tokeniser is OpenAI's, whatever the model's is.

The table is the one file that tiktoken keeps: in its cache it is named by the sha1 of its address, elsewhere
cl100k_base.tiktoken. It is never fetched. Decoding is a look-up, so tiktoken itself is not needed for it.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from vmm_server.errors import SettingsError

FILES = ("9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "cl100k_base.tiktoken")
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""Of the file, as tiktoken has it."""
_SPECIAL = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


class Cl100k:
    """The table."""

    def __init__(self, tokens: dict[int, bytes]) -> None:
        self._tokens = tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; half a character becomes U+FFFD. Raises `KeyError` with an id that there is not."""
        return b"".join(self._tokens[token] for token in ids).decode("utf-8", "replace")


def read_cl100k(folder: Path | None, *, sha256: str = SHA256) -> Cl100k | None:
    """The table in `folder` (the setting tiktoken_dir); `None` when it is not there.

    Raises `SettingsError` for a file that cannot be read or is not OpenAI's.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None) if folder else None
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"tiktoken_dir: {path}: {error.strerror}", param="tiktoken_dir") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SettingsError(
            f"tiktoken_dir: {path} is not OpenAI's cl100k_base", param="tiktoken_dir", hint="fetch it again"
        )
    pairs = (line.split() for line in content.splitlines())
    return Cl100k({int(rank): base64.b64decode(token) for token, rank in pairs} | _SPECIAL)
