"""How an answer comes onto the terminal: its thinking apart, its words whole, its timings after it."""

import shutil
import sys
from collections.abc import Mapping
from typing import Any

import click

from vmm_server.cli.word_wrap import WordWrap


def terminal_columns() -> int | None:
    """How wide the terminal is that stdout goes to; `None` where it goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class AnswerPrinter:
    """Prints one answer piece by piece.

    On a terminal thinking is grey and lines break between words. Elsewhere (`columns` is `None`) the answer goes to
    stdout as it came, and thinking to stderr: a file or a program that reads the output gets the answer alone.
    """

    def __init__(self, *, columns: int | None, word_wrap: bool, hide_thinking: bool) -> None:
        self._is_terminal = columns is not None
        self._wrap = WordWrap(columns) if columns is not None and word_wrap else None
        self._hide_thinking = hide_thinking
        self._is_thinking = False
        self._has_answered = False

    def thinking(self, text: str) -> None:
        """Print a piece of thinking."""
        if self._hide_thinking or not text:
            return
        if not self._is_thinking:
            self._is_thinking = True
            self._think("Thinking...\n")
        self._think(text)

    def content(self, text: str) -> None:
        """Print a piece of the answer."""
        if text:
            self._end_thinking()
            self._has_answered = True
            self._write(text)

    def end(self) -> None:
        """End the line, and on a terminal leave one free."""
        self._end_thinking()
        if self._has_answered:
            click.echo("\n" if self._is_terminal else "")

    def _end_thinking(self) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._think("\n...done thinking.\n\n")

    def _think(self, text: str) -> None:
        if self._is_terminal:
            self._write(text, fg="bright_black")
        else:
            click.echo(text, nl=False, err=True)

    def _write(self, text: str, fg: str | None = None) -> None:
        wrapped = self._wrap.feed(text) if self._wrap else text
        click.secho(wrapped, nl=False, fg=fg, reset=fg is not None, color=self._is_terminal)
        sys.stdout.flush()


def format_timings(last: Mapping[str, Any]) -> str:
    """The final object of a stream in words, as `ollama run --verbose` has them."""
    seconds = {key: last.get(f"{key}_duration", 0) / 1e9 for key in ("total", "load", "prompt_eval", "eval")}
    lines = [("total duration", f"{seconds['total']:.3f} s"), ("load duration", f"{seconds['load']:.3f} s")]
    for key, label in (("prompt_eval", "prompt eval"), ("eval", "eval")):
        count = last.get(f"{key}_count", 0)
        lines.append((f"{label} count", f"{count} tokens"))
        lines.append((f"{label} duration", f"{seconds[key]:.3f} s"))
        if seconds[key]:
            lines.append((f"{label} rate", f"{count / seconds[key]:.1f} tokens/s"))
    if num_drafts := last.get("draft_count", 0):
        lines.append(("drafts accepted", f"{last.get('draft_accepted_count', 0)} of {num_drafts} tokens"))
    return "\n".join(f"{label + ':':<22}{value}" for label, value in lines)
