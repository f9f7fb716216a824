"""A conversation with a model: what it is set to, what was said, and how to get the next answer."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from vmm_server.cli.answers import AnswerPrinter, format_timings, terminal_columns
from vmm_server.cli.client import Client
from vmm_server.cli.images import take_images
from vmm_server.errors import InvalidRequest


@dataclass
class Session:
    """What a conversation is set to: by flags when it begins, by `/set` later."""

    model: str
    system: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    format: object = None
    """`"json"` or a JSON schema."""
    think: bool | str | None = None
    keep_alive: str | None = None
    word_wrap: bool = True
    hide_thinking: bool = False
    verbose: bool = False

    def fields(self) -> dict[str, object]:
        """What of this a request carries."""
        fields = {"format": self.format, "think": self.think, "keep_alive": self.keep_alive}
        return {"options": self.options, **{name: value for name, value in fields.items() if value is not None}}


class Conversation:
    """Messages so far, and how to get the next one."""

    def __init__(self, client: Client, session: Session) -> None:
        self.client = client
        self.session = session
        self.messages: list[dict[str, Any]] = []

    def answer(self, text: str) -> None:
        """Print the answer as it comes. An interrupted one stays as far as it came, one that failed is undone."""
        session = self.session
        question = user_message(text)
        system = [{"role": "system", "content": session.system}] if session.system else []
        messages = [*system, *self.messages, question]
        printer = AnswerPrinter(
            columns=terminal_columns(), word_wrap=session.word_wrap, hide_thinking=session.hide_thinking
        )
        answer = {"content": "", "thinking": ""}
        last: dict[str, Any] = {}
        try:
            for last in self.client.chat(session.model, messages, **session.fields()):
                for kind, show in (("thinking", printer.thinking), ("content", printer.content)):
                    piece = last["message"].get(kind) or ""
                    answer[kind] += piece
                    show(piece)
        finally:
            printer.end()
            if answer["content"]:
                said = {kind: piece for kind, piece in answer.items() if piece}
                self.messages += [question, {"role": "assistant", **said}]
        if session.verbose:
            click.echo(format_timings(last), err=True)

    def load(self, model: str) -> None:
        """Go on with another model, or load this one; what was said so far is forgotten. Raises `ModelNotFound`."""
        self.client.load(model, self.session.keep_alive, self.session.options)
        self.session.model = model
        self.clear()

    def save(self, name: str) -> None:
        """Make a model that begins where this conversation is: its system message, options and messages."""
        session = self.session
        before = self.client.show(session.model).get("messages") or []
        said = [{"role": message["role"], "content": message["content"]} for message in [*before, *self.messages]]
        fields = {"system": session.system, "parameters": session.options, "messages": said}
        body = {name: value for name, value in fields.items() if value}
        for _ in self.client.create({"model": name, "from": session.model, **body}):
            pass

    def clear(self) -> None:
        """Begin anew."""
        self.messages = []


def user_message(text: str) -> dict[str, Any]:
    """The message that a typed text is, with the pictures it names. Raises `InvalidRequest`."""
    content, images = take_images(text)
    for path in images:
        click.echo(f"Added image '{path}'", err=True)
    message: dict[str, Any] = {"role": "user", "content": content}
    return message | {"images": list(images.values())} if images else message


def parse_option(name: str, texts: Sequence[str]) -> object:
    """The value of an option: a number or a flag where it looks like one, a list of texts for `stop`.

    Raises `InvalidRequest`.
    """
    if name == "stop":
        return list(texts)
    if len(texts) != 1:
        raise InvalidRequest(f"{name} takes one value", param=name)
    (text,) = texts
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text  # JSON has no word for the others
    return {"true": True, "false": False}.get(text, text)


def read_format(text: str) -> object:
    """The form that answers are to have: `json`, a JSON schema, or a file that holds one. Raises `InvalidRequest`."""
    if text == "json":
        return text
    schema = text
    if not text.lstrip().startswith("{"):
        try:
            schema = Path(text).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            hint = "give json, a JSON schema, or a file that holds one"
            raise InvalidRequest(f"format: {text!r} cannot be read", param="format", hint=hint) from error
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise InvalidRequest(f"format: this is no JSON: {error}", param="format") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("format: a JSON schema is an object", param="format")
    return parsed
