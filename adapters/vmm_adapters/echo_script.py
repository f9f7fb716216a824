"""What a scripted test model says: a model folder's `script.json`, for tests that need a cleverer model than an echo.

The file is a list of `{"when": […], "unless": […], "say": …}`. The first entry decides whose `when` texts all occur in
the conversation, from the start of the prompt to the last `<|assistant|>`, and none of whose `unless` texts does.

A mask may force a character that the script does not have (another space in JSON). So the model does not count what it
has said: it looks for the end of it in the script's text, and goes on from there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm_adapters.errors import UnsupportedModel

NO_THINKING = b"<think>\n\n</think>\n\n"
"""What the chat template has the model begin with when it must not think."""

_MAX_OVERLAP = 64
"""Bytes at the end of what was said that are looked for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer, and when to give it."""

    when: tuple[bytes, ...]
    unless: tuple[bytes, ...]
    say: bytes

    def matches(self, conversation: bytes) -> bool:
        """Whether this is the answer to it."""
        return all(text in conversation for text in self.when) and not any(text in conversation for text in self.unless)


@dataclass(frozen=True, slots=True)
class Script:
    """Answers, in the order in which they are tried."""

    entries: tuple[Entry, ...]

    def answer(self, conversation: bytes) -> bytes | None:
        """What to say, UTF-8; `None`: no entry matches."""
        return next((entry.say for entry in self.entries if entry.matches(conversation)), None)


def read_script(folder: Path) -> Script | None:
    """The folder's script; `None`: it has none. Raises `UnsupportedModel` for a file that is no script."""
    path = folder / "script.json"
    if not path.is_file():
        return None
    try:
        return Script(tuple(_entry(**entry) for entry in json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{path} is not a script: {error}") from error


def next_byte(answer: bytes, said: bytes) -> int | None:
    """The byte of `answer` that follows what was `said`; `None`: it is at its end, or nowhere in it."""
    if said.startswith(NO_THINKING):
        said = said.removeprefix(NO_THINKING)
        answer = answer.rpartition(b"</think>")[2].lstrip() if answer.startswith(b"<think>") else answer
    if answer.startswith(said):
        return answer[len(said)] if len(said) < len(answer) else None
    for size in range(min(len(said), _MAX_OVERLAP), 0, -1):
        if (found := answer.find(said[-size:])) >= 0:
            return answer[found + size] if found + size < len(answer) else None
    return None


def _entry(when: list[str], say: str, unless: Sequence[str] = ()) -> Entry:
    return Entry(tuple(map(str.encode, when)), tuple(map(str.encode, unless)), say.encode())
