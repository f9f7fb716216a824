"""`vmm run`: one answer, or a chat, from a running server or from one embedded for the occasion."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vmm_server.cli.chat import Conversation, chat_loop, terminal_reader
from vmm_server.cli.client import Client, server_url
from vmm_server.cli.embedded import embedded_server
from vmm_server.cli.flags import home_option, server_option
from vmm_server.cli.output import PullProgress
from vmm_server.errors import ModelNotFound
from vmm_server.settings import Settings, read_settings


@click.command()
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", help="A system message.")
@click.option("--keep-alive", metavar="DURATION", help="How long the server keeps the model after this.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option such as temperature=0.")
@click.option("--verbose", is_flag=True, help="Print the timings after each answer.")
@server_option
@home_option
def run(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    keep_alive: str | None,
    options: tuple[str, ...],
    verbose: bool,
    address: str | None,
    home: str | None,
) -> None:
    """Ask a model, or chat with it.

    With a PROMPT, or text on standard input, prints the answer; without, starts a chat. Uses the running server;
    if none answers, one is embedded for as long as the command runs. A missing model is pulled first.
    """
    settings = read_settings(home=home)
    fields: dict[str, object] = {"options": parse_options(options)}
    if keep_alive is not None:
        fields["keep_alive"] = keep_alive
    text = prompt_text(prompt)
    with connect(Client(server_url(address, settings)), settings) as client:
        ensure_installed(client, model)
        conversation = Conversation(client, model, system, fields, verbose)
        if text:
            conversation.answer(text)
        else:
            settings.home.mkdir(parents=True, exist_ok=True)
            chat_loop(conversation, terminal_reader(settings.home / "history"))


@contextmanager
def connect(client: Client, settings: Settings) -> Iterator[Client]:
    """The client, if its server answers; else one of an embedded server, unless another machine was asked for."""
    with client:
        if not client.is_local or client.answers():
            yield client
            return
    with embedded_server(settings) as url, Client(url) as embedded:
        yield embedded


def ensure_installed(client: Client, model: str) -> None:
    """Have the server pull a model that it does not have."""
    try:
        client.show(model)
    except ModelNotFound:
        with PullProgress() as progress:
            for event in client.pull(model):
                progress.show(event)


def parse_options(options: tuple[str, ...]) -> dict[str, object]:
    """`("temperature=0", "stop=a", "stop=b")` → `{"temperature": 0, "stop": ["a", "b"]}`."""
    parsed: dict[str, object] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not (name and separator):
            raise click.UsageError(f"--option {option!r} is not NAME=VALUE")
        if name == "stop":
            stops = parsed.setdefault(name, [])
            assert isinstance(stops, list)
            stops.append(text)
        else:
            parsed[name] = _number(text)
    return parsed


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def prompt_text(prompt: tuple[str, ...]) -> str:
    """What stands on the command line, after what is piped in: `cat notes.txt | vmm run smollm2 Summarise this`."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    return "\n\n".join(part for part in (piped, " ".join(prompt)) if part)
