"""Lines typed at a terminal: editing, a history in a file, pasted text with its line ends, an editor on Ctrl-G."""

import os
from pathlib import Path
from typing import Protocol

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = ">>> "
CONTINUED = "... "
_PLACEHOLDER = FormattedText([("fg:ansibrightblack", "Send a message (/? for help)")])


class LineReader(Protocol):
    """Asks for lines."""

    keeps_history: bool
    """Whether what is typed can be had again, also another day."""

    def __call__(self, prompt: str) -> str:
        """A line. Raises `EOFError` (Ctrl-D) and `KeyboardInterrupt` (Ctrl-C)."""


class TerminalReader:
    """A `LineReader` of the terminal."""

    def __init__(self, history: Path, *, keeps_history: bool = True) -> None:
        self.keeps_history = keeps_history
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)  # what people ask is theirs
        bindings = KeyBindings()

        @bindings.add("c-g")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        self._session: PromptSession[str] = PromptSession(
            history=_History(str(history), self), key_bindings=bindings, enable_suspend=True
        )

    def __call__(self, prompt: str) -> str:
        """A line, or several if they were pasted."""
        return self._session.prompt(prompt, placeholder=_PLACEHOLDER if prompt == PROMPT else "")


class _History(FileHistory):
    """A file that is written only while the reader keeps a history."""

    def __init__(self, filename: str, reader: TerminalReader) -> None:
        super().__init__(filename)
        self._reader = reader

    def append_string(self, string: str) -> None:
        if self._reader.keeps_history:
            super().append_string(string)

    def store_string(self, string: str) -> None:
        """Write a line, whole or not at all: a full disk ends no chat."""
        size = os.path.getsize(self.filename)
        try:
            super().store_string(string)
        except OSError as error:
            self._reader.keeps_history = False
            os.truncate(self.filename, size)
            click.echo(f"what is typed is not kept from now on: {error}", err=True)
