"""`vmm run`: one answer, or a chat, from a running server or from one embedded for the occasion."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from vmm_adapters.catalog import BACKENDS
from vmm_server.cli.chat import chat_loop
from vmm_server.cli.client import Client, server_url
from vmm_server.cli.conversation import Conversation, Session, parse_option, read_format
from vmm_server.cli.embedded import embedded_server
from vmm_server.cli.flags import home_option, server_option
from vmm_server.cli.output import PullProgress, print_json
from vmm_server.cli.terminal import TerminalReader
from vmm_server.errors import InvalidRequest, ModelNotFound
from vmm_server.settings import Settings, read_settings

THINK = ("true", "false", "low", "medium", "high")
COMMANDS = {
    "transcription": "vmm transcribe FILE --model {}",
    "detection": "vmm detect IMAGE --model {}",
    "classification": "vmm classify IMAGE --model {}",
    "image-embedding": "vmm embed --image FILE --model {}",
    "speech": "POST /v1/audio/speech",
    "rerank": "POST /v1/rerank",
}
"""What a model is for that makes neither text nor vectors of text → how it is asked."""


class RunCommand(click.Command):
    """A command whose `--think` and `--truncate` have a value only after `=`: what follows otherwise is the prompt."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the value that a bare `--think` means."""
        end = args.index("--") if "--" in args else len(args)
        given = [f"{word}=true" if word in ("--think", "--truncate") else word for word in args[:end]]
        return super().parse_args(ctx, given + args[end:])


@click.command(cls=RunCommand)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", help="A system message.")
@click.option("--format", "form", metavar="json|SCHEMA", help="Answer in JSON, or as a schema or its file says.")
@click.option("--think", metavar="[=LEVEL]", type=click.Choice(THINK), help="Think first: true, false or a level.")
@click.option("--hidethinking", is_flag=True, help="Print the answer alone.")
@click.option("--keep-alive", "--keepalive", metavar="DURATION", help="How long the server keeps the model after this.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option such as temperature=0.")
@click.option("--device", metavar="DEVICE", help="Run on this device only: CPU, GPU, GPU.1.")
@click.option("--backend", type=click.Choice(BACKENDS, case_sensitive=False), help="Run on this runtime only.")
@click.option("--truncate", metavar="[=false]", type=bool, help="Embeddings: cut a text that is too long. [true]")
@click.option("--dimensions", metavar="N", type=click.IntRange(1), help="Embeddings: cut the vector to N numbers.")
@click.option("--nowordwrap", is_flag=True, help="Leave the breaking of lines to the terminal.")
@click.option("--insecure", is_flag=True, help="Pull a missing model without TLS, if its host has none.")
@click.option("--verbose", is_flag=True, help="Print the timings after each answer.")
@server_option
@home_option
def run(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    form: str | None,
    think: str | None,
    hidethinking: bool,
    keep_alive: str | None,
    options: tuple[str, ...],
    device: str | None,
    backend: str | None,
    truncate: bool | None,
    dimensions: int | None,
    nowordwrap: bool,
    insecure: bool,
    verbose: bool,
    address: str | None,
    home: str | None,
) -> None:
    """Ask a model, or chat with it.

    With a PROMPT, or text on standard input, prints the answer; without, starts a chat. Uses the running server;
    if none answers, one is embedded for as long as the command runs. A missing model is pulled first.
    """
    settings = read_settings(home=home)
    place = {name: value for name, value in (("device", device), ("backend", backend)) if value is not None}
    session = Session(
        model,
        system=system,
        options=parse_options(options) | place,
        format=None if form is None else read_format(form),
        think={"true": True, "false": False, None: None}.get(think, think),
        keep_alive=keep_alive,
        word_wrap=not nowordwrap,
        hide_thinking=hidethinking,
        verbose=verbose,
    )
    text = prompt_text(prompt)
    with connect(Client(server_url(address, settings)), settings) as client:
        shown = ensure_installed(client, model, insecure=insecure)
        conversation = Conversation(client, session)
        capabilities = shown.get("capabilities", ("completion",))
        if not {"completion", "embedding"} & {*capabilities}:
            raise not_for_text(model, capabilities)
        if "completion" not in capabilities:
            fields = {"truncate": truncate, "dimensions": dimensions, "keep_alive": keep_alive}
            embed(client, model, text, {**fields, "options": session.options or None})
        elif text:
            conversation.answer(text)
        elif prompt or not is_terminal():
            conversation.load(model)  # `vmm run MODEL ""`: get it ready
        else:
            conversation.load(model)
            show_beginning(shown)
            keeps_history = os.environ.get("OLLAMA_NOHISTORY", "").lower() in ("", "0", "false")
            chat_loop(conversation, TerminalReader(settings.home / "history", keeps_history=keeps_history))


def is_terminal() -> bool:
    """Whether somebody can type."""
    return sys.stdin is not None and sys.stdin.isatty()


def embed(client: Client, model: str, text: str, fields: dict[str, object]) -> None:
    """Print the vector of a text: all that an embedding model can be asked for."""
    if not text:
        raise InvalidRequest(f"{model} makes vectors of texts", param="prompt", hint=f'vmm run {model} "a text"')
    print_json(client.embed(model, text, **{name: value for name, value in fields.items() if value is not None}))


def not_for_text(model: str, capabilities: Sequence[str]) -> InvalidRequest:
    """What to say about a model that there is nothing to ask in a prompt."""
    ways = (COMMANDS[each].format(model) for each in capabilities if each in COMMANDS)
    what = ", ".join(capabilities) or "nothing that is known here"
    return InvalidRequest(f"{model} does not answer texts: it is for {what}", param="model", hint=next(ways, None))


def show_beginning(shown: dict[str, Any]) -> None:
    """Print the messages that a model begins with."""
    for message in shown.get("messages") or ():
        if message["role"] != "system":
            click.echo(f">>> {message['content']}" if message["role"] == "user" else f"{message['content']}\n")


@contextmanager
def connect(client: Client, settings: Settings) -> Iterator[Client]:
    """The client, if its server answers; else one of an embedded server, unless another machine was asked for."""
    with client:
        if not client.is_local or client.answers():
            yield client
            return
    with embedded_server(settings) as (url, api_key), Client(url, api_key=api_key) as embedded:
        yield embedded


def ensure_installed(client: Client, model: str, *, insecure: bool = False) -> dict[str, Any]:
    """What `/api/show` says of a model; the server pulls one that it does not have."""
    try:
        return client.show(model)
    except ModelNotFound:
        with PullProgress() as progress:
            for event in client.pull(model, insecure=insecure):
                progress.show(event)
    return client.show(model)


def parse_options(options: tuple[str, ...]) -> dict[str, object]:
    """`("temperature=0", "stop=a", "stop=b")` → `{"temperature": 0, "stop": ["a", "b"]}`."""
    texts: dict[str, list[str]] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not (name and separator):
            raise click.UsageError(f"--option {option!r} is not NAME=VALUE")
        texts.setdefault(name, []).append(text)
    return {name: parse_option(name, given if name == "stop" else given[-1:]) for name, given in texts.items()}


def prompt_text(prompt: tuple[str, ...]) -> str:
    """What stands on the command line, after what is piped in: `cat notes.txt | vmm run smollm2 Summarise this`."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    return "\n\n".join(part for part in (piped, " ".join(prompt)) if part)
