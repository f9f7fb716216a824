"""A conversation on the terminal."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory

from vmm_server.cli.client import Client
from vmm_server.errors import VMMError

HELP = '''/clear    forget the conversation so far
/help     this list
/bye      leave (or Ctrl-D)
"""       begin and end a message of several lines
Ctrl-C    stop the answer'''

QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Asks for a line with this prompt. Raises `EOFError` (Ctrl-D) and `KeyboardInterrupt` (Ctrl-C)."""


class Conversation:
    """Messages so far, and how to get the next one."""

    def __init__(
        self, client: Client, model: str, system: str | None, fields: Mapping[str, object], verbose: bool
    ) -> None:
        self._client = client
        self._model = model
        self._system = [{"role": "system", "content": system}] if system else []
        self._fields = fields
        self._verbose = verbose
        self.messages: list[dict[str, str]] = list(self._system)

    def answer(self, text: str) -> None:
        """Print the answer as it comes. An interrupted one stays as far as it came, one that failed is undone."""
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        last: dict[str, Any] = {}
        try:
            for last in self._client.chat(self._model, messages, **self._fields):
                piece = last["message"]["content"]
                answer += piece
                click.echo(piece, nl=False)
                sys.stdout.flush()
        finally:
            click.echo()
            if answer:
                self.messages = [*messages, {"role": "assistant", "content": answer}]
        if self._verbose:
            click.echo(format_timings(last), err=True)

    def clear(self) -> None:
        """Begin anew."""
        self.messages = list(self._system)


def chat_loop(conversation: Conversation, read_line: ReadLine) -> None:
    """Answer what is typed until `/bye` or Ctrl-D. Errors are told; they do not end the chat."""
    while True:
        try:
            text = read_message(read_line)
        except KeyboardInterrupt:
            click.echo("leave with /bye or Ctrl-D", err=True)
            continue
        except EOFError:
            return
        if text in ("/bye", "/exit"):
            return
        if text == "/clear":
            conversation.clear()
        elif text.startswith("/"):
            click.echo(HELP if text in ("/help", "/?") else f"there is no {text.split()[0]}; /help lists what is")
        elif text:
            try:
                conversation.answer(text)
            except KeyboardInterrupt:
                continue  # the stream is closed, which stops the answer
            except VMMError as error:
                click.echo(f"error: {error.message}", err=True)


def read_message(read_line: ReadLine) -> str:
    '''A line, or the lines between `"""` and `"""`.'''
    text = read_line(">>> ")
    if not text.lstrip().startswith(QUOTES):
        return text.strip()
    text = text.lstrip().removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + read_line("... ")
    return text.rstrip().removesuffix(QUOTES)


def terminal_reader(history: Path) -> ReadLine:
    """Line editing, with a history kept in a file."""
    session: PromptSession[str] = PromptSession(history=FileHistory(str(history)))

    def read_line(prompt: str) -> str:
        return session.prompt(prompt)

    return read_line


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
    return "\n".join(f"{label + ':':<22}{value}" for label, value in lines)
